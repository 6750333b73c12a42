"""The command with one rank and with two: one message, one checkpoint, no orphans."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from detectron2.engine import default_argument_parser
from runs import small_run

from anoseg_d2.commands import train
from anoseg_d2.engine import argument_parser

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="torch without gloo"
)


def write_config(folder, *overrides, **options):
    path = folder / "run.yaml"
    path.write_text(small_run(folder, "run", *overrides, **options).dump())
    return str(path)


def start(folder, *arguments):
    command = [sys.executable, str(ROOT / "train_net.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # A file, not a pipe: a full pipe that nobody reads would stop the run.
    with open(folder / "log.txt", "w") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def finish(process, folder, seconds=120):
    try:
        process.wait(timeout=seconds)
    finally:
        process.kill()
    return (folder / "log.txt").read_text()


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    raise AssertionError("the run has not come so far in time")


def ranks_of(process):
    """Process ids of the launcher's ranks."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    names = {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in children}
    return [pid for pid, name in names.items() if "spawn_main" in name]


def test_the_options_are_detectron2s_and_ours():
    theirs = {o for a in default_argument_parser()._actions for o in a.option_strings}
    ours = {o for a in argument_parser()._actions for o in a.option_strings}
    assert ours == theirs | {*("--import", "--overwrite", "-q", "--quiet", "-v", "--verbose")}


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("--num-gpus", 0), "--num-gpus is 0"),
        (("SOLVER.MAX_ITER", 0), "SOLVER.MAX_ITER is 0; it must be an integer of at least 1"),
        (("--eval-only",), "--eval-only needs the checkpoint to evaluate"),
        (("--eval-only", "--resume"), "which has none; leave --resume out"),
        (("--eval-only", "DATASETS.TEST", "()"), "--eval-only has nothing to evaluate"),
        (("--import", "no_such_module"), "cannot import 'no_such_module'"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(tmp_path, capsys, arguments, message):
    path = write_config(tmp_path, tested=True)
    command = ["--config-file", path, *map(str, arguments)]
    assert train.main(command) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and message in lines[-1]


def first_step_is_done(folder):
    """Whether figures of a step are written; their file is there before."""
    metrics = folder / "run" / "metrics.json"
    return metrics.exists() and metrics.stat().st_size > 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_two_ranks_that_are_asked_to_stop_save_once_and_leave_no_orphan(tmp_path):
    path = write_config(tmp_path, "SOLVER.MAX_ITER", 100_000, "SOLVER.CHECKPOINT_PERIOD", 5)
    process = start(
        tmp_path, "--config-file", path, "--num-gpus", 2, "SOLVER.CHECKPOINT_PERIOD", 10**6
    )
    wait_for(lambda: first_step_is_done(tmp_path), process)
    ranks = ranks_of(process)
    assert len(ranks) == 2
    process.send_signal(signal.SIGTERM)
    output = finish(process, tmp_path, 60)
    assert process.returncode == 130, output
    assert output.strip().endswith("stopped; continue with the same command and --resume")
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    checkpoints = list((tmp_path / "run").glob("model_*.pth"))
    assert len(checkpoints) == 1
    assert (tmp_path / "run" / "last_checkpoint").read_text() == checkpoints[0].name


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_a_rank_that_is_killed_ends_the_run_with_a_message(tmp_path):
    path = write_config(tmp_path, "SOLVER.MAX_ITER", 100_000)
    process = start(tmp_path, "--config-file", path, "--num-gpus", 2)
    wait_for(lambda: first_step_is_done(tmp_path), process)
    ranks = ranks_of(process)
    os.kill(ranks[1], signal.SIGKILL)
    output = finish(process, tmp_path, 60)
    assert process.returncode == 2, output
    last = output.strip().splitlines()[-1]
    assert last.startswith("error: rank ") and "--resume" in last
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)


@pytest.mark.slow
def test_two_ranks_that_get_no_better_end_after_the_same_step(tmp_path):
    length = ("SOLVER.MAX_ITER", 40, "TEST.EVAL_PERIOD", 2, "SOLVER.BASE_LR", 0.0)
    best = ("SOLVER.BEST_FIGURE", "closed_set/mIoU", "SOLVER.PATIENCE", 2)
    path = write_config(tmp_path, *length, *best, tested=True)
    process = start(tmp_path, "--config-file", path, "--num-gpus", 2)
    output = finish(process, tmp_path, 300)
    assert process.returncode == 0, output
    final = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    assert final["iteration"] == 6
    assert "Traceback" not in output


@pytest.mark.slow
def test_an_error_on_two_ranks_is_one_line(tmp_path):
    path = write_config(tmp_path, "SOLVER.IMS_PER_BATCH", 3)
    process = start(tmp_path, "--config-file", path, "--num-gpus", 2)
    output = finish(process, tmp_path, 120)
    assert process.returncode == 2
    assert output.count("error: ") == 1 and "Traceback" not in output, output
    assert "multiple of 2 processes" in output.strip().splitlines()[-1]
