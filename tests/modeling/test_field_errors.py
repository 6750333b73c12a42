"""Errors seen in other code of this field, one named test each that ours does not make them."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from anoseg_d2.checkpoint import AnosegCheckpointer, load_into, read_checkpoint
from anoseg_d2.data.dataset_mapper import AnosegDatasetMapper
from anoseg_d2.modeling.annealing import annealing_windows, keep_probability
from anoseg_d2.modeling.heads import ArcFaceHead
from anoseg_d2.modeling.scores import anomaly_scores

QUERIES = 5


def test_no_double_normalisation_from_file_to_patch_embedding(tiny_eomt, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    sample = AnosegDatasetMapper(is_train=False)({"file_name": str(tmp_path / "image.png")})
    assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), pixels)  # raw RGB 0..255
    model, seen = tiny_eomt().eval(), []
    model.backbone.patch_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model([sample])
    expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    found = seen[0][0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_anomaly_index_is_not_the_no_object_index(tiny_eomt, tiny_batch):
    model = tiny_eomt(has_anomaly=True).train()
    known, anomaly, no_object = model.num_known, model.num_known, model.num_known + 1
    assert model.class_head.num_rows == no_object + 1
    batch = tiny_batch(1)
    batch[0]["sem_seg"][:] = anomaly
    # One matched query is asked for the anomaly row, the four others for no-object.
    seen = []
    original = model.class_head.loss_logits
    model.class_head.loss_logits = lambda x, t: seen.append(t) or original(x, t)
    model(batch)
    for targets in seen:
        assert sorted(targets[0].tolist()) == [anomaly] + [no_object] * (QUERIES - 1)
    logits, masks = torch.zeros(1, 1, no_object + 1), torch.full((1, 1, 1, 1), 50.0)
    for row, score in ((anomaly, 1.0), (no_object, 0.0)):
        sure = logits.clone()
        sure[..., row] = 50.0
        found = anomaly_scores(sure, masks, known, ["anomaly"])["anomaly"].item()
        assert found == pytest.approx(score, abs=1e-6)


def test_a_new_anomaly_class_does_not_take_over_the_no_object_row(tiny_eomt, tmp_path):
    source = tiny_eomt()
    AnosegCheckpointer(source, str(tmp_path)).save("source")
    target = tiny_eomt(has_anomaly=True)
    load_into(target, read_checkpoint(tmp_path / "source.pth"))
    old, new = source.class_head.weight, target.class_head.weight
    assert torch.equal(new[:3], old[:3]) and torch.equal(new[4], old[3])
    assert not torch.equal(new[3], old[3])


@pytest.mark.parametrize("difference", [{"num_blocks": 1}, {"vit": {"depth": 4}}])
def test_depth_mismatch_at_evaluation_is_refused(tiny_eomt, tmp_path, difference):
    AnosegCheckpointer(tiny_eomt(), str(tmp_path)).save("source")
    other = tiny_eomt(**difference)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match="block"):
        load_into(other, read_checkpoint(tmp_path / "source.pth"))
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5])
def test_no_random_attention_masks_at_inference(tiny_eomt, progress):
    model = tiny_eomt().eval()
    model.set_progress(progress)  # training stopped while annealing was unfinished
    images = torch.rand(1, 3, 32, 32) * 255
    masks = []
    for block in model.backbone.blocks:
        block.register_forward_pre_hook(
            lambda block, x, options: masks.append(options["attn_mask"]), with_kwargs=True
        )
    state = torch.get_rng_state()
    first = model.predict_masks(images)[-1]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    second = model.predict_masks(images)[-1]
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert masks and all(mask is None for mask in masks)


@pytest.mark.parametrize("max_iter", [20, 558, 3720, 19902])
def test_annealing_is_over_before_the_run_is(max_iter):
    # Official code counts annealing in steps of one long run; shorter runs never leave the masks.
    for num_blocks in (3, 4):
        last = [keep_probability(1.0, *w) for w in annealing_windows(num_blocks)]
        assert last == [0.0] * num_blocks
        tenth_before_end = (0.9 * max_iter) / max_iter
        assert all(
            keep_probability(tenth_before_end, *w) == 0 for w in annealing_windows(num_blocks)
        )


def test_lora_receives_gradients(tiny_cfg, tiny_batch):
    from anoseg_d2.modeling import EoMT

    model = EoMT(tiny_cfg("MODEL.LORA.ENABLED", True, "MODEL.LORA.RANK", 2)).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for step in range(2):
        optimizer.zero_grad()
        sum(model(tiny_batch()).values()).backward()
        for name, parameter in model.named_parameters():
            if "lora_B" in name or ("lora_A" in name and step == 1):
                assert parameter.grad.abs().sum() > 0, (step, name)
            if name.startswith("backbone.") and "lora_" not in name:
                assert parameter.grad is None, name
        optimizer.step()


def test_arcface_cosine_is_between_feature_and_row_not_over_the_logit_vector():
    head = ArcFaceHead(8, 4, True)
    features = torch.randn(6, 8)
    logits = head(features)
    expected = 30 * F.cosine_similarity(features[:, None], head.weight[None], dim=-1)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert logits.norm(dim=-1).std() > 0.1  # a normalised logit vector has one norm
    with torch.no_grad():
        head.weight[0] *= 9  # length of a row must not matter
    torch.testing.assert_close(head(features), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["rba", "rba_sum"])
def test_rba_depends_on_the_classes_not_on_the_masks_alone(name):
    masks = torch.full((1, 1, 1, 1), 50.0)
    found = {}
    for row, label in enumerate(["road", "car", "anomaly", "no-object"]):
        logits = torch.zeros(1, 1, 4)
        logits[..., row] = 50.0
        found[label] = anomaly_scores(logits, masks, 2, [name])[name].item()
    assert found["road"] == pytest.approx(found["car"])
    assert found["anomaly"] == pytest.approx(found["no-object"])
    assert found["anomaly"] > found["road"] + 0.7
