"""The C++ example gives what Python gives, where the headers to build it are found.

ONNXRUNTIME_DIR names an unpacked release of onnxruntime, from its releases page; OpenCV's headers
are Debian's libopencv-dev.
"""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from exported_models import make_model, photographs
from PIL import Image

from anoseg_d2 import AnomalyPredictor
from anoseg_d2.export.spec import ExportSpec
from anoseg_d2.export.write import export_model

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cpp"
THRESHOLDS = {"rba": -0.9, "anomaly": 0.2}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The built example."""
    folder = os.environ.get("ONNXRUNTIME_DIR")
    if folder is None or shutil.which("cmake") is None:
        pytest.skip("ONNXRUNTIME_DIR and cmake are needed to build it")
    build = tmp_path_factory.mktemp("build")
    configure = ["cmake", "-S", EXAMPLE, "-B", build, f"-DONNXRUNTIME_DIR={folder}"]
    done = subprocess.run(configure, capture_output=True, text=True)
    if "Could not find" in done.stderr or "Could NOT find" in done.stderr:
        pytest.skip("headers of onnxruntime or OpenCV were not found")
    assert done.returncode == 0, done.stderr
    subprocess.run(["cmake", "--build", build], check=True, capture_output=True)
    return build / "anoseg"


@pytest.mark.slow
def test_the_program_scores_and_decides_as_python_does(program, tmp_path):
    spec = ExportSpec(("rba", "anomaly", "rba+anomaly"), any_size=True, confidence=True)
    path = tmp_path / "model.onnx"
    export_model(make_model("arcface", has_anomaly=True), path, spec, thresholds=THRESHOLDS)
    predictor = AnomalyPredictor.from_exported(path)
    for size in ((41, 77), (150, 33)):
        photo = tmp_path / f"{size[0]}.png"
        Image.fromarray(photographs(1, *size)[0].permute(1, 2, 0).numpy()).save(photo)
        folder = tmp_path / photo.stem
        subprocess.run([program, path, photo, folder], check=True)
        expected = predictor(photo)
        assert np.array_equal(np.array(Image.open(folder / "sem_seg.png")), expected["sem_seg"])
        for name, score in expected["scores"].items():
            found = np.array(Image.open(folder / f"{name}.tiff"))
            np.testing.assert_allclose(found, score, atol=1e-4)
        for name, threshold in THRESHOLDS.items():
            anomalous = np.array(Image.open(folder / f"{name}.png")) > 0
            assert np.array_equal(anomalous, expected["scores"][name] >= np.float32(threshold))
            assert anomalous.any() and not anomalous.all()
        assert not (folder / "rba+anomaly.png").exists()


def test_the_example_is_short():
    lines = [line for line in (EXAMPLE / "anoseg.cpp").read_text().splitlines() if line.strip()]
    assert len(lines) < 200
