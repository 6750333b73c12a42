"""Set-up and packaging: what a fresh clone promises."""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setup_env
import yaml

import anoseg_d2

ROOT = Path(__file__).resolve().parent.parent


def make_target(*arguments):
    outside = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, capture_output=True, text=True, env=outside, timeout=120
    )


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")


def test_the_set_up_script_runs_under_old_pythons_without_any_package():
    script = ROOT / "tools" / "setup_env.py"
    ast.parse(script.read_text(), feature_version=(3, 6))
    command = [sys.executable, "-I", "-S", str(script), "--help"]
    assert "--detectron2-only" in subprocess.run(command, capture_output=True, text=True).stdout


@pytest.mark.parametrize("version", [(2, 7), (3, 9), (3, 14)])
def test_an_unsuitable_python_is_named_with_the_way_out(version):
    with pytest.raises(setup_env.SetupError, match=r"3\.10 to 3\.13.*make PYTHON="):
        setup_env.check_python(version)


@pytest.mark.parametrize("minor", [10, 11, 12, 13])
def test_a_suitable_python_passes(minor):
    setup_env.check_python((3, minor, 0))


def set_up(*options, **variables):
    """Run the script as `make` does."""
    command = [sys.executable, str(ROOT / "tools" / "setup_env.py"), *map(str, options)]
    environment = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_strange_folder_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").touch()
    done = set_up("--venv", tmp_path)
    assert done.returncode == 1 and "is not an environment" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_no_space_is_said_before_anything_is_made(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=int(1e9))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(setup_env.SetupError, match="not enough space.*make VENV="):
        setup_env.make_environment(tmp_path / "venv")
    assert not (tmp_path / "venv").exists()


@pytest.mark.slow
def test_an_importable_detectron2_is_kept():
    done = set_up("--detectron2-only")
    assert done.returncode == 0 and "keeping the detectron2 in" in done.stdout


@pytest.fixture
def environment(tmp_path):
    """A real environment in which nothing is installed, not even pip."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    return setup_env.Environment(tmp_path / "venv", tmp_path / "venv" / "bin" / "python")


def put(environment, path, text=""):
    """Write a file into an environment's packages."""
    assert environment.runs("import sysconfig; print(sysconfig.get_path('purelib'))")
    file = Path(environment.said, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_a_broken_build_of_detectron2_is_not_replaced(environment):
    put(environment, "detectron2/__init__.py", "raise ImportError('undefined symbol')")
    put(environment, "detectron2-0.6.dist-info/METADATA", "Name: detectron2\nVersion: 0.6\n")
    with pytest.raises(setup_env.SetupError, match="undefined symbol.*repair it"):
        setup_env.add_detectron2(environment)


def test_what_pip_was_interrupted_in_is_forgotten(environment):
    put(environment, "pip/__init__.py")
    whole = put(environment, "whole-1.0.dist-info/RECORD")
    half = put(environment, "half-1.0.dist-info/METADATA")
    setup_env.create(environment)
    assert whole.exists() and not half.parent.exists()


def test_a_second_set_up_does_nothing_until_the_pins_change(environment, capsys):
    stamp = environment.folder / "anoseg_ready"
    stamp.write_text(setup_env.fingerprint())
    setup_env.make_environment(environment.folder)
    assert capsys.readouterr() == ("", "")


def test_a_registry_out_of_reach_is_one_line_with_the_way_out(environment):
    here = setup_env.Environment(environment.folder, sys.executable)
    with pytest.raises(setup_env.SetupError, match="PIP_INDEX_URL") as caught:
        here.pip("download", "--retries", "0", "-i", "http://127.0.0.1:9/simple", "no-such-thing")
    assert "\n" not in str(caught.value)


def test_the_compiled_part_of_a_wheel_is_not_installed(tmp_path):
    wheel = tmp_path / "thing-1.0-cp310-cp310-linux_x86_64.whl"
    files = {
        "thing/__init__.py": "",
        "thing/_C.cpython-310-x86_64-linux-gnu.so": "compiled",
        "thing-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n",
        "thing-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\n"
        "Root-Is-Purelib: false\nTag: cp310-cp310-linux_x86_64\n",
        "thing-1.0.dist-info/RECORD": "thing/__init__.py,,\n"
        "thing/_C.cpython-310-x86_64-linux-gnu.so,,\nthing-1.0.dist-info/RECORD,,\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target"]
    subprocess.run([*command, tmp_path / "site", setup_env.pure_wheel(wheel)], check=True)
    installed = {path.name for path in (tmp_path / "site" / "thing").iterdir()}
    assert "__init__.py" in installed and not any(name.endswith(".so") for name in installed)


# What detectron2's tutorials and projects import.
USED = ["config", "data", "data.datasets", "data.transforms", "engine", "evaluation", "export"]
USED += ["layers", "model_zoo", "modeling", "projects.point_rend", "solver", "structures"]
USED += ["tracking", "utils.collect_env", "utils.events", "utils.logger", "utils.visualizer"]


@pytest.mark.slow
def test_a_detectron2_user_finds_all_of_detectron2():
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    code += "from detectron2 import model_zoo\n"
    code += "print(model_zoo.get_config('COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml').VERSION)"
    command = [sys.executable, "-c", code, *(f"detectron2.{name}" for name in USED)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr[-500:]


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
    for name in ("build.txt", "hashed.txt", "detectron2.txt"):
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


@pytest.fixture
def distribution(monkeypatch):
    """What setup.py tells setuptools."""
    given = {}
    monkeypatch.setattr("setuptools.setup", given.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    return given


def test_pins_lie_within_the_ranges_of_the_package(distribution):
    from packaging.requirements import Requirement

    ranges = [Requirement(text) for text in distribution["install_requires"]]
    pinned = dict(
        pin.lower().split("==")
        for name in ("torch.txt", "lock.txt")
        for pin in setup_env.pins(name)
    )
    for requirement in ranges:
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement


def test_the_distribution_carries_every_file_of_the_package(distribution):
    package = ROOT / "anoseg_d2"
    globs = distribution["package_data"]["anoseg_d2"]
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


def test_every_pinned_package_has_its_licence_listed():
    page = (ROOT / "docs" / "licences.md").read_text()
    listed = set(re.findall(r"^\| ([\w.-]+) \| \d[\w.]* \| \S.* \|$", page, re.M))
    names = {
        pin.partition("==")[0]
        for name in ("torch.txt", "lock.txt", "detectron2.txt")
        for pin in setup_env.pins(name)
    }
    assert listed == names
