"""Pictures of scores."""

import numpy as np
import pytest

from anoseg_d2.modeling.scores import SCORES
from anoseg_d2.prediction.detections import find_detections
from anoseg_d2.prediction.pictures import (
    MARK_COLOR,
    SCORE_RANGES,
    add_color_bar,
    display_range,
    draw_detections,
    glow,
)
from anoseg_d2.utils.visualization import heat_map


def scene(height=60, width=80):
    """Gray photo and a score of 0 with a block of 0.8."""
    score = np.zeros((height, width), np.float32)
    score[30:40, 20:50] = 0.8
    return np.full((height, width, 3), 90, np.uint8), score


def test_the_photograph_shines_through_where_nothing_is_anomalous():
    photo, score = scene()
    picture = glow(photo, score, 0.0, 1.0)
    assert (picture[score == 0] == photo[score == 0]).all()
    assert (picture[score > 0] != photo[score > 0]).any(axis=-1).all()


def test_natural_ranges_do_not_depend_on_the_image():
    assert set(SCORE_RANGES) <= set(SCORES)
    assert display_range("anomaly", np.float32([5, 9])) == (0.0, 1.0)
    low, high = display_range("max_logit", np.arange(1001, dtype=np.float32))
    assert (low, high) == pytest.approx((5, 995))


@pytest.mark.parametrize("size", [(64, 64), (40, 200), (300, 65), (30, 2000)], ids=str)
def test_a_heat_map_keeps_its_pixels_and_gains_a_scale(size):
    score = np.random.default_rng(0).random(size).astype(np.float32)
    picture = add_color_bar(score, 0.0, 1.0, "rba", 0.5)
    assert (picture[: size[0]] == heat_map(score, 0.0, 1.0)).all()
    assert picture.shape[0] > size[0] and picture.shape[1] == size[1]
    bar = picture[size[0] :]
    assert (bar == heat_map(np.zeros((1, 1)), 0, 1)[0, 0]).all(-1).any(), "its dark end"
    assert (bar == heat_map(np.ones((1, 1)), 0, 1)[0, 0]).all(-1).any(), "its bright end"
    text = bar[bar.shape[0] // 2 :]
    assert (text > 200).all(-1)[:, : size[1] // 2].any(), "a number on the left"
    assert (text > 200).all(-1)[:, size[1] // 2 :].any(), "a number on the right"


def test_the_bar_is_as_high_for_all_frames_of_a_video():
    heights = {add_color_bar(s, 0, 1, "rba").shape for s in (np.zeros((9, 70)), np.ones((9, 70)))}
    assert len(heights) == 1


def test_contours_run_along_the_component_and_boxes_around_it():
    photo, score = scene()
    drawn = draw_detections(photo, find_detections(score, 0.5))
    marked = (drawn == MARK_COLOR).all(-1)
    assert marked[30, 20:50].all() and marked[39, 20:50].all() and marked[30:40, 49].all()
    assert (drawn[33:37, 24:46] == photo[33:37, 24:46]).all(), "the object itself can be seen"
    assert (photo == 90).all()


@pytest.mark.parametrize("place", [(0, 0), (0, 70), (50, 0), (50, 70)], ids=str)
def test_labels_stay_inside_of_the_image(place):
    photo, score = scene()
    score[:] = 0
    score[place[0] : place[0] + 10, place[1] : place[1] + 10] = 1
    drawn = draw_detections(photo, find_detections(score, 0.5))
    assert (drawn == MARK_COLOR).all(-1).sum() > 60
