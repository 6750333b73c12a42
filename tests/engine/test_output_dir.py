"""OUTPUT_DIR belongs to one run."""

import os
import subprocess
import sys

import pytest

from anoseg_d2.checkpoint.files import last_checkpoint
from anoseg_d2.engine.output_dir import claim_output_dir

HOLD = """
import sys
from anoseg_d2.engine.output_dir import claim_output_dir
with claim_output_dir(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def a_run(folder):
    """What a training leaves."""
    (folder / "report").mkdir(parents=True)
    for name in ("model_0000009.pth", "model_final.pth", "last_checkpoint", "metrics.json"):
        (folder / name).write_text("model_final.pth")
    (folder / "notes.txt").write_text("mine")
    return folder


def test_a_second_run_in_the_same_folder_is_refused_until_the_first_ends(tmp_path):
    pytest.importorskip("fcntl")
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match=f"in use by another run .process {other.pid}"),
            claim_output_dir(tmp_path),
        ):
            pass
        other.kill()
    with claim_output_dir(tmp_path):
        pass


def test_a_new_training_into_a_finished_run_names_the_ways_out(tmp_path):
    folder = a_run(tmp_path / "run")
    refused = pytest.raises(ValueError, match="model_final.pth.*--resume.*--overwrite.*OUTPUT_DIR")
    with refused, claim_output_dir(folder):
        pass
    with claim_output_dir(folder, training=False):
        assert last_checkpoint(folder) == folder / "model_final.pth"


def test_overwriting_deletes_the_run_and_nothing_else(tmp_path):
    folder = a_run(tmp_path / "run")
    with claim_output_dir(folder, overwrite=True):
        assert sorted(path.name for path in folder.iterdir()) == [".lock", "notes.txt"]
        assert last_checkpoint(folder) is None


def test_temporary_files_of_killed_runs_are_removed(tmp_path):
    folder = a_run(tmp_path / "run")
    litter = [folder / ".model_0000019.pth.x1.tmp", folder / "tmpa1.tmp"]
    for path in litter:
        path.write_text("half")
    evaluated = folder / "ema" / "inference" / "road_anomaly"
    folders = [evaluated / name for name in (".spill-3", ".kept-maps-x1", "exact_scores_x1")]
    for path in folders:
        path.mkdir(parents=True)
        (path / "0.npy").write_text("half")
    litter += [evaluated / ".result.json.x1.tmp", folder / "report" / ".index.html.x1.tmp"]
    litter[-1].write_text("half")
    litter[-2].write_text("half")
    (evaluated / "result.json").write_text("{}")
    with claim_output_dir(folder, resume=True):
        assert not any(path.exists() for path in (*litter, *folders))
        assert (evaluated / "result.json").exists()
        assert (folder / "model_final.pth").exists()


def test_an_output_folder_that_is_a_file_is_named(tmp_path):
    path = tmp_path / "run"
    path.write_text("")
    with pytest.raises(ValueError, match="OUTPUT_DIR .*run is a file"), claim_output_dir(path):
        pass


@pytest.mark.parametrize("name", [".lock", "log.txt", "metrics.json"])
def test_a_pipe_where_a_file_is_written_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with (
        pytest.raises(ValueError, match=f"{name} is not a regular file"),
        claim_output_dir(tmp_path),
    ):
        pass


def test_a_last_checkpoint_that_is_not_text_is_named(tmp_path):
    (tmp_path / "last_checkpoint").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="last_checkpoint.*name"):
        last_checkpoint(tmp_path)
