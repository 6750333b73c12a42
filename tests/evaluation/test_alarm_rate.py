"""A threshold from normal images holds its rate: by hand, by identities, and by simulation."""

import cv2
import numpy as np
import pytest
from scipy.stats import beta, norm

from anoseg_d2.evaluation.alarm_rate import (
    alarm_level,
    alarm_threshold,
    block_levels,
    found_objects,
    to_unit,
    units_needed,
)
from anoseg_d2.prediction.detections import find_detections


@pytest.mark.parametrize("min_size", [1, 5, 60])
@pytest.mark.parametrize("levels", [4, 1000])
def test_the_level_is_the_last_threshold_with_a_component(min_size, levels):
    rng = np.random.default_rng(0)
    for _ in range(10):
        score = cv2.GaussianBlur(rng.random((30, 40)).astype(np.float32), (5, 5), 0)
        score = np.float32(np.round(score * levels) / levels)  # with ties
        level = alarm_level(score, min_size)
        assert find_detections(score, level, min_size)
        assert not find_detections(score, np.nextafter(np.float32(level), np.inf), min_size)


def test_levels_by_hand():
    score = np.float32([[9, 0, 0, 5], [0, 0, 0, 5], [3, 0, 0, 4]])
    assert [alarm_level(score, size) for size in (1, 2, 3, 4, 12)] == [9, 5, 4, 0, 0]
    assert alarm_level(score, 13) == -np.inf
    assert alarm_level(np.eye(3, dtype=np.float32), 3) == 1  # diagonal neighbours touch
    with pytest.raises(ValueError, match="NaN"):
        alarm_level(np.float32([[np.nan]]), 1)


@pytest.mark.parametrize(("count", "rate", "rank"), [(9, 0.1, 9), (99, 0.1, 90), (19, 0.05, 19)])
def test_the_threshold_is_just_above_the_rank_of_the_conformal_quantile(count, rate, rank):
    levels = np.random.default_rng(0).permutation(count).astype(np.float32)
    threshold = alarm_threshold(levels, rate)
    assert threshold == np.nextafter(np.float32(rank - 1), np.float32(np.inf))
    assert (levels >= threshold).sum() == count - rank


@pytest.mark.parametrize("confidence", [None, 0.9, 0.95])
@pytest.mark.parametrize("rate", [0.3, 0.1, 0.05, 0.01])
def test_one_unit_less_than_needed_is_refused_with_the_number(rate, confidence):
    needed = units_needed(rate, confidence)
    alarm_threshold(np.arange(needed), rate, confidence)
    with pytest.raises(ValueError, match=f"{needed - 1} .*too few.* {needed} are needed"):
        alarm_threshold(np.arange(needed - 1), rate, confidence)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("count", [60, 100, 500])
def test_the_confident_rank_is_the_first_whose_beta_tail_suffices(count, confidence):
    threshold = alarm_threshold(np.arange(count), 0.1, confidence)
    rank = int(np.floor(threshold)) + 1
    assert beta.sf(0.9, rank, count - rank + 1) >= confidence
    assert beta.sf(0.9, rank - 1, count - rank + 2) < confidence


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2])
def test_the_promise_holds_on_average_in_simulation(rate):
    rng = np.random.default_rng(7)
    draws = rng.normal(size=(2000, 100))
    fresh = rng.normal(size=20_000)
    mean = np.mean([(fresh >= alarm_threshold(d, rate)).mean() for d in draws])
    assert rate - 0.015 < mean < rate + 0.005


@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2])
def test_the_sure_form_holds_in_as_many_splits_as_it_says(rate, confidence):
    """Of all normal images, whose rate is known exactly, 100 are drawn 2000 times."""
    rng = np.random.default_rng(11)
    thresholds = [alarm_threshold(d, rate, confidence) for d in rng.normal(size=(2000, 100))]
    holds = norm.sf(thresholds) <= rate
    # The rank is an integer, so it holds a bit more often: 0.5 % is the error of 2000 draws.
    assert confidence - 0.005 <= holds.mean() < confidence + 0.1


def test_neighbouring_frames_break_the_promise_and_blocks_mend_it():
    """Frames that come in runs of 20 alike: their number says more than they know."""
    rng = np.random.default_rng(3)
    single, blocks = [], []
    for _ in range(1000):
        frames = np.repeat(rng.normal(size=30), 20) + 0.01 * rng.normal(size=600)
        fresh = rng.normal(size=500)
        single.append((fresh >= alarm_threshold(frames, 0.1, 0.9)).mean() <= 0.1)
        blocks.append((fresh >= alarm_threshold(block_levels(frames, 20), 0.1, 0.9)).mean() <= 0.1)
    assert np.mean(single) < 0.75 and np.mean(blocks) > 0.85


def test_an_object_is_found_where_an_alarm_touches_it():
    objects = np.zeros((6, 9), bool)
    objects[:2, :2] = objects[:2, 4:6] = objects[4:, 4:6] = True
    score = np.zeros((6, 9), np.float32)
    score[1, 1:4] = 1  # of three pixels, one on the first object
    score[0, 5] = score[5, 8] = 1  # one pixel on the second, one on none
    assert found_objects(score, objects, 1, 1) == (2, 3)
    assert found_objects(score, objects, 1, 3) == (1, 3)
    assert found_objects(score, objects, 2, 1) == (0, 3)
    assert found_objects(score, objects & False, 1, 1) == (0, 0)


def test_a_block_has_the_level_of_its_highest_frame():
    assert block_levels([1, 3, 2, 0, 5, 4, 9], 3).tolist() == [3, 5]
    assert block_levels([1, 2], 3).size == 0


def test_ties_raise_no_more_alarms_than_promised():
    levels = np.repeat([0.0, 1.0], [80, 19])
    assert (levels >= alarm_threshold(levels, 0.1)).sum() == 0


@pytest.mark.parametrize(("threshold", "median"), [(0.3, -0.9), (-0.2, 0.4), (50.0, 0.0)])
def test_the_unit_scale_keeps_order_and_decision(threshold, median):
    rng = np.random.default_rng(0)
    threshold = np.float32(threshold)
    near = threshold + np.float32(1e-7) * rng.integers(-20, 20, 500).astype(np.float32)
    score = np.sort(np.concatenate([near, rng.normal(0, 3, 500).astype(np.float32), [threshold]]))
    unit = to_unit(score.astype(np.float32), threshold, median)
    assert unit.dtype == np.float32 and unit.min() >= 0 and unit.max() <= 1
    assert (np.diff(unit) >= 0).all()
    assert ((unit >= 0.5) == (score >= threshold)).all()
    if median < threshold:
        assert to_unit(np.float32([median]), threshold, median)[0] == pytest.approx(0.05, abs=1e-6)
