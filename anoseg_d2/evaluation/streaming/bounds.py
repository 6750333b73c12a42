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


def pixels_needed(rate: float, positives: int) -> int:
    """Return the smallest count c >= 1 with c / positives >= rate, as float64 divides."""
    # The product may be rounded to the wrong side of an integer.
    guess = int(np.ceil(rate * positives))
    return next(c for c in range(max(1, guess - 2), guess + 3) if c / positives >= rate)


class CurveSummary:
    """Adds up segments, from the highest threshold down, to bounds of every figure.

    Args:
        positives, negatives: anomaly and known pixels of the whole dataset.
        rates: the true-positive rates to look for.
    """

    def __init__(self, positives: int, negatives: int, rates: tuple[float, ...]):
        self.positives, self.negatives = positives, negatives
        self.needs = {rate: pixels_needed(rate, positives) for rate in rates}
        self._auprc = np.zeros(2)
        # Of tied steps: terms whose sum is theirs to the last bit, however the segments were cut.
        self._tied_auprc: list[float] = []
        self._auroc = np.zeros(2)
        self._f1 = [0.0, 0.0]
        self.best_f1_key: int | None = None
        # {rate: least and greatest fpr, and the key, where it is reached}
        self.at_rate: dict[float, tuple[float, float, int]] = {}

    def add(self, segment: Segment) -> None:
        """Add the next segment, of at least one point."""
        self._add_auprc(segment)
        self._add_auroc(segment)
        self._add_f1(segment)
        for rate, pixels in self.needs.items():
            if segment.start[0] < pixels <= segment.end[0]:
                at = int(np.searchsorted(segment.tp, pixels))
                # A tied step is taken whole; within another one, the threshold may be anywhere.
                fps = segment.fp if segment.tied[at] else segment.before()[1]
                ends = fps[at] / self.negatives, segment.fp[at] / self.negatives
                self.at_rate[rate] = (*map(float, ends), int(segment.keys[at]))

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

    def bounds(self) -> dict[str, tuple[float, float]]:
        """Return the bounds of `auprc`, `auroc` and `best_f1`."""
        area = self.positives * self.negatives
        return {
            "auprc": tuple((self._auprc + math.fsum(self._tied_auprc)) / self.positives),
            "auroc": tuple(self._auroc / area),
            "best_f1": tuple(self._f1),
        }
