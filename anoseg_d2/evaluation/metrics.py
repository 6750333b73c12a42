"""Compute AUPRC, FPR95, AUROC and best F1 over all pixels of a dataset.

`PixelMetrics` takes at most 128 MB however many images. It keeps the scores of up to ten million
labelled pixels, and is exact for them: any order and any split over images, processes and machines
gives bit-identical figures. Beyond, it counts ranges of scores. Every figure comes with bounds that
contain the value scikit-learn would give on all pixels together; `exact=True` keeps the scores of
all pixels in memory, however many, and closes the bounds.

    metrics = PixelMetrics()
    for scores, labels in dataset:
        metrics.update(scores, labels)
    metrics.compute()["auprc"]

Definitions. The threshold runs over the observed scores, a pixel is predicted anomalous at
`score >= threshold`. AUPRC is average precision, the sum of (step in recall) * precision. FPR95
is the false-positive rate at the highest threshold with TPR >= 0.95 (SegmentMeIfYouCan,
arXiv:2104.14812; RbA's code, arXiv:2211.14293, asks for TPR > 0.95).

Scores are ranked in the precision that they come in. Where float32 does not hold all of them, half
as many pixels are kept.
"""

import sys

import numpy as np

from anoseg_d2.evaluation.streaming.bounds import CurveSummary, Segment
from anoseg_d2.evaluation.streaming.counts import Budget, Counts
from anoseg_d2.evaluation.streaming.keys import as_floats, keys_to_scores, scores_to_keys, to_numpy
from anoseg_d2.utils.constants import ANOMALY, KNOWN, VOID

_LABELS = (KNOWN, ANOMALY, VOID)
_UPDATE = 1 << 18  # pixels counted at a time
_ROUNDING = 1e-12  # by which float64 sums may differ, ours and scikit-learn's


