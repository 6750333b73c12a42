"""An exported file predicts as its model does, in a process without torch and detectron2."""

import json
import subprocess
import sys

import numpy as np
import pytest
from exported_models import answers, make_model, photographs
from PIL import Image

from anoseg_d2 import AnomalyPredictor
from anoseg_d2.commands import predict
from anoseg_d2.export.spec import ExportSpec
from anoseg_d2.export.write import export_model

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")
pytestmark = pytest.mark.slow  # exporting takes seconds

SIZES = [(32, 32), (41, 77), (150, 33)]
SPEC = ExportSpec(("rba", "anomaly"), any_size=True)
NAMES = ["road", "pavement", "car", "person", "sky"]
BLOCK = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "timm", "detectron2", "fvcore"}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(scope="module")
def model():
    return make_model("arcface", has_anomaly=True)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_model(model, path, SPEC, class_names=NAMES, thresholds={"rba": -0.9})
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Folder of photographs of several sizes."""
    folder = tmp_path_factory.mktemp("photos")
    for number, size in enumerate(SIZES):
        image = photographs(1, *size)[0].permute(1, 2, 0).numpy()
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def python(code: str, *arguments) -> None:
    command = [sys.executable, "-c", BLOCK + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def assert_as_the_model(model, number: int, scores: dict, sem_seg=None):
    expected = answers(model, photographs(1, *SIZES[number]), SPEC.scores)
    for name, values in scores.items():
        np.testing.assert_allclose(values, expected[name][0], atol=1e-4)
    if sem_seg is not None:
        assert (sem_seg != expected["sem_seg"][0]).mean() < 1e-3


def test_a_file_is_a_predictor_without_torch_and_detectron2(model, exported, photos, tmp_path):
    code = """
import json
import numpy as np
from anoseg_d2 import AnomalyPredictor
predictor = AnomalyPredictor.from_exported(sys.argv[1])
assert predictor.palette.shape == (256, 3)
for number, result in enumerate(predictor([f"{sys.argv[2]}/{i}.png" for i in range(3)])):
    np.savez(f"{sys.argv[3]}/{number}", sem_seg=result["sem_seg"], **result["scores"])
print(json.dumps(predictor.class_names), file=open(f"{sys.argv[3]}/names", "w"))
"""
    python(code, exported, photos, tmp_path)
    assert json.loads((tmp_path / "names").read_text()) == NAMES
    for number in range(len(SIZES)):
        found = dict(np.load(tmp_path / f"{number}.npz"))
        sem_seg = found.pop("sem_seg")
        assert set(found) == set(SPEC.scores) and sem_seg.dtype == np.int64
        assert_as_the_model(model, number, found, sem_seg)


def test_predict_takes_a_file_without_torch_and_detectron2(model, exported, photos, tmp_path):
    code = """
from anoseg_d2 import cli
sys.exit(cli.main(["predict", sys.argv[2], "--weights", *sys.argv[1:2], "--outputs",
                   "raw_npy,overlay,segmentation", "--output", sys.argv[3]]))
"""
    python(code, exported, photos, tmp_path)
    for number in range(len(SIZES)):
        scores = {n: np.load(tmp_path / n / "raw_npy" / f"{number}.npy") for n in SPEC.scores}
        assert_as_the_model(model, number, scores)
        assert (tmp_path / "rba" / "overlay" / f"{number}.jpg").is_file()


def test_what_a_file_cannot_do_is_one_line(exported, photos, tmp_path, capsys):
    inputs = [str(photos / "0.png"), "--weights", str(exported), "--output", str(tmp_path)]
    for options, said in (
        (["--score", "msp"], "does not give msp, but rba, anomaly"),
        (["--opts", "TEST.FLIP", "True"], "drop --config-file, --opts"),
    ):
        assert predict.main([*inputs, *options]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_other_files_and_other_sizes_are_refused(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.onnx"):
        AnomalyPredictor.from_exported(tmp_path / "no.onnx")
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(ValueError, match=r"text\.onnx is not"):
        AnomalyPredictor.from_exported(tmp_path / "text.onnx")
    path = tmp_path / "fixed.onnx"
    export_model(model, path, ExportSpec(("rba",), image_size=(40, 60), confidence=True))
    predictor = AnomalyPredictor.from_exported(path)
    result = predictor(np.zeros((40, 60, 3), np.uint8))
    assert result["confidence"].shape == (40, 60)
    with pytest.raises(ValueError, match="40x60.*not 41x60.*--image-size"):
        predictor(np.zeros((41, 60, 3), np.uint8))
