"""The sdist and the wheel that is built from it, installed where no checkout can be seen."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anoseg_d2.checkpoint import model_meta
from anoseg_d2.utils.config_files import shipped_configs

ROOT = Path(__file__).resolve().parent.parent
FILES = ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")
FOLDERS = ("anoseg_d2", "configs")

pytestmark = pytest.mark.slow


def run(*command, folder):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that is built from the sdist of the files here."""
    pytest.importorskip("setuptools", minversion="70.1")
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    source.mkdir()
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, source)
    build = f"import setuptools.build_meta as b; b.build_sdist({str(folder)!r})"
    run(sys.executable, "-c", build, folder=source)
    (sdist,) = folder.glob("*.tar.gz")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder]
    run(sys.executable, "-m", "pip", "wheel", *options, sdist, folder=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Folder of the programs of an environment that has the wheel and what it requires."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    find_site = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(programs / "python", "-c", find_site, folder=folder).strip())
    # Only the packages: an editable install of the checkout is not among them, because Python
    # does not read the .pth files of a folder that a .pth file names.
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = ["--quiet", "--no-deps", "--no-index"]
    python = ["-m", "pip", "--python", programs / "python", "install"]
    run(sys.executable, *python, *options, wheel, folder=folder)
    return programs


def test_the_wheel_carries_configs_cards_templates_and_the_typing_marker(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {str(p.relative_to(ROOT).as_posix()) for p in (ROOT / "anoseg_d2").rglob("*.*")}
    assert {n for n in package if not n.endswith(".pyc")} <= names
    assert {f"anoseg_d2/configs/{name}.yaml" for name in shipped_configs()} <= names
    assert {"anoseg_d2/py.typed", "anoseg_d2/data/cards/camvid.yaml"} <= names
    assert not [name for name in names if "recipe" in name or name.startswith("tests")]


def test_the_package_page_has_no_links_into_the_repository(wheel):
    with zipfile.ZipFile(wheel) as content:
        (path,) = [name for name in content.namelist() if name.endswith("/METADATA")]
        page = content.read(path).decode()
    assert "Author: anoseg_d2 contributors" in page
    targets = [part.split(")")[0] for part in page.split("](")[1:]]
    assert targets and all(target.startswith(("http", "#")) for target in targets)


def test_configs_are_found_by_name_without_a_checkout(installed, tmp_path):
    code = (
        "from anoseg_d2.config import load_config\n"
        "from anoseg_d2.utils.config_files import shipped_configs\n"
        "import anoseg_d2\n"
        "assert load_config('arcface_lora').MODEL.LORA.ENABLED\n"
        "assert load_config('camvid/arcface').MODEL.HEAD.NAME == 'arcface'\n"
        "print(anoseg_d2.__file__, *shipped_configs())"
    )
    file, *names = run(installed / "python", "-c", code, folder=tmp_path).split()
    assert Path(file).is_relative_to(installed.parent)
    assert names == shipped_configs()


def test_the_installed_command_predicts_a_photograph(installed, tmp_path, tiny_eomt):
    model = tiny_eomt(has_anomaly=True)
    torch.save({"model": model.state_dict(), "meta": model_meta(model)}, tmp_path / "tiny.pth")
    photo = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "street.png")
    command = ["predict", "street.png", "--weights", "tiny.pth", "--outputs", "raw_npy"]
    options = ["--output", "out", "--opts", "MODEL.DEVICE", "cpu"]
    run(installed / "anoseg", *command, *options, folder=tmp_path)
    (path,) = (tmp_path / "out").rglob("*.npy")
    scores = np.load(path, allow_pickle=False)
    assert scores.shape == (48, 64) and np.isfinite(scores).all()


def test_the_installed_command_takes_a_config_by_name(installed, tmp_path):
    command = [installed / "anoseg", "eval", "--config-file", "arcface_lora"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command), "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "gone.pth"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    # The config was found and read: next in turn are its datasets, which are not here.
    assert done.returncode == 2 and "DETECTRON2_DATASETS" in done.stderr
