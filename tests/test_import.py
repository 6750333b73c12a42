"""What importing the package promises, each in a fresh interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import anoseg_d2

ROOT = Path(__file__).resolve().parents[1]

NO_DETECTRON2 = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "detectron2":
            raise ModuleNotFoundError(f"No module named {name!r}", name="detectron2")

sys.meta_path.insert(0, Block())
"""


def run(code):
    """Run `code` in a fresh interpreter and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


REGISTERED = """
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
assert "EoMT" in META_ARCH_REGISTRY
for name in ("road_anomaly", "cityscapes_19_val", "camvid_outlier_train"):
    assert name in DatasetCatalog.list(), name
assert len(MetadataCatalog.get("cityscapes_19_val").stuff_classes) == 19
from anoseg_d2.modeling.heads import CLASS_HEADS
from anoseg_d2.modeling.scores import SCORES
assert "arcface" in CLASS_HEADS and "rba" in SCORES
"""


@pytest.mark.parametrize(
    "start",
    [
        "import anoseg_d2",
        *(
            pytest.param(start, marks=pytest.mark.slow)
            for start in (
                "import detectron2.data, detectron2.modeling, anoseg_d2",
                "from anoseg_d2 import Trainer",
            )
        ),
    ],
)
def test_importing_the_package_registers_everything_whatever_comes_first(start):
    run(start + REGISTERED)


@pytest.mark.slow
def test_a_detectron2_user_builds_the_model_from_its_config():
    sizes = "'MODEL.EOMT.SIZE', 'S', 'MODEL.EOMT.DEPTH', 3, 'INPUT.CROP_SIZE', (32, 32)"
    printed = run(
        f"""
import anoseg_d2
from detectron2.config import get_cfg
from detectron2.modeling import build_model
cfg = get_cfg()
anoseg_d2.add_anoseg_config(cfg)
cfg.merge_from_list([{sizes}, 'MODEL.DEVICE', 'cpu'])
print(type(build_model(cfg)).__name__)
"""
    )
    assert printed == "EoMT"


@pytest.mark.slow
def test_the_pure_modules_import_without_detectron2():
    modules = ("modeling.scores", "modeling.losses", "evaluation.metrics", "data.cut_paste")
    imports = "".join(f"import anoseg_d2.{module}\n" for module in modules)
    run(f"{NO_DETECTRON2}import anoseg_d2\n{imports}anoseg_d2.PixelMetrics")


@pytest.mark.slow
def test_without_detectron2_the_other_names_say_how_to_get_it():
    printed = run(
        f"""{NO_DETECTRON2}
import anoseg_d2
try:
    anoseg_d2.Trainer
except ModuleNotFoundError as error:
    print(error)
"""
    )
    assert "needs detectron2" in printed and "setup_env.py --detectron2-only" in printed


def test_the_top_of_the_package_is_its_index():
    names = ["add_anoseg_config", "AnomalyPredictor", "EoMT", "Trainer", "AnosegDatasetMapper"]
    assert set(anoseg_d2.__all__) == {*names, "train", "AnomalyEvaluator", "PixelMetrics"}
    for name in anoseg_d2.__all__:
        assert getattr(anoseg_d2, name).__name__ == name
        assert f"- `{name}`: " in anoseg_d2.__doc__
    assert set(anoseg_d2.__all__) <= set(dir(anoseg_d2))


def test_importing_the_package_alone_loads_neither_torch_nor_detectron2():
    assert run("import sys, anoseg_d2; print('torch' in sys.modules)") == "False"
