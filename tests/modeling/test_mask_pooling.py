"""Mask pooling: the claimed regions, their means, and the option of the model."""

import pytest
import torch
from torch.nn import functional as F

from anoseg_d2.modeling import EoMT, inference
from anoseg_d2.modeling.mask_pooling import claimed_regions, pool_over_regions
from anoseg_d2.modeling.windows import cut_windows, plan_windows


def test_pooling_by_hand():
    score = torch.tensor([[0.0, 1.0, 5.0], [2.0, 3.0, 7.0]])
    regions = torch.tensor([[1, 1, 0], [1, 4, 4]])
    mean = torch.tensor([[1.0, 1.0, 5.0], [1.0, 5.0, 5.0]])
    assert torch.equal(pool_over_regions(score, regions, 1.0), mean)
    torch.testing.assert_close(pool_over_regions(score, regions, 0.25), 0.75 * score + 0.25 * mean)
    assert torch.equal(pool_over_regions(score, regions, 0.0), score)


@torch.no_grad()
def pooled_by_a_loop(model, image, score, weight, size):
    """Pool pixel by pixel: each finds its strongest mask in every window that covers it."""
    plan = plan_windows(tuple(image.shape[-2:]), model.image_size, model.window_overlap, model.flip)
    masks = []
    for crop, flipped in zip(cut_windows(image, plan), plan.flipped, strict=True):
        logits = model.predict_masks(crop[None])[-1][0]
        logits = F.interpolate(logits, size=plan.window, mode="bilinear")[0]
        masks.append(logits.flip(-1) if flipped else logits)
    members = {}
    for row in range(size[0]):
        for column in range(size[1]):
            y = int((row + 0.5) * plan.resized[0] / size[0])
            x = int((column + 0.5) * plan.resized[1] / size[1])
            best, owner = 0.0, None
            for window, (top, left) in enumerate(plan.origins):
                if not (0 <= y - top < plan.window[0] and 0 <= x - left < plan.window[1]):
                    continue
                for query, logits in enumerate(masks[window]):
                    if logits[y - top, x - left] > best:
                        best, owner = logits[y - top, x - left], (window, query)
            members.setdefault(owner, []).append((row, column))
    expected = score.clone()
    for owner, pixels in members.items():
        if owner is not None:
            mean = sum(float(score[p]) for p in pixels) / len(pixels)
            for p in pixels:
                expected[p] = (1 - weight) * float(score[p]) + weight * mean
    return expected, members


@pytest.mark.parametrize(
    "size,output,options",
    [
        ((32, 32), None, {}),
        ((32, 70), None, {"window_overlap": 0.3}),
        ((40, 60), (28, 43), {"flip": True}),
    ],
    ids=str,
)
def test_the_model_pools_as_a_loop_over_pixels_does(tiny_eomt, monkeypatch, size, output, options):
    monkeypatch.setattr(inference, "STRIP_ELEMENTS", 2000)
    model = tiny_eomt(has_anomaly=True, **options).eval()
    for parameter in model.mask_head.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    with torch.no_grad():
        model.class_head.bias[-1] = 9  # nearly every query is of no object, and counts all the same
    sample = {"image": torch.randint(256, (3, *size), dtype=torch.uint8)}
    if output:
        sample |= {"height": output[0], "width": output[1]}
    plain = model([sample], score_names=["rba", "anomaly"])[0]
    model.mask_pooling = 0.6
    found = model([sample], score_names=["rba", "anomaly"])[0]
    assert torch.equal(found["sem_seg"], plain["sem_seg"])
    for name, score in found["scores"].items():
        expected, members = pooled_by_a_loop(
            model, sample["image"], plain["scores"][name], 0.6, output or size
        )
        assert len(members) > 2, "several masks must claim pixels, or nothing is compared"
        torch.testing.assert_close(score, expected, rtol=1e-5, atol=1e-5)


def test_a_pixel_that_no_mask_claims_keeps_its_score():
    plan = plan_windows((4, 4), (4, 4))
    logits = torch.full((2, 4, 4), -1.0)
    logits[1, :2] = 3
    regions = claimed_regions([logits], plan, (4, 4), 8)
    assert regions.tolist() == [[2] * 4] * 2 + [[0] * 4] * 2
    score = torch.rand(4, 4)
    assert torch.equal(pool_over_regions(score, regions, 1.0)[2:], score[2:])


def test_pooling_is_off_by_default_and_set_by_its_key(tiny_cfg):
    assert EoMT(tiny_cfg()).mask_pooling == 0
    model = EoMT(tiny_cfg("TEST.ANOMALY.MASK_POOLING", 0.5, "TEST.FLIP", True))
    assert model.mask_pooling == 0.5 and model.flip
    with pytest.raises(ValueError, match="MASK_POOLING is 1.5.*from 0 to 1"):
        EoMT(tiny_cfg("TEST.ANOMALY.MASK_POOLING", 1.5))
