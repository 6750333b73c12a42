"""Compute bounds of every figure from curve points that are themselves known up to bounds.

Walking down the thresholds, a *segment* holds a stretch of both curves as points with

    tp_low <= true positives at this threshold <= tp_high      (and so for false positives).

The step to a point is *tied* when all its pixels share one score, so that no threshold lies
between; otherwise the order of its pixels is unknown, and the figures take the best and the worst.
Every bound below follows from the monotony of a figure in these counts; scikit-learn's value on
all pixels lies within. Segments begin and end at points that are known exactly, so their
contributions add up.
"""

import math
from dataclasses import dataclass

import numpy as np

__all__ = [
    "CHUNK",
    "Cells",
    "CurveSummary",
    "Need",
    "Plan",
    "Segment",
    "exact_segment",
    "pixels_needed",
]

CHUNK = 1 << 18  # entries worked on at a time: it bounds the working memory
_AP_GAP = 2e-5  # width of the bounds that may stay unresolved


@dataclass
class Segment:
    """A stretch of the curves, thresholds descending.

    Args:
        start: exact (tp, fp) above the first point.
        keys: (N,) uint32 or uint64, the lowest score (as a key) counted at each point.
        tp_low, tp_high, fp_low, fp_high: (N,) int64, non-decreasing.
        tied: (N,) bool.
    """

    start: tuple[int, int]
    keys: np.ndarray
    tp_low: np.ndarray
    tp_high: np.ndarray
    fp_low: np.ndarray
    fp_high: np.ndarray
    tied: np.ndarray

    @property
    def end(self) -> tuple[int, int]:
        return int(self.tp_low[-1]), int(self.fp_low[-1])

    @property
    def exact(self) -> bool:
        """Whether the counts are exact."""
        same = self.tp_low is self.tp_high and self.fp_low is self.fp_high
        return same and bool(self.tied.all())

    def before(self, name: str) -> np.ndarray:
        """Return the named counts one point earlier, (N,)."""
        values = getattr(self, name)
        first = self.start[0] if name.startswith("tp") else self.start[1]
        return np.concatenate(([first], values[:-1]))


def exact_segment(keys, anomalous, known, tp: int, fp: int) -> Segment:
    """Return a segment of exact counts, from keys (N,) descending and counts (N,) of each."""
    tps, fps = tp + np.cumsum(anomalous), fp + np.cumsum(known)
    return Segment((tp, fp), keys, tps, tps, fps, fps, np.ones(keys.size, bool))


