from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as reference

from anoseg_d2.data import augmentation
from anoseg_d2.data.augmentation import Augmentation, fit_scale, jitter_colors, pad, resize

CELL = 12


def coordinate_coded(height, width):
    """An image whose red and green tell x and y, and a label that tells the cell of each pixel."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x, y, np.full_like(x, 200)], axis=2).astype(np.uint8)
    return image, cell_of(x, y)


def cell_of(x, y):
    return ((y // CELL * 16 + x // CELL) % 250).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(40, 190),
    st.integers(40, 190),
    st.sampled_from([(48, 48), (64, 96), (96, 64)]),
)
def test_image_and_label_move_together(seed, height, width, crop_size):
    image, label = coordinate_coded(height, width)
    chain = Augmentation(crop_size, color_jitter=False)
    new_image, new_label = chain(image, label, np.random.default_rng(seed))
    assert new_image.shape == (*crop_size, 3) and new_label.shape == crop_size
    x, y, marker = (new_image[..., i].astype(float) for i in range(3))
    inside = marker == 200
    assert np.array_equal(inside, new_label != 255)  # padding is padding in both
    # a label pixel lies at most half an output pixel and one grey level from what its colour says
    slack = 1.5 + 0.5 / (0.5 * fit_scale((height, width), crop_size))
    near = [
        cell_of(
            np.clip(x + dx, 0, width - 1).astype(int), np.clip(y + dy, 0, height - 1).astype(int)
        )
        for dx in (-slack, 0, slack)
        for dy in (-slack, 0, slack)
    ]
    agrees = np.any([n == new_label for n in near], axis=0)
    assert agrees[inside].all()


def test_labels_are_never_mixed():
    _, label = coordinate_coded(100, 120)
    label = np.where(label % 2, 7, 31).astype(np.uint8)
    image = np.zeros((100, 120, 3), np.uint8)
    for seed in range(20):
        _, new = Augmentation((64, 64))(image, label, np.random.default_rng(seed))
        assert set(np.unique(new)) <= {7, 31, 255}


def test_same_generator_state_gives_the_same_pair():
    image, label = coordinate_coded(90, 120)
    chain = Augmentation((64, 64))
    first, again, other = (chain(image, label, np.random.default_rng(s)) for s in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_the_order_is_colours_scale_flip_padding_crop(monkeypatch):
    seen = []
    for name in ("jitter_colors", "resize", "flip", "pad", "crop"):
        original = getattr(augmentation, name)
        monkeypatch.setattr(
            augmentation, name, lambda *a, f=original, n=name: (seen.append(n), f(*a))[1]
        )
    image, label = coordinate_coded(90, 120)
    for seed in range(10):
        Augmentation((64, 64))(image, label, np.random.default_rng(seed))
    runs = " ".join(seen).replace("flip ", "").split("crop")
    assert {run.strip() for run in runs} == {"jitter_colors resize pad", ""}
    assert 1 <= seen.count("flip") <= 9
    assert all(seen[i - 1] == "resize" for i, name in enumerate(seen) if name == "flip")


def test_scale_factor_is_on_the_scale_that_fits_the_image_inside_the_crop(monkeypatch):
    assert fit_scale((1024, 2048), (1024, 1024)) == 0.5
    scales = []
    monkeypatch.setattr(
        augmentation, "resize", lambda i, la, scale: (scales.append(scale), (i, la))[1]
    )
    image, label = np.zeros((32, 64, 3), np.uint8), np.zeros((32, 64), np.uint8)
    generator = np.random.default_rng(0)
    for _ in range(400):
        Augmentation((32, 32), color_jitter=False)(image, label, generator)
    assert 0.25 <= min(scales) < 0.26 and 0.99 < max(scales) <= 1.0  # 0.25..1.0 of native size
    assert abs(np.mean(scales) - 0.625) < 0.03  # uniform


def test_padding_is_at_the_right_and_the_bottom_black_and_void():
    image, label = np.full((2, 3, 3), 9, np.uint8), np.full((2, 3), 4, np.uint8)
    new_image, new_label = pad(image, label, (3, 5))
    assert new_label.tolist() == [[4, 4, 4, 255, 255]] * 2 + [[255] * 5]
    assert np.array_equal(new_image[..., 0], np.where(new_label == 4, 9, 0))
    same_image, same_label = pad(image, label, (1, 1))
    assert same_image.shape == (2, 3, 3) and same_label.shape == (2, 3)


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    small, _ = resize(stripes, np.zeros((64, 64), np.uint8), 0.25)
    assert np.abs(small[2:-2, 2:-2].astype(int) - 100).max() <= 6


@pytest.fixture
def crops(monkeypatch):
    """Labels of all crops that were drawn, also of those that were drawn anew."""
    drawn = []
    original = augmentation.crop

    def recorded(*arguments):
        drawn.append(original(*arguments))
        return drawn[-1]

    monkeypatch.setattr(augmentation, "crop", recorded)
    return drawn


def test_a_crop_without_label_is_drawn_anew_at_most_ten_times(crops):
    image, label = np.zeros((64, 64, 3), np.uint8), np.full((64, 64), 255, np.uint8)
    _, new = Augmentation((16, 16))(image, label, np.random.default_rng(0))
    assert len(crops) == 11 and (new == 255).all()
    crops.clear()
    label[:] = 3
    Augmentation((16, 16))(image, label, np.random.default_rng(0))
    assert len(crops) == 1


def test_a_redraw_finds_the_label(crops):
    label = np.full((100, 100), 255, np.uint8)
    label[:, 60:] = 3
    image = np.zeros((100, 100, 3), np.uint8)
    chain = Augmentation((32, 32), scale_jitter=(2.0, 2.0))
    found, first = [], []
    for seed in range(100):
        crops.clear()
        found.append((chain(image, label, np.random.default_rng(seed))[1] != 255).any())
        first.append((crops[0][1] != 255).any())
    assert all(found) and not all(first)


@pytest.fixture
def photo():
    generator = np.random.default_rng(5)
    small = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return np.kron(small, np.ones((4, 4, 1), dtype=np.uint8))


@pytest.mark.parametrize(
    "ours, theirs, factors, tolerance",
    [
        ("scale_brightness", reference.adjust_brightness, (0.88, 1.1), 1),
        ("scale_contrast", reference.adjust_contrast, (0.5, 1.37), 1),
        ("scale_saturation", reference.adjust_saturation, (0.5, 1.5), 1),
        ("rotate_hue", reference.adjust_hue, (-18.0, 7.3), 2),
    ],
)
def test_colour_changes_equal_torchvisions(photo, ours, theirs, factors, tolerance):
    tensor = torch.from_numpy(photo.transpose(2, 0, 1).copy())
    for factor in factors:
        got = getattr(augmentation, ours)(photo, factor).astype(int)
        want = theirs(tensor, factor / 360 if ours == "rotate_hue" else factor)
        want = want.numpy().transpose(1, 2, 0).astype(int)
        assert np.abs(got - want).max() <= tolerance
        assert np.abs(got - photo).max() > 10


def test_each_colour_change_comes_in_half_of_the_draws_with_contrast_first_or_last(monkeypatch):
    seen, drawn = [], Counter()
    limits = {
        "scale_brightness": (1 - 32 / 255, 1 + 32 / 255),
        "scale_contrast": (0.5, 1.5),
        "scale_saturation": (0.5, 1.5),
        "rotate_hue": (-18, 18),
    }
    extremes = {name: [] for name in limits}
    for name in limits:

        def spy(image, factor, name=name):
            seen.append(name)
            extremes[name].append(factor)
            return image

        monkeypatch.setattr(augmentation, name, spy)
    generator, orders, together = np.random.default_rng(0), Counter(), 0
    image = np.zeros((1, 1, 3), np.uint8)
    for _ in range(2000):
        seen.clear()
        jitter_colors(image, generator)
        drawn.update(seen)
        if {"scale_contrast", "rotate_hue"} <= set(seen):
            together += 1
            orders["first"] += seen.index("scale_contrast") < seen.index("rotate_hue")
        assert "scale_brightness" not in seen[1:]
        if {"scale_saturation", "rotate_hue"} <= set(seen):
            assert seen.index("scale_saturation") < seen.index("rotate_hue")
    assert all(abs(drawn[name] / 2000 - 0.5) < 0.05 for name in limits)
    assert abs(orders["first"] / together - 0.5) < 0.08
    for name, (low, high) in limits.items():
        span = high - low
        assert low <= min(extremes[name]) < low + span / 50
        assert high - span / 50 < max(extremes[name]) <= high


def test_hue_keeps_greys_and_comes_back(photo):
    grey = np.full((4, 4, 3), 77, np.uint8)
    assert np.array_equal(augmentation.rotate_hue(grey, 15), grey)
    there_and_back = augmentation.rotate_hue(augmentation.rotate_hue(photo, 12.0), -12.0)
    assert np.abs(there_and_back.astype(int) - photo).max() <= 6


@pytest.mark.parametrize(
    "options, key",
    [
        ({"scale_jitter": (2.0, 0.5)}, "scale_jitter"),
        ({"crop_size": (0, 8)}, "crop_size"),
    ],
)
def test_impossible_settings_are_named(options, key):
    with pytest.raises(ValueError, match=key):
        Augmentation(**{"crop_size": (8, 8), **options})
