"""The resize by matrices is PyTorch's resize of uint8 images."""

import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from anoseg_d2.export.fixed_resize import FixedResize, fixed_point_weights

in_fixed_point = pytest.mark.skipif(
    not TF._geometry._do_native_uint8_resize_on_cpu(TF.InterpolationMode.BILINEAR),
    reason="torchvision resizes in floats on this CPU",
)


@in_fixed_point
@pytest.mark.parametrize(
    "source, target",
    [
        ((50, 90), (32, 58)),
        ((37, 53), (111, 64)),
        ((64, 48), (43, 32)),
        ((100, 100), (100, 37)),
        ((240, 360), (120, 180)),
    ],
)
def test_equals_torchvision_to_the_last_bit(source, target):
    noise = torch.randint(256, (2, 3, *source), dtype=torch.uint8)
    noise[1] = (noise[1] > 127) * 255  # overshoots nothing, but meets both ends of the range
    resized = FixedResize(source, target)(noise.float())
    assert torch.equal(resized, TF.resize(noise, list(target), antialias=True).float())


@in_fixed_point
def test_a_strong_reduction_is_off_by_one_level_in_single_pixels():
    noise = torch.randint(256, (1, 3, 1080, 1920), dtype=torch.uint8)
    expected = TF.resize(noise, [160, 284], antialias=True).float()
    distance = (FixedResize((1080, 1920), (160, 284))(noise.float()) - expected).abs()
    assert distance.max() <= 1
    assert (distance > 0).float().mean() < 1e-4


@pytest.mark.parametrize("source, target", [(7, 7), (90, 58), (53, 64), (1000, 10)])
def test_weights_of_a_pixel_sum_to_one(source, target):
    weights = fixed_point_weights(source, target)
    assert weights.shape == (source, target)
    torch.testing.assert_close(weights.sum(0), torch.ones(target), atol=1e-3, rtol=0)


def test_the_same_size_is_unchanged():
    image = torch.rand(1, 3, 20, 30) * 255
    assert FixedResize((20, 30), (20, 30))(image) is image
