"""The command `anoseg`: quick help, one version, and the same code as the scripts."""

import argparse
import importlib
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import anoseg_d2
from anoseg_d2 import cli
from anoseg_d2.utils.cli import add_verbosity_options

ROOT = Path(__file__).parents[1]
SCRIPTS = {
    "tools/export_model.py": "export",
    "tools/evaluate_maps.py": "maps",
    "datasets/check.py": "check",
    "datasets/prepare_cut_paste.py": "cut-paste",
}


@pytest.fixture(autouse=True)
def _keep_the_programs_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", list(sys.argv))


CALLS = [
    (["--help"], 0),
    (["--version"], 0),
    *([[name, "--help"], 0] for name in cli.COMMANDS),
    (["train", "--num-gpus", "0"], 2),
    (["predict", "a.png", "--weights", "w.pth", "--opts", "MODEL.DEVISE", "cpu"], 2),
    (["predict", "gone.png", "--weights", "w.pth"], 2),
    (["export", "w.pth", "--output", "model.txt"], 2),
    (["convert", "w.pth", "--to", "anoseg", "--output", "model.txt"], 2),
    (["memory", "w.pth", "--images", "gone", "--output", "out.pth"], 2),
]


def test_help_and_mistakes_are_answered_without_torch_or_detectron2():
    # In one fresh interpreter, since each takes a while to start.
    code = (
        "import json, sys\nfrom anoseg_d2 import cli\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    try: status = cli.main(arguments)\n"
        "    except SystemExit as stop: status = stop.code\n"
        "    loaded = sorted({'torch', 'detectron2', 'matplotlib'} & set(sys.modules))\n"
        "    print('answered', status or 0, loaded)"
    )
    command = [sys.executable, "-c", code, json.dumps([arguments for arguments, _ in CALLS])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    answers = [line for line in done.stdout.splitlines() if line.startswith("answered")]
    for (arguments, status), answer in zip(CALLS, answers, strict=True):
        assert answer == f"answered {status} []", arguments


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    said = capsys.readouterr().out
    names = "train resume eval predict app export convert maps submit compare card check cut-paste"
    names += " threshold memory"
    assert list(cli.COMMANDS) == names.split()
    assert all(f"\n  {name} " in said for name in names.split())


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == f"anoseg_d2 {anoseg_d2.__version__}"


def test_an_unknown_command_names_the_known_ones(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["fly"])
    said = capsys.readouterr().err
    assert "'fly'" in said and "cut-paste" in said


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_a_command_calls_itself_by_its_name(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"])
    said = capsys.readouterr().out
    assert said.startswith(f"usage: anoseg {name} ")
    assert "-q, --quiet" in said and "-v, --verbose" in said


@pytest.mark.parametrize("path", list(SCRIPTS))
def test_a_script_is_its_command_and_nothing_else(path):
    names = runpy.run_path(str(ROOT / path))
    command = importlib.import_module(f"anoseg_d2.commands.{cli.COMMANDS[SCRIPTS[path]][0]}")
    own = {name for name, value in names.items() if callable(value) and not name.startswith("__")}
    assert own == {"main"} and names["main"] is command.main


def test_eval_evaluates(monkeypatch):
    calls = []
    monkeypatch.setattr("anoseg_d2.commands.train.main", lambda argv: calls.append(argv) or 0)
    assert cli.main(["eval", "--config-file", "a.yaml", "MODEL.WEIGHTS", "w.pth"]) == 0
    assert calls == [["--eval-only", "--config-file", "a.yaml", "MODEL.WEIGHTS", "w.pth"]]


def test_verbosity_goes_before_the_command_or_after_it(monkeypatch):
    found = []

    def note(argv):
        parser = argparse.ArgumentParser()
        add_verbosity_options(parser)
        found.append(parser.parse_known_args(argv)[0].verbosity)

    monkeypatch.setattr("anoseg_d2.commands.compare.main", note)
    for line in (["-q", "compare"], ["compare", "-q"], ["-v", "compare"], ["compare"]):
        cli.main(line)
    assert found == [-1, -1, 1, 0]
    with pytest.raises(SystemExit, match="2"):
        cli.main(["-q", "-v", "compare", "a"])


def test_a_quiet_command_prints_nothing_and_still_reports_a_mistake(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    status = cli.main(["check", "--quiet", "road_anomaly"])
    assert status == 1 and capsys.readouterr() == ("", "")
    assert cli.main(["check", "--quiet", "no_such_set"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown dataset")


def test_the_exit_status_is_that_of_the_command(tmp_path, capsys):
    status = cli.main(["compare", str(tmp_path / "none"), "--output", str(tmp_path / "out")])
    assert status == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_no_text_of_the_package_sends_an_installed_user_to_a_script_of_the_checkout():
    script = re.compile(r"(tools|datasets|demo)/\w+\.py|train_net\.py|\w+_checkpoint\.py")
    found = [
        f"{path.relative_to(ROOT)}:{number} {line.strip()}"
        for path in sorted((ROOT / "anoseg_d2").rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        # Comments are for those who read the code.
        if script.search(line.partition("#")[0]) and "a checkout of" not in line
    ]
    assert not found


PLANTED = 'raise SystemExit("a module that nobody asked for has run")\n'


@pytest.mark.slow
def test_a_module_in_the_current_folder_does_not_run_by_itself(tmp_path):
    for name in ("torch", "timm", "h5py", "statistics", "cv2", "PIL", "scipy"):
        (tmp_path / f"{name}.py").write_text(PLANTED)
    (tmp_path / "photo.png").write_bytes(b"")
    (tmp_path / "weights.pth").write_bytes(b"not weights")
    command = [Path(sys.executable).with_name("anoseg"), "predict", "photo.png"]
    command += ["--weights", "weights.pth", "--output", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "weights.pth" in done.stderr and "nobody asked" not in done.stderr


@pytest.mark.slow
def test_modules_that_were_asked_for_come_from_the_current_folder_and_shadow_nothing(tmp_path):
    (tmp_path / "torch.py").write_text(PLANTED)
    (tmp_path / "my_parts.py").write_text('import torch\nprint("torch", torch.__version__)\n')
    command = [Path(sys.executable).with_name("anoseg"), "check", "gone", "--import", "my_parts"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout.startswith("torch 2")
