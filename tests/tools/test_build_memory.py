"""A checkpoint gets a memory, keeps it, and refuses that of another backbone."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anoseg_d2.checkpoint import model_meta
from anoseg_d2.prediction.predictor import AnomalyPredictor

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("build_memory", ROOT / "tools/build_memory.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def weights(tmp_path, tiny_eomt):
    model = tiny_eomt(has_anomaly=True)
    torch.save({"model": model.state_dict(), "meta": model_meta(model)}, tmp_path / "w.pth")
    return tmp_path / "w.pth"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        image = rng.integers(0, 256, (40, 64, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


def build(tool, weights, photos, output, *options):
    return tool.main([str(weights), "--images", str(photos), "--output", str(output), *options])


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_the_memory_is_in_the_checkpoint_and_knows_its_images(
    tool, weights, photos, tmp_path, capsys, ending
):
    output = tmp_path / f"memory{ending}"
    assert build(tool, weights, photos, output) == 0
    assert "rows of 3 images; on 1 others" in capsys.readouterr().out
    predictor = AnomalyPredictor.from_pretrained(str(output))
    assert "memory" in predictor.score_names
    statistics = predictor.model.score_statistics["memory"]
    held_out = predictor(photos / "0.png")["scores"]["memory"]
    assert statistics == pytest.approx((held_out.mean(), held_out.std()), abs=1e-4)
    assert predictor(photos / "1.png")["scores"]["memory"].max() < 1e-4 < held_out.max()
    before = AnomalyPredictor.from_pretrained(str(weights))(photos / "1.png")["scores"]["rba"]
    found = predictor(photos / "1.png")["scores"]["rba"]
    np.testing.assert_allclose(found, before, atol=1e-6)


def test_a_memory_of_another_backbone_is_refused(tool, weights, photos, tmp_path):
    assert build(tool, weights, photos, tmp_path / "m.pth", "--rows", "5") == 0
    payload = torch.load(tmp_path / "m.pth", weights_only=True)
    assert payload["model"]["patch_maps.memory.rows"].dtype == torch.float16
    assert len(payload["model"]["patch_maps.memory.rows"]) == 5
    payload["model"]["backbone.blocks.0.mlp.fc1.weight"] += 0.1
    torch.save(payload, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="another backbone.*build_memory"):
        AnomalyPredictor.from_pretrained(str(tmp_path / "other.pth"))


def test_mistakes_are_one_line_and_status_2(tool, weights, photos, tmp_path, capsys):
    assert build(tool, weights, tmp_path / "gone", tmp_path / "m.pth") == 2
    assert build(tool, weights, photos, tmp_path / "m.txt") == 2
    assert build(tool, weights, photos, tmp_path / "m.pth", "--rows", "0") == 2
    error = capsys.readouterr().err
    assert "gone is not a folder" in error and "must end in .pth" in error
    assert "--rows is at least 1" in error and "Traceback" not in error
