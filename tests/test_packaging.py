"""Set-up and packaging: what a fresh clone promises."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setup_env as script
import yaml

import anoseg_d2

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def setup_env(tmp_path, monkeypatch):
    """tools/setup_env.py as a module."""
    return script


@pytest.fixture
def environment(setup_env, tmp_path):
    """An environment folder whose Python is the one that runs the tests."""
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    return setup_env.Environment.at(folder)


def make_target(*arguments):
    outside = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, capture_output=True, text=True, env=outside, timeout=120
    )


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")


def test_set_up_script_parses_under_old_pythons():
    source = (ROOT / "tools" / "setup_env.py").read_text()
    ast.parse(source, feature_version=(3, 6))
    assert "from __future__" not in source


def test_set_up_script_needs_only_the_standard_library():
    tree = ast.parse((ROOT / "tools" / "setup_env.py").read_text())
    imported = {
        alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names
    }
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names


@pytest.mark.parametrize("version", [(2, 7), (3, 9), (3, 14)])
def test_unsuitable_python_is_named_with_the_way_out(setup_env, version, monkeypatch):
    monkeypatch.setattr(setup_env.shutil, "which", lambda name: None)
    with pytest.raises(setup_env.SetupError, match=r"3\.10 to 3\.13; install .*make PYTHON="):
        setup_env.check_python(version)


def test_a_suitable_python_that_is_here_is_offered(setup_env, monkeypatch):
    monkeypatch.setattr(setup_env.shutil, "which", lambda name: name)
    monkeypatch.setattr(setup_env, "runs", lambda name: name != "python3.13")
    with pytest.raises(setup_env.SetupError, match=r"use python3\.12: make PYTHON=python3\.12"):
        setup_env.check_python((3, 9))


def test_suitable_python_passes(setup_env):
    for minor in (10, 11, 12, 13):
        setup_env.check_python((3, minor, 0))


def test_no_space_is_said_before_anything_is_made(setup_env, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)._replace(free=int(1e9))
    monkeypatch.setattr(setup_env.shutil, "disk_usage", lambda place: usage)
    monkeypatch.setattr(sys, "argv", ["setup_env.py", "--venv", str(tmp_path / "venv")])
    assert setup_env.main() == 1
    assert "not enough space: " in capsys.readouterr().err
    assert not (tmp_path / "venv").exists()


def test_needed_space_shrinks_by_what_is_installed(setup_env, environment, monkeypatch):
    usage = shutil.disk_usage(environment.folder)._replace(free=int(1e9))
    monkeypatch.setattr(setup_env.shutil, "disk_usage", lambda place: usage)
    with pytest.raises(setup_env.SetupError, match="not enough space"):
        setup_env.require_space(environment, 2.0)
    monkeypatch.setattr(setup_env, "size_gb", lambda folder: 1.2)
    setup_env.require_space(environment, 2.0)


def test_what_is_installed_is_said_first(setup_env, environment, monkeypatch, capsys):
    monkeypatch.setattr(setup_env, "require_space", lambda *_: None)
    setup_env.announce(environment)
    said = capsys.readouterr().out
    for fact in ("torch 2.", "detectron2 0.7.2", "packages", f"{setup_env.CUDA_GB} GB"):
        assert fact in said


def test_no_network_is_one_line_and_no_traceback(setup_env, environment, monkeypatch, capsys):
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(setup_env.SetupError, match="no package registry can be reached") as caught:
        setup_env.step(environment, "a package", ["--retries", "0", "anoseg-no-such-package"])
    assert "\n" not in str(caught.value)


def test_a_failure_for_want_of_space_is_named(setup_env):
    with pytest.raises(setup_env.SetupError, match="no space left"):
        setup_env.explain("ERROR: [Errno 28] No space left on device\n", "torch")


def test_half_installed_packages_are_forgotten(setup_env, environment, monkeypatch, tmp_path):
    site = tmp_path / "site-packages"
    for name, complete in (("whole-1.0.dist-info", True), ("half-1.0.dist-info", False)):
        (site / name).mkdir(parents=True)
        (site / name / "METADATA").touch()
        if complete:
            (site / name / "RECORD").touch()
    monkeypatch.setattr(setup_env.Environment, "site_packages", lambda self: site)
    setup_env.remove_half_installed(environment)
    assert [path.name for path in site.iterdir()] == ["whole-1.0.dist-info"]


def test_a_strange_folder_is_not_overwritten(setup_env, tmp_path):
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "thesis.txt").touch()
    with pytest.raises(setup_env.SetupError, match="is not an environment with pip"):
        setup_env.create_venv(setup_env.Environment.at(tmp_path / "venv"))
    assert (tmp_path / "venv" / "thesis.txt").exists()


class Recorder:
    """Stands for the steps that install, and says which ran."""

    def __init__(self, setup_env, monkeypatch, fail_at=None):
        self.ran, self.fail_at = [], fail_at
        monkeypatch.setattr(setup_env, "announce", lambda e: None)
        monkeypatch.setattr(setup_env, "check_space", lambda e: None)
        monkeypatch.setattr(setup_env, "check_imports", lambda e: self.note("check"))
        monkeypatch.setattr(setup_env, "remove_half_installed", lambda e: None)
        monkeypatch.setattr(setup_env, "add_detectron2", lambda e: self.note("detectron2"))
        monkeypatch.setattr(setup_env, "install_torch", lambda e: self.note("torch"))
        monkeypatch.setattr(setup_env, "step", lambda e, what, options: self.note(what))

    def note(self, what):
        if what == self.fail_at:
            raise KeyboardInterrupt
        self.ran.append(what)


def test_a_second_set_up_does_nothing(setup_env, environment, monkeypatch):
    recorder = Recorder(setup_env, monkeypatch)
    setup_env.make_environment(environment.folder)
    first = list(recorder.ran)
    setup_env.make_environment(environment.folder)
    assert recorder.ran == first
    assert first[-1] == "check"


def test_an_interrupted_set_up_goes_on(setup_env, environment, monkeypatch):
    Recorder(setup_env, monkeypatch, fail_at="detectron2")
    with pytest.raises(KeyboardInterrupt):
        setup_env.make_environment(environment.folder)
    recorder = Recorder(setup_env, monkeypatch)
    setup_env.make_environment(environment.folder)
    assert recorder.ran[-1] == "check"


def test_new_pins_make_the_set_up_run_again(setup_env, environment, monkeypatch, tmp_path):
    recorder = Recorder(setup_env, monkeypatch)
    setup_env.make_environment(environment.folder)
    pins = shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    (pins / "lock.txt").write_text("numpy==1.0\n")
    monkeypatch.setattr(setup_env, "REQUIREMENTS", pins)
    setup_env.make_environment(environment.folder)
    assert recorder.ran.count("check") == 2


def test_an_importable_detectron2_is_kept(setup_env, environment, monkeypatch, capsys):
    monkeypatch.setattr(
        setup_env.Environment, "evaluate", lambda self, code: (0, "/x/detectron2/engine/e.py", "")
    )
    monkeypatch.setattr(setup_env, "step", lambda *_: pytest.fail("installed something"))
    setup_env.add_detectron2(environment)
    assert "keeping the detectron2 in /x/detectron2" in capsys.readouterr().out


def test_a_broken_build_of_detectron2_is_not_replaced(setup_env, environment, monkeypatch):
    monkeypatch.setattr(setup_env.Environment, "evaluate", lambda self, code: (1, "", "undefined"))
    monkeypatch.setattr(setup_env.Environment, "version_of", lambda self, name: "0.6")
    with pytest.raises(setup_env.SetupError, match="does not import .undefined.; repair it"):
        setup_env.add_detectron2(environment)


@pytest.mark.parametrize(
    ("found", "installs"),
    [(None, True), ("2.13.0+cpu", False), ("2.14.1+cpu", True), ("2.14.1", True), ("1.13.1", True)],
)
def test_only_another_usable_torch_is_kept(setup_env, environment, monkeypatch, found, installs):
    versions = {"torch": found, "torchvision": "0.28.0"}
    monkeypatch.setattr(setup_env.Environment, "version_of", lambda self, name: versions[name])
    ran = []
    monkeypatch.setattr(setup_env, "step", lambda e, what, options: ran.append(options))
    setup_env.install_torch(environment)
    assert bool(ran) is installs


def test_detectron2_is_pinned_by_hash():
    text = (ROOT / "requirements" / "detectron2.txt").read_text()
    assert re.search(r"^sal-detectron2==0\.7\.2 \\\n\s+--hash=sha256:[0-9a-f]{64}$", text, re.M)


def pinned_lines(name):
    """Pins of a file in requirements/, without comments and hashes."""
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    lines = (line.partition("#")[0].strip().removesuffix(" \\") for line in lines)
    return [line for line in lines if line and not line.startswith("--hash=")]


def test_every_pin_is_exact():
    marker = r"( ; (python_version (<|>=) \"3\.11\"|sys_platform == \"win32\"))?"
    for name in ("build.txt", "torch.txt", "lock.txt"):
        for line in pinned_lines(name):
            assert re.match(rf"^[\w.-]+==[\w.]+{marker}$", line), line


def test_every_pin_but_torch_has_its_hashes():
    for name in ("build.txt", "hashed.txt", "detectron2.txt", "backbone.txt"):
        text = (ROOT / "requirements" / name).read_text()
        hashes = re.findall(
            r"--hash=sha256:[0-9a-f]{64}$|--hash=sha256:[0-9a-f]{64} \\$", text, re.M
        )
        assert hashes
        for entry in re.split(r"^(?=[\w.-]+==)", text, flags=re.M)[1:]:
            assert "--hash=sha256:" in entry, entry


def test_the_hashed_pins_are_those_of_the_lock():
    def plain(name):
        pins = {
            line.replace("python_full_version", "python_version") for line in pinned_lines(name)
        }
        return {re.sub(r"[-_.]+", "-", p.replace("'", '"').lower()) for p in pins}

    assert plain("hashed.txt") == plain("lock.txt")


def test_set_up_installs_by_hash(setup_env, environment, monkeypatch):
    asked = {}
    Recorder(setup_env, monkeypatch)
    monkeypatch.setattr(setup_env, "step", lambda e, what, options: asked.update({what: options}))
    setup_env.make_environment(environment.folder)
    by_hash = {what for what, options in asked.items() if "--require-hashes" in options}
    assert by_hash == {"pip and setuptools", "the other packages"}


def test_pins_lie_within_the_ranges_of_the_package(setup_env):
    from packaging.requirements import Requirement

    source = (ROOT / "setup.py").read_text()
    tree = ast.parse(source)
    lists = {n.targets[0].id: n.value for n in tree.body if isinstance(n, ast.Assign)}
    ranges = [Requirement(text) for text in ast.literal_eval(lists["REQUIRES"])]
    pinned = dict(
        pair.lower().split() for name in ("torch.txt", "lock.txt") for pair in setup_env.pins(name)
    )
    for requirement in ranges:
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement


def test_the_distribution_carries_every_file_of_the_package():
    tree = ast.parse((ROOT / "setup.py").read_text())
    call = next(n for n in ast.walk(tree) if isinstance(n, ast.keyword) and n.arg == "package_data")
    package = ROOT / "anoseg_d2"
    globs = ast.literal_eval(call.value)["anoseg_d2"]
    carried = {path for pattern in globs for path in package.glob(pattern)}
    other = {p for p in package.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert carried == other


def test_ci_runs_the_tests_by_make_and_nothing_else():
    lines = (ROOT / ".ci" / "run").read_text().split("\n")
    commands = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
    assert commands == ["make test"]


def test_the_workflow_runs_the_two_make_targets_and_nothing_else():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    ran = {n: [s["run"] for s in job["steps"] if "run" in s] for n, job in jobs.items()}
    assert ran == {"test": ["make test"], "demo": ["make demo"]}
    assert "schedule" in jobs["demo"]["if"] and "if" not in jobs["test"]


def test_the_image_is_made_by_make_setup():
    text = (ROOT / "Dockerfile").read_text()
    assert "make setup" in text and "pip install" not in text
    assert text.index("ARG BASE=") < text.index("FROM ${BASE}")


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == anoseg_d2.__version__
    cited = {i["value"] for r in citation["references"] for i in r["identifiers"]}
    papers = {"2503.19108", "1801.07698", "2205.09310", "2106.09685"}
    assert {f"arXiv:{number}" for number in papers} <= cited


@needs_make
def test_camvid_without_data_says_so_before_any_set_up():
    done = make_target("camvid", "VENV=/nonexistent", "DATA=")
    assert done.returncode != 0
    assert "make camvid DATA=<folder>" in done.stderr
    assert "set-up" not in done.stdout
    done = make_target("camvid", "VENV=/nonexistent", "DATA=/no/such/folder")
    assert "DATA=/no/such/folder is not a folder" in done.stderr


@needs_make
def test_a_python_that_is_not_there_is_one_clear_line():
    done = make_target("setup", "PYTHON=python-of-nowhere")
    assert done.returncode != 0
    assert "python-of-nowhere not found" in done.stderr.splitlines()[0]


@needs_make
def test_make_alone_lists_the_targets():
    said = make_target().stdout
    for target in ("make demo", "make camvid DATA=", "make test", "make lint"):
        assert target in said


def test_every_pinned_package_has_its_licence_listed(setup_env):
    page = (ROOT / "docs" / "licences.md").read_text()
    listed = set(re.findall(r"^\| ([\w.-]+) \| \d[\w.]* \| \S.* \|$", page, re.M))
    names = {
        n for f in ("torch.txt", "lock.txt", "detectron2.txt") for n in setup_env.pins(f, False)
    }
    assert listed == names
