"""What a run says: few lines, no colours where nobody sees them, each dataset once."""

import json
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from runs import small_run

from anoseg_d2.config import load_config
from anoseg_d2.engine.run_log import parameter_table, set_up_run
from anoseg_d2.modeling.lora import lora_state_dict

ROOT = Path(__file__).parents[2]


def test_the_log_states_what_differs_from_the_defaults_and_config_yaml_states_all(
    tmp_path, fresh_loggers, capsys
):
    overrides = ["OUTPUT_DIR", str(tmp_path / "run"), "MODEL.DEVICE", "cpu", "SEED", "7"]
    cfg = load_config("arcface_lora", overrides)
    set_up_run(cfg)
    said = capsys.readouterr().out
    assert "  MODEL.LORA.ENABLED: True\n" in said and "  SEED: 7\n" in said
    assert "MODEL.LORA.RANK" not in said  # as in the defaults
    assert "\x1b" not in said and "Environment" not in said
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["SEED"] == 7


def test_quiet_is_about_the_terminal_and_not_about_the_file(tmp_path, fresh_loggers, capsys):
    cfg = small_run(tmp_path, "quiet")
    set_up_run(cfg, verbosity=-1)
    logging.getLogger("anoseg_d2.test").info("a fact")
    logging.getLogger("anoseg_d2.test").warning("a doubt")
    said = capsys.readouterr().out
    assert "a doubt" in said and "a fact" not in said
    kept = (tmp_path / "quiet" / "log.txt").read_text()
    assert "a doubt" in kept and "a fact" in kept


def test_verbose_adds_the_environment_and_every_key(tmp_path, fresh_loggers, capsys):
    set_up_run(small_run(tmp_path, "verbose"), verbosity=1)
    said = capsys.readouterr().out
    assert "Environment:" in said and "PyTorch" in said
    assert "The whole config:" in said and "NUM_QUERIES: 5" in said


def test_a_process_without_streams_writes_its_log(tmp_path, fresh_loggers, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        patch.setattr(sys, "stderr", None)
        set_up_run(small_run(tmp_path, "daemon"))
        logging.getLogger("anoseg_d2.test").info("a fact")
        kept = (tmp_path / "daemon" / "log.txt").read_text()
    assert "a fact" in kept


def test_parameter_table_says_total_trainable_and_adapters(tiny_eomt):
    model = tiny_eomt(lora={"rank": 2})
    table = parameter_table(model)
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    adapters = sum(v.numel() for v in lora_state_dict(model).values())
    assert 0 < adapters < trainable < total
    for count in (total, trainable, adapters):
        assert f"{count:,}" in table
        assert f"{100 * count / total:.2f} %" in table
    assert f"{12 * trainable / 2**20:,.1f} MiB" in table


@pytest.mark.slow
def test_six_steps_into_a_pipe_and_on_a_terminal(tmp_path):
    cfg = small_run(tmp_path, "run", "SOLVER.MAX_ITER", 6, tested=True)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    command = [sys.executable, "train_net.py", "--config-file", str(tmp_path / "config.yaml")]
    env = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"PYTHONPATH": str(ROOT)}
    piped = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    output = piped.stdout + piped.stderr
    assert len(output.splitlines()) < 80, output
    assert "\x1b" not in output
    assert "cpp_extension" not in output and "not built" not in output
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "\x1b" not in log and len(log.splitlines()) < 80
    announced = [line.split()[:3] for line in output.splitlines()]
    for use in ("train", "test"):
        assert announced.count([use, f"engine_{tmp_path.name}", "4"]) == 1
    order = [output.index(w) for w in ("Config, where", "Parameters:", "Data:", "iter: 5")]
    assert order == sorted(order)
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.json").open()]
    assert steps and all("iteration" in step for step in steps)

    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*command, "--overwrite", "-q"], cwd=ROOT, env=env, stdout=follower, stderr=follower
    )
    os.close(follower)
    seen = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(leader)
    assert process.wait() == 0
    lines = [line for line in seen.decode().splitlines() if line.strip()]
    assert lines and all("WARNING" in line for line in lines), lines
    assert b"\x1b[" in seen  # colours are for people