class PixelMetrics:
    """Streaming pixel metrics of one score.

    Args:
        exact: keep every score, for figures equal to scikit-learn's; takes 4 bytes of memory per
            labelled pixel, 8 where float32 does not hold the scores.
        tpr: true-positive rates in (0, 1] at which to report threshold and false-positive rate.
        budget: how much is kept otherwise, see `streaming.counts.Budget`.
    """

    def __init__(
        self, exact: bool = False, tpr: tuple[float, ...] = (0.95,), budget: Budget | None = None
    ):
        wrong = [rate for rate in tpr if not 0 < rate <= 1]
        if wrong:
            raise ValueError(f"true-positive rates must lie in (0, 1], got {wrong}")
        self.exact = exact
        self.tpr = tuple(sorted({float(rate) for rate in tpr} | {0.95}))  # fpr95 needs 0.95
        # Counts that never leave their pixels are exact.
        self.budget = Budget(kept_pixels=sys.maxsize) if exact else budget or Budget()
        self.pixels = dict.fromkeys(_LABELS, 0)
        self.infinite = 0  # labelled pixels
        self.images = 0
        self._counts = Counts(self.budget)

    def update(self, scores, labels, where: str | None = None) -> None:
        """Count the pixels of one image.

        Args:
            scores: array or tensor of any shape and type of real numbers, higher = more anomalous.
            labels: same shape, integers: 0 known, 1 anomaly, 255 void.
            where: name of the image for error messages; default its number.
        Raises:
            ValueError: shapes differ, a score is NaN (void pixels included) or beyond what float64
                holds exactly, or another label; nothing has been counted then.
        """
        where = where or f"image number {self.images}"
        scores, labels = checked_pixels(scores, labels, where)
        if scores.size and not (np.isfinite(scores.min()) and np.isfinite(scores.max())):
            self.infinite += int((np.isinf(scores) & (labels != VOID)).sum())
        for start in range(0, scores.size, _UPDATE):
            self._count(scores[start : start + _UPDATE], labels[start : start + _UPDATE])
        self.images += 1

    def _count(self, scores: np.ndarray, labels: np.ndarray) -> None:
        labelled = labels != VOID
        if not labelled.all():
            scores, labels = scores[labelled], labels[labelled]
        self._counts.add(scores_to_keys(scores), labels)
        anomalous = int((labels == ANOMALY).sum())
        found = (labels.size - anomalous, anomalous, labelled.size - labels.size)
        for label, count in zip(_LABELS, found, strict=True):
            self.pixels[label] += count

    def merge(self, other: "PixelMetrics") -> "PixelMetrics":
        """Add another object's counts, as if its images had been seen here; returns self.

        Commutative and associative to the bit. `other` stays as it is.
        """
        for name in ("exact", "tpr", "budget"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"cannot merge metrics with {name}={theirs} into {name}={mine}")
        self._counts.merge(other._counts)
        self.images += other.images
        self.infinite += other.infinite
        for label, count in other.pixels.items():
            self.pixels[label] += count
        return self

    def compute(self) -> dict:
        """Return all figures, as fractions.

        Returns:
            dict with `auprc`, `auroc`, `fpr95`, `best_f1` and for each a `*_bounds` pair;
            `threshold95` and `best_f1_threshold`, for `score >= threshold`, and `best_f1_cut`,
            the number below it, for `score > cut`; `at_tpr`: {rate: {`fpr`, `fpr_bounds`,
            `threshold`}}; `anomaly_pixels`, `known_pixels`, `void_pixels`, `infinite_pixels`
            (labelled pixels whose score is infinite: they count as the highest or lowest of all),
            `images`. A figure that is not defined is None, and `why` says why.
        """
        return self.compute_with_curve(None)[0]

    def compute_with_curve(self, max_points: int | None = 1000) -> tuple[dict, dict | None]:
        """Return `compute()`, and points of both curves in steps of equal size in either rate.

        Args:
            max_points: at most so many points, at least 5; None: no curve.
        Returns:
            figures; None where there are none, else float64 arrays (N,), thresholds descending:
            `threshold`, `recall` (= true-positive rate), `precision`, `false_positive_rate`. The
            last point has recall 1.
        """
        result = {
            "anomaly_pixels": self.pixels[ANOMALY],
            "known_pixels": self.pixels[KNOWN],
            "void_pixels": self.pixels[VOID],
            "infinite_pixels": self.infinite,
            "images": self.images,
        }
        why = self._undefined()
        if why:
            figures = ("auprc", "auroc", "fpr95", "best_f1")
            names = [name + end for name in figures for end in ("", "_bounds")]
            result |= dict.fromkeys([*names, "threshold95", "best_f1_threshold", "best_f1_cut"])
            nothing = dict.fromkeys(("fpr", "fpr_bounds", "threshold"))
            at_tpr = {rate: dict(nothing) for rate in self.tpr}
            return {**result, "at_tpr": at_tpr, "why": why}, None
        known, anomalous = self.pixels[KNOWN], self.pixels[ANOMALY]
        summary = CurveSummary(anomalous, known, self.tpr)
        if max_points is not None and max_points < 5:
            raise ValueError(f"a curve needs at least 5 points, got max_points={max_points}")
        kept, last, seen = [], np.zeros((4, 0)), -1.0
        # One walk down both curves serves the figures and the curve.
        for segment in (s for s in self._counts.segments() if s.keys.size):
            summary.add(segment)
            if max_points is not None:
                points, last, seen = _thin(segment, self.pixels, max_points, seen)
                kept.append(points)
        for name, pair in summary.bounds().items():
            result.update(_figure(name, pair))
        best = self._score(summary.best_f1_key)
        result["best_f1_threshold"] = float(best)
        with np.errstate(over="ignore"):  # below the least finite float is -inf
            result["best_f1_cut"] = float(np.nextafter(best, type(best)(-np.inf)))
        result["at_tpr"] = {
            rate: {**_figure("fpr", ends), "threshold": float(self._score(key))}
            for rate, (*ends, key) in sorted(summary.at_rate.items())
        }
        at95 = result["at_tpr"][0.95]
        result.update(fpr95=at95["fpr"], fpr95_bounds=at95["fpr_bounds"])
        result["threshold95"] = at95["threshold"]
        if max_points is None:
            return result, None
        names = ("threshold", "recall", "precision", "false_positive_rate")
        # The curve must end at recall 1.
        return result, dict(zip(names, np.concatenate([*kept, last], axis=1), strict=True))

    def _undefined(self) -> str | None:
        known, anomaly, void = self.pixels.values()
        if self.images == 0:
            return "no image was seen"
        if known == anomaly == 0:
            return f"all {void} pixels of {self.images} images are void"
        if anomaly == 0:
            return f"no anomaly pixel in {self.images} images"
        return None if known else f"no known pixel in {self.images} images, only anomaly and void"

    def _score(self, key: int) -> np.floating:
        score = keys_to_scores(np.array([key], self._counts.key_type))[0]
        if self._counts.wide:
            return score
        # Where a range of scores was counted, its lower end may lie between two float32.
        with np.errstate(over="ignore"):  # beyond the largest float32 is inf
            narrow = np.float32(score)
        return narrow if narrow >= score else np.nextafter(narrow, np.float32(np.inf))


