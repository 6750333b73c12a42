"""Strips of output rows give what whole maps give, in bounded memory."""

import pytest
import torch
from tiny_models import merge_windows
from torch.nn import functional as F

from anoseg_d2.modeling import inference
from anoseg_d2.modeling.scores import (
    combine_masks,
    known_distribution,
    linear_coefficients,
    scores_from_maps,
)
from anoseg_d2.modeling.strips import STRIP_ELEMENTS
from anoseg_d2.modeling.windows import cut_windows, plan_windows


@torch.no_grad()
def slow_twin(model, sample, names):
    """Scores, segmentation and confidence of one image: whole maps, every query, plain torch."""
    image = sample["image"]
    size = (sample.get("height", image.shape[1]), sample.get("width", image.shape[2]))
    views = []
    for scale in model.inference.scales:
        options = model.inference.window_overlap, model.inference.flip, scale
        taper = model.inference.window_taper
        plan = plan_windows(tuple(image.shape[-2:]), model.image_size, *options, taper)
        mask_logits, class_logits = model.predict_masks(cut_windows(image, plan))[-1]
        enlarged = F.interpolate(mask_logits, size=plan.window, mode="bilinear")
        enlarged[plan.flipped] = enlarged[plan.flipped].flip(-1)
        maps = {}
        coefficients = linear_coefficients(class_logits, model.num_known, names)
        for name, value in coefficients.items():
            merged = merge_windows(combine_masks(value, enlarged), plan)
            maps[name] = F.interpolate(merged[None], size=size, mode="bilinear")
        views.append(maps)
    known = torch.stack([view["probs"] for view in views]).mean(dim=0)[:, : model.num_known]
    found = [scores_from_maps(view, model.num_known, names) for view in views]
    return {
        "scores": {name: torch.cat([f[name] for f in found]).mean(dim=0) for name in names},
        "sem_seg": known.argmax(dim=1)[0],
        "confidence": known_distribution(known).max(dim=1).values[0],
    }


SIZES = [
    *(((32, 32), None), ((40, 100), None), ((32, 50), (71, 33)), ((100, 37), None)),
    *(((1, 1), None), ((2, 8), None), ((8, 2), None), ((300, 500), (20, 30))),
]


@pytest.mark.slow
@pytest.mark.parametrize("strip", [2**20, 3000])
@pytest.mark.parametrize(
    "options",
    [
        *({}, {"window_overlap": 0.3}, {"window_overlap": 0.3, "window_taper": True}),
        *({"flip": True}, {"scales": (1.0, 1.5, 2.3)}, {"scales": (2.0,)}),
    ],
    ids=str,
)
@pytest.mark.parametrize("size,output", SIZES, ids=str)
def test_strips_equal_whole_maps_of_every_query(
    tiny_eomt, monkeypatch, size, output, options, strip
):
    monkeypatch.setattr("anoseg_d2.modeling.strips.STRIP_ELEMENTS", strip)
    model = tiny_eomt(has_anomaly=True, **options).eval()
    sample = {"image": torch.randint(256, (3, *size), dtype=torch.uint8)}
    if output:
        sample |= {"height": output[0], "width": output[1]}
    found, expected = model([sample])[0], slow_twin(model, sample, model.score_names)
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(found["confidence"], expected["confidence"], rtol=0, atol=1e-5)
    assert (found["sem_seg"] != expected["sem_seg"]).float().mean() < 1e-3


@pytest.mark.parametrize("size", [(2160, 3840), (3840, 2160), (512, 4096)], ids=str)
def test_large_images_are_read_in_strips_of_bounded_size(tiny_eomt, monkeypatch, size):
    model = tiny_eomt(scores=("rba",)).eval()
    strips = []

    def read_scores(model, maps, names):
        strips.append(tuple(maps["probs"].shape[1:]))
        return {"rba": maps["probs"][:, 0]}

    monkeypatch.setattr(inference, "read_scores", read_scores)
    output = model([{"image": torch.zeros(3, *size, dtype=torch.uint8)}])[0]
    assert output["scores"]["rba"].shape == output["sem_seg"].shape == size
    assert sum(rows for _, rows, _ in strips) == size[0]
    assert max(maps * rows * width for maps, rows, width in strips) <= STRIP_ELEMENTS
