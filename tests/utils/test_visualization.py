"""Colours, overlays and thumbnails."""

import numpy as np
import pytest

from anoseg_d2.utils import visualization as vis


def brightness(colors):
    return colors.astype(int).sum(axis=-1)


def test_the_ends_of_the_scale_are_the_ends_of_the_bar():
    bar = vis.color_bar(256, 2)
    ends = vis.heat_map(np.array([[-3.0, 7.0]]), -3.0, 7.0)
    assert (ends[0, 0] == bar[0, 0]).all() and (ends[0, 1] == bar[0, -1]).all()


def test_equal_scores_get_equal_colours_in_any_map():
    first = vis.heat_map(np.array([[0.2, 0.9]]), 0.0, 1.0)
    second = vis.heat_map(np.array([[0.5, 0.2]]), 0.0, 1.0)
    assert (first[0, 0] == second[0, 1]).all()


def test_more_anomalous_is_brighter():
    colors = vis.heat_map(np.linspace(0, 1, 64)[None], 0.0, 1.0)
    steps = np.diff(brightness(colors)[0])
    assert (steps > 0).mean() > 0.9 and brightness(colors)[0, -1] > brightness(colors)[0, 0]


def test_infinities_take_the_ends_and_nan_is_refused():
    colors = vis.heat_map(np.array([[-np.inf, np.inf]]), 0.0, 1.0)
    assert (colors == vis.heat_map(np.array([[0.0, 1.0]]), 0.0, 1.0)).all()
    with pytest.raises(ValueError, match="NaN"):
        vis.heat_map(np.array([[np.nan]]), 0.0, 1.0)


def test_a_scale_out_of_order_is_refused():
    with pytest.raises(ValueError, match="lowest < highest"):
        vis.heat_map(np.zeros((1, 1)), 1.0, 1.0)


@pytest.mark.parametrize(
    "samples",
    [[], [np.full(9, 4.0)], [np.array([np.inf, -np.inf])], [np.r_[np.zeros(999), 5.0]]],
    ids=["none", "constant", "infinite", "saturated"],
)
def test_a_score_range_is_always_usable(samples):
    lowest, highest = vis.score_range(samples)
    assert np.isfinite([lowest, highest]).all() and lowest < highest


def test_a_saturated_score_keeps_a_colour_for_its_few_others():
    assert vis.score_range([np.r_[np.zeros(999), 5.0]]) == (0.0, 5.0)


def test_palette_keeps_given_colours_and_blackens_void():
    palette = vis.class_palette(2, [(1, 2, 3), (4, 5, 6)])
    colors = vis.color_classes(np.array([[0, 1, 255]]), palette)
    assert colors[0].tolist() == [[1, 2, 3], [4, 5, 6], [0, 0, 0]]


def test_palette_goes_on_with_colours_of_its_own():
    palette = vis.class_palette(40)
    assert palette[:19].tolist() == [list(c) for c in vis.CITYSCAPES_COLORS]
    assert len({tuple(c) for c in palette[:40].tolist()}) == 40
    with pytest.raises(ValueError, match="256"):
        vis.class_palette(256)


def test_anomaly_labels_have_three_colours():
    colors = vis.anomaly_palette()[np.array([[0, 1, 255]], np.uint8)]
    assert [tuple(c) for c in colors[0].tolist()] == list(vis.ANOMALY_COLORS.values())


def test_overlay_mixes_by_weight():
    image, colors = np.zeros((1, 2, 3), np.uint8), np.full((1, 2, 3), 200, np.uint8)
    assert (vis.overlay(image, colors, 0.25) == 50).all()
    mixed = vis.overlay(image, colors, np.array([[0.0, 1.0]]))
    assert mixed[0, 0].tolist() == [0, 0, 0] and mixed[0, 1].tolist() == [200, 200, 200]
    with pytest.raises(ValueError, match="differ in size"):
        vis.overlay(image, colors[:, :1])


def test_thumbnails_keep_the_aspect_and_never_grow():
    assert vis.fit_long_side(1024, 2048, 480) == (240, 480)
    assert vis.fit_long_side(20, 10, 480) == (20, 10)
    assert vis.fit_long_side(1, 4000, 400) == (1, 400)


def test_a_tiny_anomaly_survives_the_shrinking_of_its_label():
    label = np.zeros((100, 100), np.uint8)
    label[51, 37] = 1
    assert (vis.resize_label(label, (10, 10), keep=1) == 1).sum() == 1


def test_shrinking_a_score_takes_means_and_bears_infinities():
    score = np.array([[0.0, 4.0], [np.inf, -np.inf]], np.float32)
    small = vis.resize_score(score, (2, 1))
    assert small[0, 0] == 2.0 and np.isfinite(small).all()
