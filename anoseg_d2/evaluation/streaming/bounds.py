"""Bound every figure from exact counts at points of the curves.

Walking down the thresholds, a *segment* holds a stretch of both curves: the true and false
positives down to each of its points. The step to a point is *tied* when all its pixels share one
score, so that no threshold lies between; otherwise the order of its pixels is unknown, and the
figures take the best and the worst. scikit-learn's value on all pixels lies within the bounds, and
they are equal where every step is tied. Segments meet at counts that are known exactly, so their
contributions add up.
"""

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["CHUNK", "CurveSummary", "Need", "Segment", "pixels_needed"]

CHUNK = 1 << 18  # entries worked on at a time: it bounds the working memory


@dataclass
class Segment:
    """A stretch of the curves, thresholds descending.

    Args:
        start: (tp, fp) above the first point.
        keys: (N,) uint32 or uint64, the lowest score (as a key) counted at each point.
        tp, fp: (N,) int64 pixels down to each point, non-decreasing.
        tied: (N,) bool, all pixels of the step have the same score; None: of every step.
    """

    start: tuple[int, int]
    keys: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    tied: np.ndarray | None = None

    @property
    def end(self) -> tuple[int, int]:
        """(tp, fp) at the last point."""
        return int(self.tp[-1]), int(self.fp[-1])

    def __post_init__(self):
        if self.tied is None:
            self.tied = np.ones(self.keys.size, bool)

    def before(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the counts one point earlier: tp and fp, (N,) int64."""
        tp, fp = self.start
        return np.concatenate(([tp], self.tp[:-1])), np.concatenate(([fp], self.fp[:-1]))


@dataclass(frozen=True)
class Need:
    """True positives at which a true-positive rate is reached."""

    rate: float
    pixels: int


def pixels_needed(rate: float, positives: int) -> Need:
    """Return the smallest count that is at least `rate` of the positives, in float64."""
    count = max(1, int(np.ceil(rate * positives)))
    # The product may be rounded to the wrong side of an integer.
    while count > 1 and (count - 1) / positives >= rate:
        count -= 1
    while count / positives < rate:
        count += 1
    return Need(rate, count)


class CurveSummary:
    """Adds up segments, from the highest threshold down, to bounds of every figure.

    Args:
        positives, negatives: anomaly and known pixels of the whole dataset.
        needs: the true-positive rates to look for.
    """

    def __init__(self, positives: int, negatives: int, needs: list[Need]):
        self.positives, self.negatives, self.needs = positives, negatives, needs
        self._auprc = np.zeros(2)
        # Of tied steps: terms whose sum is theirs to the last bit, however the segments were cut.
        self._tied_auprc: list[float] = []
        self._auroc = np.zeros(2)
        self._f1 = [0.0, 0.0]
        self.best_f1_key: int | None = None
        self._points: dict[Need, dict] = {}

    def add(self, segment: Segment) -> None:
        """Add the next segment."""
        if segment.keys.size == 0:
            return
        self._add_auprc(segment)
        self._add_auroc(segment)
        self._add_f1(segment)
        for need in self.needs:
            if segment.start[0] < need.pixels <= segment.end[0]:
                self._points[need] = self._crossing(segment, need.pixels)

    def _add_auprc(self, s: Segment) -> None:
        """Add (step in tp) * precision at each point."""
        tp_before, fp_before = s.before()
        risen = s.tp > tp_before  # recall steps nowhere else
        tp, fp, step = s.tp[risen], s.fp[risen], (s.tp - tp_before)[risen]
        tied, precision = s.tied[risen], tp / (tp + fp)
        terms = [*self._tied_auprc, *(step * precision)[tied].tolist()]
        total = math.fsum(terms)
        self._tied_auprc = [total, math.fsum([*terms, -total])]  # and what it was rounded by
        # Elsewhere at best the anomalies of a step come first, at worst last. Then precision is
        # concave in their rank, hence on average at least the mean of its ends.
        first = tp_before[risen] + 1
        lowest, highest = (first / (first + fp) + precision) / 2, tp / (tp + fp_before[risen])
        self._auprc += [(step * bound)[~tied].sum() for bound in (lowest, highest)]

    def _add_auroc(self, s: Segment) -> None:
        """Add the area between neighbouring points: trapezoids where tied, else bounding steps."""
        tp_before, fp_before = s.before()
        for side, untied in enumerate((tp_before, s.tp)):
            height = np.where(s.tied, (s.tp + tp_before) / 2, untied)
            self._auroc[side] += ((s.fp - fp_before) * height).sum()

    def _add_f1(self, s: Segment) -> None:
        sure = self._f1_of(s.tp, s.fp)  # every point is a threshold
        best = int(np.argmax(sure))
        if sure[best] > self._f1[0]:
            self._f1[0], self.best_f1_key = float(sure[best]), int(s.keys[best])
        highest = self._f1_of(s.tp, np.where(s.tied, s.fp, s.before()[1]))
        self._f1[1] = max(self._f1[1], float(highest.max()))

    def _f1_of(self, tp, fp) -> np.ndarray:
        return 2 * tp / (self.positives + tp + fp)

    def _crossing(self, s: Segment, pixels: int) -> dict:
        """Bound tp and fp at the first threshold with enough true positives."""
        at = int(np.searchsorted(s.tp, pixels))
        tp, fp = int(s.tp[at]), int(s.fp[at])
        # A tied step is taken whole; within another one, the threshold may be anywhere.
        lowest = (tp, fp) if s.tied[at] else (pixels, int(s.before()[1][at]))
        return {"tp": (lowest[0], tp), "fp": (lowest[1], fp), "key": int(s.keys[at])}

    def bounds(self) -> dict[str, tuple[float, float]]:
        """Return the bounds of `auprc`, `auroc` and `best_f1`."""
        area = self.positives * self.negatives
        return {
            "auprc": tuple((self._auprc + math.fsum(self._tied_auprc)) / self.positives),
            "auroc": tuple(self._auroc / area),
            "best_f1": tuple(self._f1),
        }

    def at(self, need: Need) -> dict:
        """Return bounds of `fpr` and `precision`, and the key, where a rate is reached."""
        point = self._points[need]
        (tp_low, tp_high), (fp_low, fp_high) = point["tp"], point["fp"]
        return {
            "fpr": (fp_low / self.negatives, fp_high / self.negatives),
            "precision": (tp_low / (tp_low + fp_high), tp_high / (tp_high + fp_low)),
            "key": point["key"],
        }
