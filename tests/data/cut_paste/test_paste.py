"""Pasting: what changes, what must not, and that every draw is repeatable."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pasting_scenes import FRAME, PAPER, disc, scene
from scipy import ndimage

from anoseg_d2.data.cut_paste import PasteObject, paste_objects


def place_alone(item, image, label, seed=0, **changes):
    image, label, (record,) = paste_objects(
        image, label, [item], np.random.default_rng(seed), PAPER, **changes
    )
    return image, label, record


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sides=st.lists(st.integers(3, 150), min_size=1, max_size=4),
    height=st.integers(90, 220),
    width=st.integers(90, 220),
    placement=st.sampled_from(["uniform", "road"]),
    size=st.sampled_from(["native", "perspective"]),
    opaque_core=st.booleans(),
)
def test_pastes_conserve_what_lies_outside(
    seed, sides, height, width, placement, size, opaque_core
):
    image, label = scene(seed, (height, width))
    before = image.copy(), label.copy()
    options = dataclasses.replace(PAPER, placement=placement, size=size, opaque_core=opaque_core)
    objects = [disc(side) for side in sides]
    out, out_label, records = paste_objects(
        image, label, objects, np.random.default_rng(seed), options
    )
    assert (image == before[0]).all() and (label == before[1]).all()
    assert out.dtype == np.uint8 and out_label.dtype == label.dtype
    reach, masks = np.zeros(label.shape, bool), np.zeros(label.shape, bool)
    for record in (r for r in records if r["dropped"] is None):
        x0, y0, x1, y1 = record["box"]
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        pad = int(np.ceil(4 * record["sigma"]))
        reach[max(y0 - pad, 0) : y1 + pad, max(x0 - pad, 0) : x1 + pad] = True
        masks[y0:y1, x0:x1] = True
    pasted = out_label == 254
    assert (out[~reach] == image[~reach]).all()
    assert not (pasted & ~masks).any()
    assert (out_label[~pasted] == label[~pasted]).all()
    assert sum(r["visible_pixels"] for r in records) == pasted.sum()
    assert all((r["visible_pixels"] > 0) == (r["dropped"] is None) for r in records)


@pytest.mark.parametrize("seed", range(4))
def test_alpha_is_the_blurred_mask_and_label_the_nearest_mask(seed):
    """Against numpy and scipy: index arithmetic for the resize, a gaussian filter for the alpha."""
    image, label = scene(seed)
    item = disc(90, colour=(10, 20, 250))
    out, out_label, record = place_alone(item, image, label, seed)
    x0, y0, x1, y1 = record["box"]
    rows, columns = ((np.arange(n) * 180 + 90) // (2 * n) for n in (y1 - y0, x1 - x0))
    mask = np.zeros(FRAME)
    mask[y0:y1, x0:x1] = item.mask[np.ix_(rows, columns)]
    assert ((out_label == 254) == (mask > 0)).all()
    assert record["sigma"] == pytest.approx(min(5, 0.1 * np.sqrt(mask.sum())))
    alpha = ndimage.gaussian_filter(np.pad(mask, 40), record["sigma"], truncate=4)[40:-40, 40:-40]
    expected = image * (1 - alpha[..., None]) + np.array([10, 20, 250]) * alpha[..., None]
    assert np.abs(out - expected).max() < 0.52  # rounding, and the kernels' tails


def test_the_photographs_background_leaves_no_halo():
    image, label = np.full((*FRAME, 3), 20, np.uint8), np.full(FRAME, 7, np.uint8)
    for seed in range(5):
        out, *_ = place_alone(disc(150, colour=(220, 20, 20)), image, label, seed)
        assert out[..., 1].max() == 20  # no green of the photograph, in the object or around it


def test_a_sloppy_outline_takes_colours_from_inside():
    item = disc(120)
    core = ndimage.binary_erosion(item.mask, iterations=2)
    item.image[item.mask & ~core] = (0, 255, 0)
    image, label = np.full((*FRAME, 3), 20, np.uint8), np.full(FRAME, 7, np.uint8)
    clean, *_ = place_alone(item, image, label)
    sloppy, *_ = place_alone(item, image, label, rim=0)
    assert sloppy[..., 1].max() > 90
    assert clean[..., 1].max() < 45


def test_a_thin_object_keeps_its_own_colours():
    bar = np.zeros((60, 60), bool)
    bar[28:31] = True
    photo = np.full((60, 60, 3), (0, 255, 0), np.uint8)
    photo[bar] = (200, 30, 30)
    image, label = np.full((*FRAME, 3), 20, np.uint8), np.full(FRAME, 7, np.uint8)
    options = {"min_side": 3, "scale": (1, 1), "feather": (0, 0)}
    out, out_label, _ = place_alone(PasteObject(photo, bar), image, label, **options)
    assert np.abs(out[out_label == 254].astype(int) - [200, 30, 30]).max() <= 1


def test_the_feather_is_not_cut_at_the_box():
    """On a flat frame the alpha falls off smoothly, beyond the box too."""
    image, label = np.zeros((400, 400, 3), np.uint8), np.full((400, 400), 7, np.uint8)
    square = PasteObject(np.full((100, 100, 3), 255, np.uint8), np.ones((100, 100), bool))
    options = {"scale": (1, 1), "max_fraction": 0.25}
    out, _, record = place_alone(square, image, label, seed=2, **options)
    x0, y0, x1, y1 = record["box"]
    assert record["sigma"] == 5 and x0 > 30
    profile = out[(y0 + y1) // 2, x0 - 25 : x0 + 25, 0].astype(int)
    assert profile[24] < 128 <= profile[25] and profile[14] > 0 and profile[4] == 0
    assert np.diff(profile).max() <= 255 * 0.4 / 5 + 1.5


def test_opaque_core_is_the_object_itself():
    image, label = scene()
    options = {"scale": (1, 1), "feather": (5, 1)}
    out, out_label, _ = place_alone(disc(70), image, label, opaque_core=True, **options)
    soft, *_ = place_alone(disc(70), image, label, **options)
    core = ndimage.binary_erosion(out_label == 254, iterations=8)
    assert (out[core] == [200, 30, 30]).all()
    band = (out_label == 254) & ~ndimage.binary_erosion(out_label == 254, iterations=4)
    assert (out[band] == soft[band]).mean() > 0.9  # the feather stays


@pytest.mark.parametrize("shape", [(200, 300), (1024, 2048), (60, 400)])
@pytest.mark.parametrize("item", [(20, 20), (400, 90), (50, 300)])
def test_sizes_keep_both_limits_and_the_aspect(shape, item):
    image, label = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8)
    box = PasteObject(np.zeros((*item, 3), np.uint8), np.ones(item, bool))
    for seed in range(10):
        *_, record = place_alone(box, image, label, seed)
        if record["dropped"]:
            # the least side wanted does not fit under the upper limit
            least = min(32, int(0.2 * min(shape)))
            assert least / min(item) > min(0.4 * shape[0] / item[0], 0.4 * shape[1] / item[1])
            continue
        x0, y0, x1, y1 = record["box"]
        height, width = y1 - y0, x1 - x0
        assert height <= 0.4 * shape[0] and width <= 0.4 * shape[1]
        assert min(height, width) >= min(32, int(0.2 * min(shape)))
        assert abs(height - item[0] * record["scale"]) <= 1
        assert abs(width - item[1] * record["scale"]) <= 1


def test_native_scale_is_uniform_where_no_limit_binds():
    image, label = np.zeros((400, 400, 3), np.uint8), np.zeros((400, 400), np.uint8)
    scales = [place_alone(disc(80), image, label, seed)[2]["scale"] for seed in range(60)]
    assert 0.5 <= min(scales) < 0.6 and 1.4 < max(scales) <= 1.5
    assert abs(np.mean(scales) - 1) < 0.1


def test_later_objects_lie_over_earlier_ones():
    image, label = scene()
    label[:] = 7
    options = {"scale": (1, 1), "feather": (0, 0), "rim": 0}
    for seed in range(8):
        objects = [disc(78, (255, 0, 0), 26), disc(78, (0, 0, 255))]
        out, out_label, (first, second) = paste_objects(
            image, label, objects, np.random.default_rng(seed), PAPER, **options
        )
        assert second["visible_pixels"] == objects[1].mask.sum()
        assert first["visible_pixels"] == (out_label == 26).sum() > 0
        assert (out[out_label == 254] == [0, 0, 255]).all()
        assert (out[out_label == 26] == [255, 0, 0]).all()


def test_a_covered_object_is_drawn_anew():
    """A large square covers most of the frame; without redraws a small one often vanishes."""
    image, label = scene(shape=(60, 60))
    small = PasteObject(np.zeros((6, 6, 3), np.uint8), np.ones((6, 6), bool))
    large = PasteObject(np.zeros((50, 50, 3), np.uint8), np.ones((50, 50), bool))
    options = {"scale": (1, 1), "max_fraction": 1.0, "min_side": 1}
    dropped = {0: 0, 20: 0}
    for seed in range(30):
        for redraws in dropped:
            _, _, records = paste_objects(
                image, label, [small, large], np.random.default_rng(seed), PAPER,
                max_redraws=redraws, **options,
            )  # fmt: skip
            dropped[redraws] += records[0]["dropped"] is not None
            assert records[1]["dropped"] is None
    assert dropped[0] >= 5 and dropped[20] == 0


def test_an_object_without_any_place_is_reported_and_not_pasted():
    image, label = scene()
    label[:] = 11  # no ground anywhere
    out, out_label, record = place_alone(disc(50), image, label, placement="road")
    assert "no size and place" in record["dropped"] and record["visible_pixels"] == 0
    assert record["box"] is None and (out == image).all() and (out_label == label).all()


def test_a_replacement_comes_from_redraw():
    image, label = scene()
    thin = PasteObject(np.zeros((4, 400, 3), np.uint8), np.ones((4, 400), bool))
    other = dataclasses.replace(disc(60), source={"name": "other"})
    _, _, (record,) = paste_objects(
        image, label, [thin], np.random.default_rng(0), PAPER, redraw=lambda generator, old: other
    )
    assert record["name"] == "other" and record["dropped"] is None


@pytest.mark.parametrize("size", ["native", "perspective"])
def test_road_placement_stands_on_ground(size):
    image, label = scene()
    label[:] = 11
    label[150:, 60:200] = 7
    label[120:130, 20:30] = 8
    for seed in range(25):
        _, out_label, record = place_alone(
            disc(60), image, label, seed, placement="road", size=size
        )
        x0, _, x1, y1 = record["box"]
        bottom = np.flatnonzero(out_label[y1 - 1] == 254)
        assert label[y1 - 1, int(np.median(bottom))] in (7, 8)


def test_perspective_objects_shrink_towards_the_horizon():
    shape = (512, 1024)
    image, label = np.zeros((*shape, 3), np.uint8), np.full(shape, 11, np.uint8)
    label[200:] = 7
    sides, nearness = [], []
    for seed in range(80):
        _, _, record = place_alone(
            disc(100), image, label, seed, placement="road", size="perspective"
        )
        x0, y0, x1, y1 = record["box"]
        sides.append(max(x1 - x0, y1 - y0))
        nearness.append((y1 - 1 - 200) / 311)
    sides, nearness = np.array(sides), np.array(nearness)
    assert 0.03 * 512 < np.median(sides) < 0.05 * 512
    free = sides > 8  # the least side binds at the horizon
    exact = 0.08 * 512 * nearness[free]
    assert (sides[free] >= 0.5 * exact - 1).all() and (sides[free] <= 1.5 * exact + 1).all()


def test_one_generator_state_one_result():
    image, label = scene()
    objects = [disc(60), disc(90)]
    results = [
        paste_objects(image, label, objects, np.random.default_rng(5), PAPER) for _ in range(2)
    ]
    assert (results[0][0] == results[1][0]).all() and results[0][2] == results[1][2]
    other = paste_objects(image, label, objects, np.random.default_rng(6), PAPER)
    assert (results[0][0] != other[0]).any()


def test_pairs_and_mappings_are_objects_too():
    image, label = scene()
    item = disc(60)
    results = [
        paste_objects(image, label, [form], np.random.default_rng(0), PAPER)[0]
        for form in (item, (item.image, item.mask), {"image": item.image, "mask": item.mask})
    ]
    assert (results[0] == results[1]).all() and (results[0] == results[2]).all()


def test_anomaly_value_in_train_ids():
    image, label = scene()
    _, out_label, record = place_alone(
        disc(60), image, label.astype(np.int64) % 19, anomaly_value=19
    )
    assert (out_label == 19).sum() == record["visible_pixels"] and record["label"] == 19


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 1.5}, "ratio is 1.5"),
        ({"count": (3, 1)}, "count"),
        ({"scale": (0, 1)}, "scale"),
        ({"placement": "sky"}, "placement is 'sky'.*one of"),
        ({"max_fraction": 0}, "max_fraction"),
        ({"anomaly_value": 300}, "uint8 cannot hold 300"),
    ],
)
def test_wrong_options_are_named(changes, message):
    image, label = scene()
    with pytest.raises(ValueError, match=message):
        paste_objects(image, label, [], np.random.default_rng(0), PAPER, **changes)


def test_wrong_arrays_are_named():
    image, label = scene()
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="mask is empty"):
        paste_objects(image, label, [(disc(9).image, np.zeros((9, 9)))], generator)
    with pytest.raises(ValueError, match=r"\(9, 9, 3\) uint8 and \(8, 9\)"):
        paste_objects(image, label, [(disc(9).image, np.ones((8, 9)))], generator)
    with pytest.raises(ValueError, match="label must be integers"):
        paste_objects(image, label[1:], [], generator)
    with pytest.raises(ValueError, match="uint8, found"):
        paste_objects(image / 255, label, [], generator)


def test_without_a_feather_nothing_changes_outside_the_mask():
    image, label = scene()
    for seed in range(6):
        out, out_label, record = place_alone(disc(60), image, label, seed, feather=(0.0, 0.0))
        pasted = out_label == 254
        assert record["visible_pixels"] == pasted.sum() > 0 and record["sigma"] == 0
        assert (out[~pasted] == image[~pasted]).all() and (out[pasted] != image[pasted]).any()


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(1, 12), st.integers(1, 12)), st.integers(0, 99), st.booleans())
def test_tiny_frames_are_pasted_into_or_left(shape, seed, perspective):
    image, label = scene(seed, shape)
    options = {"size": "perspective" if perspective else "native"}
    out, out_label, _ = place_alone(disc(30), image, label, seed, **options)
    assert out.shape == image.shape and out_label.shape == shape
