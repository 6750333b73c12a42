"""A memory on a bare ViT: fitted, saved, read, predicted and refused where there are no classes."""

import numpy as np
import pytest
import small_sets
import torch
from tiny_models import tiny_vit

from anoseg_d2.checkpoint import build_config_overrides, read_checkpoint, save_weights
from anoseg_d2.config import load_config
from anoseg_d2.engine.fit_memory import default_blocks
from anoseg_d2.engine.preflight import check_inputs
from anoseg_d2.modeling import InferenceOptions, PatchModel
from anoseg_d2.modeling.patch_heads import PatchMemory
from anoseg_d2.prediction.predictor import AnomalyPredictor


def patch_model(**options):
    model = PatchModel(backbone=tiny_vit(), **options).eval()
    model.patch_maps["memory"] = PatchMemory(torch.randn(5, 32), 2)
    return model


def test_the_tokens_are_those_of_the_vit_without_its_prefix():
    model = patch_model()
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    seen = {}
    hook = model.backbone.blocks[1].register_forward_hook(lambda m, i, out: seen.update(x=out))
    predictions, tokens = model.run_network(images, blocks=[1])
    hook.remove()
    assert torch.equal(tokens[1], seen["x"][:, 2:]) and tokens[1].shape == (2, 4, 32)
    assert predictions[0][0].shape[:2] == (2, 0)


def test_it_says_no_class_anywhere():
    (result,) = patch_model()([{"image": torch.randint(256, (3, 40, 70), dtype=torch.uint8)}])
    assert list(result["scores"]) == ["memory"] and result["scores"]["memory"].shape == (40, 70)
    assert result["scores"]["memory"].std() > 0
    assert (result["sem_seg"] == 255).all() and (result["confidence"] == 0).all()


def test_what_needs_masks_or_training_is_refused():
    model = patch_model()
    for name in ("rba", "rba+memory"):
        with pytest.raises(ValueError, match="rba.*masks"):
            model.check_scores([name])
    with pytest.raises(ValueError, match="masks"):
        patch_model(inference=InferenceOptions(scores=["msp"]))
    with pytest.raises(ValueError, match="PatchModel.*trained"):
        model.train()([])


def test_a_file_says_what_it_is_and_an_evaluation_follows_it(tmp_path):
    model = patch_model()
    model.patch_maps["memory"].backbone_sha256 = None
    save_weights(model, tmp_path / "m.pth")
    checkpoint = read_checkpoint(tmp_path / "m.pth")
    assert checkpoint.meta["version"] == 2 and checkpoint.spec.architecture == "PatchModel"
    overrides = build_config_overrides(checkpoint)
    assert overrides[overrides.index("MODEL.META_ARCHITECTURE") + 1] == "PatchModel"
    with pytest.raises(ValueError, match="another backbone"):
        AnomalyPredictor.from_pretrained(checkpoint)
    small_sets.closed_set(tmp_path, [np.zeros((32, 32), np.uint8)], name="patch_closed")
    cfg = load_config(overrides=[*overrides, "DATASETS.TEST", ["patch_closed"]])
    with pytest.raises(ValueError, match="PatchModel.*classes"):
        check_inputs(cfg, training=False)


@pytest.mark.parametrize("depth, blocks", [(12, (5, 8, 11)), (24, (11, 17, 23)), (1, (0,))])
def test_default_blocks_follow_the_depth(depth, blocks):
    vit = tiny_vit(depth=depth, width=8, heads=1)
    assert default_blocks(PatchModel(backbone=vit)) == blocks
