"""The model that ships: what its file holds, and what it says of a drawn scene."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from anoseg_d2.checkpoint import read_checkpoint, weights_hash
from anoseg_d2.checkpoint.files import SHIPPED_FILE
from anoseg_d2.prediction.predictor import AnomalyPredictor

# `weights_hash` of the ViT as `dinov2-s` is read.
BACKBONE = "de3b0f312f61e5ef1be6a8b545f9a8e2502ab3305e1776145c92d4f4257d9651"


@pytest.fixture
def stored():
    with safe_open(SHIPPED_FILE, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["anoseg_d2"])


def test_it_is_small_holds_next_to_nothing_of_the_vit_and_names_it(stored):
    tensors, meta = stored
    assert SHIPPED_FILE.stat().st_size <= 8e6
    of_vit = {n: t for n, t in tensors.items() if n.startswith("backbone.") and "lora_" not in n}
    assert all(t.ndim == 1 for t in of_vit.values())  # biases and norms
    assert sum(t.numel() for t in of_vit.values()) < 100_000
    assert meta["base_name"] == "dinov2-s" and meta["base_hash"] == BACKBONE
    assert {name.split(".")[1] for name in tensors if name.startswith("patch_maps.")} == {
        *("memory", "ratio"),
    }
    assert all(torch.isfinite(tensor.float()).all() for tensor in tensors.values())


def test_its_card_states_data_figures_and_limits():
    card = (SHIPPED_FILE.parent / "README.md").read_text(encoding="utf-8")
    for word in ("Cityscapes", "COCO", "Licence", "road_anomaly21", "road_obstacle21", "Limits"):
        assert word in card


def drawn_scene():
    """A grey road below a blue sky, with a striped box on the road."""
    image = np.full((256, 512, 3), (110, 110, 112), np.uint8)
    image[:110] = (150, 180, 220)
    image[165:215, 230:290] = (200, 60, 40)
    image[165:215, 230:290:6] = (240, 220, 60)
    return image[..., ::-1]


@pytest.mark.slow
def test_it_finds_a_drawn_box_on_the_road():
    try:
        predictor = AnomalyPredictor.from_pretrained()
    except OSError as error:
        pytest.skip(f"the ViT of the model is not at hand: {error}")
    assert weights_hash(read_checkpoint("dinov2-s").state_dict) == BACKBONE
    assert len(predictor.class_names) == 19
    result = predictor(drawn_scene())
    score = result["scores"][predictor.score_names[0]]
    box = np.zeros(score.shape, bool)
    box[165:215, 230:290] = True
    assert np.median(score[box]) == pytest.approx(8.3, abs=0.5)
    assert np.quantile(score[~box], 0.95) == pytest.approx(5.7, abs=0.5)
