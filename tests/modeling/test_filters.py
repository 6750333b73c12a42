"""Filters of score maps: equal to their definitions, and to what models and exports apply."""

import numpy as np
import pytest
import torch
from tiny_models import set_inference
from torch.nn import functional as F

from anoseg_d2.export.graph import ExportModel
from anoseg_d2.export.spec import ExportSpec
from anoseg_d2.modeling import EoMT
from anoseg_d2.modeling.filters import PLAIN, GuidedFilter


def by_definition(image, score, radius):
    """He et al.: a ridge regression of score on colour in every window; pixels take the mean."""
    colors, score = image.double().numpy() / 255, score.double().numpy()
    height, width = score.shape
    slopes, offsets = np.empty((height, width, 3)), np.empty((height, width))

    def window(y, x):
        return (
            slice(max(0, y - radius), min(height, y + radius + 1)),
            slice(max(0, x - radius), min(width, x + radius + 1)),
        )

    for y, x in np.ndindex(height, width):
        inside = window(y, x)
        seen = colors[(slice(None), *inside)].reshape(3, -1)
        spread = np.cov(seen, bias=True) + PLAIN * np.eye(3)
        both = ((seen - seen.mean(1, keepdims=True)) * score[inside].ravel()).mean(1)
        slopes[y, x] = np.linalg.solve(spread, both)
        offsets[y, x] = score[inside].mean() - slopes[y, x] @ seen.mean(1)
    result = np.empty((height, width))
    for y, x in np.ndindex(height, width):
        inside = window(y, x)
        slope = slopes[inside].reshape(-1, 3).mean(0)
        result[y, x] = slope @ colors[:, y, x] + offsets[inside].mean()
    return torch.from_numpy(result).float()


@pytest.mark.parametrize("size,radius", [((9, 14), 2), ((5, 4), 3), ((1, 8), 1), ((12, 3), 20)])
def test_every_pixel_equals_the_definition(size, radius):
    images = torch.randint(256, (2, 3, *size), dtype=torch.uint8)
    scores = torch.randn(2, *size)
    found = GuidedFilter(images, radius, step=1)(scores)
    for image, score, result in zip(images, scores, found, strict=True):
        torch.testing.assert_close(result, by_definition(image, score, radius), rtol=0, atol=1e-4)


def test_a_constant_stays_and_an_image_without_colour_is_no_division_by_zero():
    gray = torch.randint(256, (1, 1, 30, 40)).expand(1, 3, 30, 40)
    for images in (gray, torch.zeros(1, 3, 30, 40)):
        guide = GuidedFilter(images, 8)
        torch.testing.assert_close(
            guide(torch.full((1, 30, 40), 2.5)), torch.full((1, 30, 40), 2.5)
        )
        assert guide(torch.randn(1, 30, 40)).isfinite().all()


@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_soft_outline_moves_to_the_edge_of_the_photograph(step):
    image = torch.zeros(1, 3, 64, 64)
    image[..., 21:] = 200
    soft = (torch.arange(64.0) - 12).clamp(0, 16).div(16).expand(1, 64, 64)
    row = GuidedFilter(image, 8, step)(soft)[0, 32]
    assert row[21] - row[20] > 4 / 16  # the ramp rises by 1 / 16 for each pixel
    assert row[19] - row[16] < 2 / 16  # and is flatter where nothing changes in the photograph


def test_the_model_filters_every_score_with_a_radius_in_patches(tiny_eomt, tiny_cfg):
    model = tiny_eomt(has_anomaly=True).eval()
    # 40 x 70 pixels are resized to 32 x 56: a patch of 16 pixels covers 20 of the photograph's.
    sample = {"image": torch.randint(256, (3, 40, 70), dtype=torch.uint8)}
    plain = model([sample])[0]
    set_inference(model, guided_filter=0.75)
    found = model([sample])[0]
    guide = GuidedFilter(sample["image"][None], 15.0)
    for name, score in plain["scores"].items():
        torch.testing.assert_close(found["scores"][name], guide(score[None])[0], msg=name)
    assert torch.equal(found["sem_seg"], plain["sem_seg"])
    # A larger output has the same radius relative to the image, whatever the scale.
    set_inference(model, scales=(2.0,))
    larger = model([sample | {"height": 80, "width": 140}])[0]
    set_inference(model, guided_filter=0.0)
    unfiltered = model([sample | {"height": 80, "width": 140}])[0]
    image = F.interpolate(sample["image"][None].float(), size=(80, 140), mode="bilinear")
    expected = GuidedFilter(image, 30.0)(unfiltered["scores"]["rba"][None])[0]
    torch.testing.assert_close(larger["scores"]["rba"], expected, rtol=0, atol=0.02)
    assert EoMT(tiny_cfg()).inference.guided_filter == 0
    assert EoMT(tiny_cfg("TEST.ANOMALY.GUIDED_FILTER", 0.5)).inference.guided_filter == 0.5


def test_an_exported_model_filters_as_the_model_does(tiny_eomt):
    model = tiny_eomt(has_anomaly=True, guided_filter=0.5).eval()
    images = torch.randint(256, (2, 3, 40, 70), dtype=torch.uint8)
    exported = ExportModel(model, ExportSpec(("rba", "anomaly"), batch=2, image_size=(40, 70)))
    _, *found = exported(images)
    for index, image in enumerate(images):
        expected = model([{"image": image}])[0]["scores"]
        torch.testing.assert_close(found[0][index], expected["rba"], rtol=0, atol=1e-4)
        torch.testing.assert_close(found[1][index], expected["anomaly"], rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="GUIDED_FILTER.*0.5.*depends"):
        ExportModel(model, ExportSpec(("rba",), any_size=True))