def _thin(segment: Segment, pixels: dict[int, int], max_points: int, seen: float):
    """Choose points of a segment in steps of equal size in either rate.

    Args:
        segment: a stretch of the curves.
        pixels: {label: number in the dataset}.
        max_points: of the whole curve.
        seen: place of the last point of the segment above, -1 at the top.
    Returns:
        threshold, recall, precision and false-positive rate of the chosen points, (4, M); those of
        the last point, (4, 1), or (4, 0) if it was chosen; and its place.
    """
    steps = (max_points - 2) // 3  # of each rate; the other two points are the ends
    tp, fp = segment.tp, segment.fp
    recall, fpr = tp / pixels[ANOMALY], fp / pixels[KNOWN]
    # each of the three only grows, so there are at most 3 * steps changes
    place = np.floor(recall * steps) + np.floor(fpr * steps)
    place += np.floor(steps * np.sqrt(fp / (fp + pixels[ANOMALY])))
    change = np.flatnonzero(np.diff(place, prepend=seen))
    points = np.stack((keys_to_scores(segment.keys), recall, tp / (tp + fp), fpr))
    chosen = change.size and change[-1] == place.size - 1
    return points[:, change], points[:, -1:][:, : not chosen], place[-1]


def checked_pixels(scores, labels, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return flat scores (float32, or float64 if needed) and uint8 labels; errors name `where`."""
    scores, labels = to_numpy(scores), to_numpy(labels)
    if scores.shape != labels.shape:
        raise ValueError(
            f"{where}: scores {scores.shape} and labels {labels.shape} differ in shape"
        )
    right = np.isin(labels, (KNOWN, ANOMALY, VOID)) if labels.dtype != np.uint8 else _LEGAL[labels]
    if not right.all():
        found = np.unique(labels[~right])[:10].tolist()
        raise ValueError(
            f"{where}: labels must be 0 (known), 1 (anomaly) or 255 (void), found {found}"
        )
    if np.iscomplexobj(scores) or not np.issubdtype(scores.dtype, np.number):
        raise ValueError(f"{where}: scores must be real numbers, got {scores.dtype}")
    scores = scores.reshape(-1)
    # The minimum of anything with NaN is NaN, and needs no array of its own.
    if scores.size and np.isnan(scores.min()):
        missing = int(np.isnan(scores).sum())
        raise ValueError(f"{where}: {missing} of {scores.size} scores are NaN")
    return as_floats(scores, where), labels.reshape(-1).astype(np.uint8, copy=False)


_LEGAL = np.isin(np.arange(256), (KNOWN, ANOMALY, VOID))


def _figure(name: str, pair: tuple[float, float]) -> dict:
    """Return the middle of the bounds, and the bounds widened by float64 rounding."""
    low, high = (float(value) for value in pair)
    bounds = (max(0.0, low - _ROUNDING), min(1.0, high + _ROUNDING))
    return {name: (low + high) / 2, f"{name}_bounds": bounds}
