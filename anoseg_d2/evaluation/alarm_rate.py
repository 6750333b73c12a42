"""Choose a threshold from normal images only, with a promise on the rate of false alarms.

An image raises an alarm at a threshold if a component of at least A pixels has score >= threshold.
The highest threshold at which it still does, its alarm level t, is one number per image, so n
normal images give n exchangeable numbers, and split conformal prediction (arXiv:2107.07511) a
threshold: for a further image like them, the chance of t above the k-th smallest of the n,
k = ceil((n + 1)(1 - alpha)), is at most alpha. The image is the unit, never the pixel. Frames of a
video resemble their neighbours and are not exchangeable; blocks of frames are, more or less.

Letters: n number of units, alpha rate of alarms, A pixels of a component. Needs no detectron2.
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
from scipy.special import expit
from scipy.stats import binom

# On the scale of 0..1, what the median normal pixel gets.
_NORMAL = 0.05
BELOW_HALF = np.nextafter(np.float32(0.5), np.float32(0))


def alarm_level(score: np.ndarray, min_size: int) -> float:
    """Return the highest threshold at which an image raises an alarm.

    Args:
        score: (H, W) floats, higher = more anomalous.
        min_size: A; an 8-connected component of fewer pixels is no alarm.
    Returns:
        the largest value t of the score with such a component in score >= t; -inf for an image of
        fewer than A pixels.
    Raises:
        ValueError: the score has NaN.
    """
    if np.isnan(score).any():
        raise ValueError("an alarm level needs a score without NaN")
    values = np.sort(score, axis=None)[::-1]
    # Components only grow as the threshold falls, so the first that is enough can be bisected.
    first, last = min_size - 1, values.size - 1
    if first > last:
        return -math.inf
    while first < last:
        middle = (first + last) // 2
        above = (score >= values[middle]).astype(np.uint8)
        areas = cv2.connectedComponentsWithStats(above, connectivity=8)[2][1:, cv2.CC_STAT_AREA]
        if areas.max() >= min_size:
            last = middle
        else:
            first = middle + 1
    return float(values[first])


def block_levels(levels, length: int) -> np.ndarray:
    """Return the alarm level of each whole block of consecutive frames: the highest of its frames.

    Args:
        levels: of the frames of one sequence, in order.
        length: frames of a block; those after the last whole block are left out.
    """
    whole = len(levels) // length * length
    return np.asarray(levels[:whole], dtype=float).reshape(-1, length).max(axis=1)


def alarm_threshold(levels, alarm_rate: float, confidence: float | None = None) -> float:
    """Return the threshold, for score >= threshold, that holds a rate of false alarms.

    Args:
        levels: (n,) alarm levels of exchangeable normal units.
        alarm_rate: alpha, 0 < alpha < 1.
        confidence: None: over all draws of the n units and of the next, the chance of an alarm is
            at most alpha. 1 - delta: with this probability over the draw of the n, the rate on all
            further ones is (the k-th smallest of n uniform numbers is at least 1 - alpha with the
            probability of at most k - 1 successes of n at 1 - alpha).
    Returns:
        the float32 just above the k-th smallest level.
    Raises:
        ValueError: there are too few units; says how many are needed.
    """
    count = len(levels)
    # As a fraction, because (n + 1)(1 - alpha) must not be rounded up to the next integer.
    rank = math.ceil((count + 1) * (1 - Fraction(str(alarm_rate))))
    if confidence is not None:
        rank = 1 + int(binom.ppf(confidence, count, 1 - alarm_rate))
    if rank > count:
        raise ValueError(
            f"{count} normal units are too few for an alarm rate of {alarm_rate:g}: "
            f"{units_needed(alarm_rate, confidence)} are needed"
        )
    return float(np.nextafter(np.float32(np.sort(levels)[rank - 1]), np.float32(np.inf)))


def units_needed(alarm_rate: float, confidence: float | None = None) -> int:
    """Return the least n for which `alarm_threshold` has an answer."""
    if confidence is None:
        return math.ceil(1 / Fraction(str(alarm_rate)) - 1)
    return math.ceil(math.log(1 - confidence) / math.log1p(-alarm_rate))


def found_objects(
    score: np.ndarray, anomaly: np.ndarray, threshold: float, min_size: int
) -> tuple[int, int]:
    """Count the objects, 8-connected components of `anomaly` (H, W) bool, that an alarm touches.

    Returns:
        their number, and that of all objects.
    """
    above = (score >= threshold).astype(np.uint8)
    _, ids, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    is_alarm = stats[:, cv2.CC_STAT_AREA] >= min_size
    is_alarm[0] = False  # everything below the threshold
    count, objects = cv2.connectedComponents(anomaly.astype(np.uint8), connectivity=8)
    return int((np.unique(objects[is_alarm[ids]]) > 0).sum()), count - 1


def describe_alarm(record: Mapping[str, Any]) -> str:
    """Return what a stored threshold promises, in words.

    Args:
        record: with `alarm_rate`, `confidence` or None, `count` (n), `block` (frames of a unit, 1
            for single images) and `min_size` (A).
    """
    unit = "image" if record["block"] == 1 else f"block of {record['block']} frames"
    sure = f", with confidence {record['confidence']:g}" if record["confidence"] else ""
    return (
        f"at most {100 * record['alarm_rate']:g} % of new normal {unit}s raise an alarm{sure} "
        f"(found on {record['count']}; an alarm has at least {record['min_size']} pixels)"
    )


def unit_steepness(threshold: float, median: float) -> float:
    """Return the factor on score - threshold in the logistic function of `to_unit`."""
    return math.log(1 / _NORMAL - 1) / (threshold - median) if median < threshold else 1.0


def to_unit(score: np.ndarray, threshold: float, median: float) -> np.ndarray:
    """Put a score on the scale of 0..1, with the threshold at 0.5; the order stays.

    Args:
        score: floats of any shape.
        threshold: of `alarm_threshold`.
        median: score of the median normal pixel, which becomes 0.05; where it is not below the
            threshold, one unit of the score is one of the logistic function.
    Returns:
        float32 of the same shape: logistic in the score. It is at least 0.5 exactly where
        score >= threshold.
    """
    score, threshold = np.asarray(score), np.float32(threshold)
    difference = score.astype(np.float64) - float(threshold)
    unit = expit(difference * unit_steepness(float(threshold), median)).astype(np.float32)
    # Rounding must not decide about a pixel that is just below the threshold.
    above, below = np.maximum(unit, np.float32(0.5)), np.minimum(unit, BELOW_HALF)
    return np.where(score >= threshold, above, below)