@dataclass
class Cells:
    """Ranges of neighbouring scores with exact counts, descending.

    Args:
        start: (tp, fp) above the first cell.
        keys: (N,) uint32, lowest key of each cell.
        tp, fp: (N,) int64, counts down to the end of each cell.
        foreign: (N, 2) int64, known and anomaly pixels of other cells that share the counters
            through which this one can be resolved.
    """

    start: tuple[int, int]
    keys: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    foreign: np.ndarray | None = None

    @classmethod
    def from_counts(cls, keys, anomalous, known, tp: int, fp: int) -> "Cells":
        return cls((tp, fp), keys, tp + np.cumsum(anomalous), fp + np.cumsum(known))

    @property
    def size(self) -> int:
        return self.keys.size

    @property
    def end(self) -> tuple[int, int]:
        return (int(self.tp[-1]), int(self.fp[-1])) if self.size else self.start

    def before(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the counts above each cell: tp and fp, (N,) int64."""
        return (
            np.concatenate(([self.start[0]], self.tp[:-1])),
            np.concatenate(([self.start[1]], self.fp[:-1])),
        )

    def part(self, start: int, end: int) -> "Cells":
        above = self.start if start == 0 else (int(self.tp[start - 1]), int(self.fp[start - 1]))
        piece = slice(start, end)
        return Cells(above, self.keys[piece], self.tp[piece], self.fp[piece], self.foreign[piece])

    def resolvable(self) -> np.ndarray:
        """Return which cells have more own than foreign pixels in their counters, (N,) bool."""
        tp, fp = self.before()
        return (self.foreign[:, 0] < self.fp - fp) | (self.foreign[:, 1] < self.tp - tp)

    def coarse_segment(self) -> Segment:
        tied = np.zeros(self.size, bool)
        return Segment(self.start, self.keys, self.tp, self.tp, self.fp, self.fp, tied)

    def resolved_segment(self, chosen, offsets, held) -> Segment:
        """Split chosen cells into their keys.

        Args:
            chosen: (N,) bool.
            offsets: (W,) offsets of the keys in a cell, descending.
            held: (chosen, W, 2) int64, known and anomaly pixels at each key, foreign ones included.
        """
        tp, fp = self.before()
        bounds = {}
        for name, label, start, end in (("tp", 1, tp, self.tp), ("fp", 0, fp, self.fp)):
            start, own = start[chosen, None], (end - start)[chosen, None]
            seen = np.cumsum(held[:, :, label], axis=1)
            foreign = seen[:, -1:] - own  # pixels of other cells, at unknown keys of this one
            bounds[name + "_low"] = start + np.maximum(seen - foreign, 0)
            bounds[name + "_high"] = start + np.minimum(seen, own)  # as if foreign ones came last
        occupied = (held[:, :, 0] | held[:, :, 1]) > 0
        rank = np.arange(self.size) * np.int64(offsets.size + 1)  # room for a cell's keys
        inner = rank[chosen, None] + np.arange(offsets.size)
        order = np.argsort(np.concatenate((rank[~chosen], inner[occupied])), kind="stable")

        def woven(coarse, fine):
            return np.concatenate((coarse[~chosen], fine[occupied]))[order]

        keys = self.keys[chosen, None] + offsets.astype(np.uint32)
        exact = {"tp_low": self.tp, "tp_high": self.tp, "fp_low": self.fp, "fp_high": self.fp}
        return Segment(
            self.start,
            woven(self.keys, keys),
            tied=woven(np.zeros(self.size, bool), np.ones(keys.shape, bool)),
            **{name: woven(exact[name], bounds[name]) for name in exact},
        )


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


def _ratio(part, rest):
    """Return part / (part + rest), 0 where both are 0."""
    total = part + rest
    return np.divide(part, total, out=np.zeros(total.shape), where=total > 0)


def _f1(tp, fp, positives: int):
    return 2 * tp / (positives + tp + fp)


class Plan:
    """Chooses the cells that are worth resolving, after one look at all of them.

    The widths that cells add to the bounds of AUPRC and AUROC are tallied by magnitude; the
    smallest ones, which together stay under 2e-5, are left. A cell in which a wanted
    true-positive rate is reached is always resolved, and one that may hold the best F1.
    """

    def __init__(self, groups, positives: int, negatives: int, needs: list[Need]):
        self.positives, self.negatives = positives, negatives
        self.needs = [need.pixels for need in needs]
        self.best_f1 = 0.0
        tally = np.zeros(64)
        for cells in groups:
            gap = self._gap(cells)
            weights = gap * cells.resolvable()
            tally += np.bincount(self._magnitude(gap), weights=weights, minlength=64)
            if cells.size:
                self.best_f1 = max(self.best_f1, _f1(cells.tp, cells.fp, positives).max())
        small = np.cumsum(tally[::-1])[::-1] <= _AP_GAP  # from each magnitude to the least
        self.least = int(np.argmax(small)) if small.any() else 64

    @staticmethod
    def _magnitude(gap: np.ndarray) -> np.ndarray:
        """Return 0 for widths about 1, 1 for about 1/2, ... 63 for the smallest."""
        return np.where(gap > 0, np.clip(-np.frexp(gap)[1], 0, 63), 63)

    def _gap(self, cells: Cells) -> np.ndarray:
        tp, fp = cells.before()
        anomalous, known = cells.tp - tp, cells.fp - fp
        precision = _ratio(cells.tp, fp) - _ratio(tp + 1, cells.fp)
        precision = anomalous / self.positives * precision
        return np.maximum(precision, anomalous / self.positives * (known / self.negatives))

    def __call__(self, cells: Cells) -> np.ndarray:
        """Return which cells of a group to resolve, (N,) bool."""
        tp, fp = cells.before()
        mixed = (cells.fp > fp) & (cells.tp > tp)
        chosen = mixed & (_f1(cells.tp, fp, self.positives) > self.best_f1 + 1e-6)
        chosen |= self._magnitude(self._gap(cells)) < self.least
        for pixels in self.needs:
            chosen |= (tp < pixels) & (pixels <= cells.tp)
        return chosen & cells.resolvable()


class CurveSummary:
    """Adds up segments, from the highest threshold down, to bounds of every figure."""

    def __init__(self, positives: int, negatives: int, needs: list[Need]):
        self.positives, self.negatives, self.needs = positives, negatives, needs
        self._auprc = np.zeros(2)
        # Of exact segments: terms whose sum is theirs to the last bit, however they were cut.
        self._exact_auprc: list[float] = []
        self._auroc = np.zeros(2)
        self._f1 = [0.0, 0.0]
        self._f1_key = None
        self._points = {}

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
        """Add (step in tp) * precision; where tp is uncertain, Abel's summation bounds it."""
        before = s.before("tp_low")
        spread, step = s.tp_high - s.tp_low, s.tp_low - before
        if s.exact:
            risen = step > 0
            tp, fp = s.tp_low[risen], s.fp_low[risen]
            terms = [*self._exact_auprc, *(step[risen] * (tp / (tp + fp))).tolist()]
            total = math.fsum(terms)
            self._exact_auprc = [total, math.fsum([*terms, -total])]
            return
        high = _ratio(s.tp_high, np.where(s.tied, s.fp_low, s.before("fp_low")))
        # not tied: precision over the anomalies of a cell, after all its known pixels, is concave
        # in their rank, hence on average at least the mean of its ends
        first = _ratio(before + 1, s.fp_high)
        last = _ratio(before + np.maximum(1, s.tp_low - s.before("tp_high")), s.fp_high)
        low = np.where(s.tied, _ratio(np.maximum(s.tp_low, 1), s.fp_high), (first + last) / 2)
        rise = np.diff(high, append=high[-1])
        self._auprc[1] += (step * high).sum() + (spread * np.maximum(-rise, 0)).sum()
        rise = np.diff(low, append=low[-1])
        self._auprc[0] += (step * low).sum() - (spread * np.maximum(rise, 0)).sum()

    def _add_auroc(self, s: Segment) -> None:
        """Add the area between neighbouring points: trapezoids where tied, else bounding steps."""
        for side, (tp, fp) in enumerate((("tp_low", "fp_high"), ("tp_high", "fp_low"))):
            above, below = s.before(tp), getattr(s, tp)
            untied = above if side == 0 else below
            height = np.where(s.tied, (above + below) / 2, untied)
            self._auroc[side] += ((getattr(s, fp) - s.before(fp)) * height).sum()

    def _add_f1(self, s: Segment) -> None:
        sure = _f1(s.tp_low, s.fp_high, self.positives)
        best = int(np.argmax(sure))
        if sure[best] > self._f1[0]:
            self._f1[0], self._f1_key = float(sure[best]), int(s.keys[best])
        fp = np.where(s.tied, s.fp_low, s.before("fp_low"))
        self._f1[1] = max(self._f1[1], float(_f1(s.tp_high, fp, self.positives).max()))

    def _crossing(self, s: Segment, pixels: int) -> dict:
        """Keep bounds of tp and fp at the first threshold with enough true positives."""
        first = int(np.searchsorted(s.tp_high, pixels))
        last = int(np.searchsorted(s.tp_low, pixels))
        fp = s.fp_low if s.tied[first] else s.before("fp_low")
        # a tied step is taken whole
        tp = max(pixels, int(s.tp_low[first])) if s.tied[first] else pixels
        return {
            "tp": (tp, int(s.tp_high[last])),
            "fp": (int(fp[first]), int(s.fp_high[last])),
            "key": int(s.keys[last]),
        }

    def bounds(self) -> dict[str, tuple[float, float]]:
        """Return the bounds of `auprc`, `auroc` and `best_f1`."""
        area = self.positives * self.negatives
        return {
            "auprc": tuple((self._auprc + math.fsum(self._exact_auprc)) / self.positives),
            "auroc": tuple(self._auroc / area),
            "best_f1": tuple(self._f1),
        }

    @property
    def best_f1_key(self) -> int:
        return self._f1_key

    def at(self, need: Need) -> dict:
        """Return bounds of `fpr` and `precision`, and the key, where a rate is reached."""
        point = self._points[need]
        (tp_low, tp_high), (fp_low, fp_high) = point["tp"], point["fp"]
        return {
            "fpr": (fp_low / self.negatives, fp_high / self.negatives),
            "precision": (tp_low / (tp_low + fp_high), tp_high / (tp_high + fp_low)),
            "key": point["key"],
        }
