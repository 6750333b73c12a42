"""Images of any size are cut into windows, and maps are merged again."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import merge_windows
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from anoseg_d2.modeling.windows import (
    cut_windows,
    plan_windows,
    resize_pixels,
    resize_rows,
)


@pytest.mark.parametrize(
    "image,window,resized,origins",
    [
        ((1024, 2048), (1024, 1024), (1024, 2048), [(0, 0), (0, 1024)]),
        ((1080, 1920), (1024, 1024), (1024, 1820), [(0, 0), (0, 796)]),
        ((2048, 1024), (1024, 1024), (2048, 1024), [(0, 0), (1024, 0)]),
        ((1920, 1080), (1024, 1024), (1820, 1024), [(0, 0), (796, 0)]),
        ((512, 1024), (1024, 1024), (1024, 2048), [(0, 0), (0, 1024)]),
        ((720, 1280), (640, 640), (640, 1138), [(0, 0), (0, 498)]),
        ((360, 480), (352, 352), (352, 469), [(0, 0), (0, 117)]),
        ((300, 1500), (100, 100), (100, 500), [(0, 0), (0, 100), (0, 200), (0, 300), (0, 400)]),
        ((64, 64), (64, 64), (64, 64), [(0, 0)]),
        ((1024, 2048), (512, 1024), (512, 1024), [(0, 0)]),
        ((1024, 2048), (512, 512), (512, 1024), [(0, 0), (0, 512)]),
    ],
)
def test_plan_by_hand(image, window, resized, origins):
    plan = plan_windows(image, window)
    assert plan.resized == resized
    assert plan.window == window
    assert plan.origins == origins


@pytest.mark.parametrize(
    "overlap,starts",
    [
        (0.0, [0, 1024]),
        (0.1, [0, 512, 1024]),
        (0.25, [0, 512, 1024]),
        (0.5, [0, 512, 1024]),
        (0.75, [0, 256, 512, 768, 1024]),
    ],
)
def test_overlap_adds_windows_until_neighbours_share_enough(overlap, starts):
    plan = plan_windows((1024, 2048), (1024, 1024), overlap)
    assert [x for _, x in plan.origins] == starts


def test_a_larger_scale_spreads_windows_along_both_sides():
    plan = plan_windows((512, 1024), (512, 512), scale=2.0)
    assert plan.resized == (1024, 2048)
    assert plan.origins == [(y, x) for y in (0, 512) for x in (0, 512, 1024, 1536)]
    assert plan_windows((512, 1024), (512, 512), scale=1.5).resized == (768, 1536)


sizes = st.integers(20, 400)


@given(height=sizes, width=sizes, crop=st.sampled_from([(32, 32), (32, 64), (48, 32)]))
@settings(max_examples=60, deadline=None)
def test_windows_cover_the_image_stay_inside_and_are_as_few_as_can_be(height, width, crop):
    plan = plan_windows((height, width), crop)
    assert any(side == size for side, size in zip(plan.resized, crop, strict=True))
    covered = torch.zeros(plan.resized, dtype=torch.bool)
    for y, x in plan.origins:
        assert 0 <= y <= plan.resized[0] - crop[0] and 0 <= x <= plan.resized[1] - crop[1]
        covered[y : y + crop[0], x : x + crop[1]] = True
    assert covered.all()
    assert len(plan.origins) == math.ceil(max(plan.resized[0] / crop[0], plan.resized[1] / crop[1]))
    assert abs(plan.resized[0] / plan.resized[1] / (height / width) - 1) < 0.6 / min(plan.resized)


@given(width=st.integers(33, 400), overlap=st.floats(0, 0.8))
@settings(max_examples=60, deadline=None)
def test_neighbours_overlap_by_at_least_what_was_asked(width, overlap):
    plan = plan_windows((32, width), (32, 32), overlap)
    starts = [x for _, x in plan.origins]
    if len(starts) > 1:
        # starts are whole pixels, so a pair may fall short by less than one
        assert max(b - a for a, b in zip(starts, starts[1:], strict=False)) < 32 * (1 - overlap) + 1


def test_tapered_windows_count_for_most_in_their_middle_and_leave_no_step():
    plan = plan_windows((4, 6), (4, 4), taper=True)
    assert plan.origins == [(0, 0), (0, 2)]
    for weights in plan.weights:
        assert weights.tolist() == [0.25, 0.75, 0.75, 0.25]
    maps = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    assert merge_windows(maps, plan)[0].tolist() == [[0, 0, 0.25, 0.75, 1, 1]] * 4
    even = plan_windows((4, 6), (4, 4))
    assert merge_windows(maps, even)[0].tolist() == [[0, 0, 0.5, 0.5, 1, 1]] * 4


def test_windows_are_cut_where_the_plan_says():
    image = torch.arange(3 * 32 * 64, dtype=torch.int64).view(3, 32, 64).to(torch.uint8)
    plan = plan_windows((32, 64), (32, 32), 0.5)
    crops = cut_windows(image, plan)
    assert crops.shape == (3, 3, 32, 32) and crops.dtype == torch.uint8
    for crop, (y, x) in zip(crops, plan.origins, strict=True):
        assert torch.equal(crop, image[:, y : y + 32, x : x + 32])


def test_images_are_resized_as_uint8_bilinear_and_antialiased():
    image = torch.randint(256, (3, 64, 200), dtype=torch.uint8)
    plan = plan_windows((64, 200), (32, 32))
    expected = TF.resize(image, [32, 100], antialias=True)
    found = merge_windows(cut_windows(image, plan).float(), plan)
    torch.testing.assert_close(found, expected.float())
    flat = torch.zeros(3, 64, 200, dtype=torch.uint8)
    flat[:, :, ::2] = 200  # stripes finer than the target vanish only with antialiasing
    assert cut_windows(flat, plan)[..., 4:-4].float().std() < 10


@given(
    source=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    target=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    rows=st.integers(1, 7),
)
@settings(max_examples=60, deadline=None)
def test_rows_in_strips_equal_interpolation_of_the_whole(source, target, rows):
    maps = torch.randn(2, *source, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(maps[None], size=target, mode="bilinear", align_corners=False)[0]
    strips = [
        resize_rows(maps, target, start, min(start + rows, target[0]))
        for start in range(0, target[0], rows)
    ]
    torch.testing.assert_close(torch.cat(strips, dim=1), expected, rtol=1e-5, atol=1e-5)


@given(
    channels=st.integers(1, 3),
    source=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    target=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    rows=st.integers(1, 7),
)
@settings(max_examples=60, deadline=None)
def test_channels_may_be_the_last_axis(channels, source, target, rows):
    maps = torch.randn(channels, *source, generator=torch.Generator().manual_seed(0))
    for start in range(0, target[0], rows):
        stop = min(start + rows, target[0])
        found = resize_pixels(maps.permute(1, 2, 0).contiguous(), target, start, stop)
        expected = resize_rows(maps, target, start, stop).permute(1, 2, 0)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_equal_sizes_are_left_as_they_are():
    maps = torch.randn(3, 5, 7)
    assert torch.equal(resize_rows(maps, (5, 7), 0, 5), maps)
    assert torch.equal(resize_pixels(maps.permute(1, 2, 0), (5, 7), 0, 5).permute(2, 0, 1), maps)


def test_an_image_that_would_take_thousands_of_windows_is_refused_with_its_size():
    with pytest.raises(ValueError, match="1x5000.*elongated.*1024x5120000"):
        plan_windows((1, 5000), (1024, 1024))
    assert len(plan_windows((1, 5000), (32, 32)).origins) == 5000  # small windows suffice


def test_an_empty_image_is_refused():
    with pytest.raises(ValueError, match="0x10 pixels is empty"):
        plan_windows((0, 10), (32, 32))


def test_strips_of_a_strip_equal_strips_of_the_whole():
    maps = torch.randn(2, 40, 9)
    whole = resize_rows(maps, (100, 20), 30, 50)
    part = resize_rows(maps[:, 10:25], (100, 20), 30, 50, source=(10, 40))
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-6)
