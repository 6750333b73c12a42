"""Compute component metrics of anomaly segmentation as SegmentMeIfYouCan defines them.

Pixels with score > threshold form 8-connected predicted components, anomaly pixels ground-truth
components. With K' the predicted components that touch a ground-truth component k,

    sIoU(k) = |k & K'| / (|k or K'| - |K' on other ground truth|),    PPV(p) = |p & GT| / |p|.

At each t of 0.25, 0.30 .. 0.75 a component with sIoU >= t is found (TP), else missed (FN), and a
prediction with PPV < t is false (FP). F1 = 2 TP / (2 TP + FN + FP) over the dataset, `mean_F1`
the mean of F1 over the 11 thresholds.

Source: "SegmentMeIfYouCan: A Benchmark for Anomaly Segmentation", arXiv:2104.14812, and the code
of its benchmark. The score threshold is the one of best pixel F1 over the dataset: an oracle that
has seen the evaluation labels. Differences: without any prediction PPV is 0, where that code
divides by zero; the background is never taken for a small component.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from anoseg_d2.evaluation.metrics import checked_pixels
from anoseg_d2.utils.constants import ANOMALY, VOID

OVERLAPS = np.linspace(0.25, 0.75, 11)


@dataclass(frozen=True)
class Track:
    """Size limits of a benchmark's track, in pixels.

    Args:
        min_predicted: predicted components smaller than this are dropped.
        min_truth: ground-truth components smaller than this become void.
    """

    min_predicted: int
    min_truth: int


TRACKS = {"anomaly": Track(500, 100), "obstacle": Track(50, 10)}  # as in the benchmark's code


def _track(track: str | Track) -> Track:
    if not isinstance(track, Track) and track not in TRACKS:
        raise ValueError(f"unknown track {track!r}; known: {', '.join(TRACKS)}")
    return track if isinstance(track, Track) else TRACKS[track]


def component_overlaps(label: np.ndarray, predicted: np.ndarray, limits: Track):
    """Compute the overlap of every component of one image.

    Args:
        label: (H, W) uint8, 0 known, 1 anomaly, 255 void.
        predicted: (H, W) bool, score > threshold.
        limits: sizes below which components do not count.
    Returns:
        sIoU per ground-truth component and PPV per predicted one, float64.
    """
    predicted = predicted & (label != VOID)
    maps = ((label == ANOMALY).view(np.uint8), predicted.view(np.uint8))
    truth_ids, ids = (cv2.connectedComponents(mask, connectivity=8)[1] for mask in maps)
    truth_size = np.bincount(truth_ids.reshape(-1))
    truth_size[0] = 0  # the background
    truth_size[truth_size < limits.min_truth] = 0
    # Predictions are a few per cent of an image, and nothing else is looked at from here on.
    below, hits = truth_ids[predicted], ids[predicted]
    # Predictions are sized before small ground truth turns void, and cut to the rest after.
    kept = (np.bincount(hits) >= limits.min_predicted)[hits]
    kept &= (below == 0) | (truth_size[below] > 0)
    below, hits = below[kept], hits[kept]
    size = np.bincount(hits, minlength=1)
    both = below > 0
    pairs = below[both].astype(np.int64) * size.size + hits[both]  # one integer per pair of ids
    pairs, shared = np.unique(pairs, return_counts=True)
    on_truth, by = np.divmod(pairs, size.size)
    covered = np.bincount(by, weights=shared, minlength=size.size)

    def per_truth(values):
        return np.bincount(on_truth, weights=values, minlength=truth_size.size)

    found = per_truth(shared)
    union = truth_size + per_truth(size[by]) - found
    on_others = per_truth(covered[by] - shared)  # sIoU does not count it as wrong
    wanted, seen = np.flatnonzero(truth_size), np.flatnonzero(size)
    return found[wanted] / (union - on_others)[wanted], covered[seen] / size[seen]


def _at_overlaps(siou: np.ndarray, ppv: np.ndarray) -> dict[str, np.ndarray]:
    """Return tp, fn, fp and F1 at `OVERLAPS`, (11,); F1 is NaN where there is nothing to count."""
    tp = (siou >= OVERLAPS[:, None]).sum(axis=1)
    fn, fp = siou.size - tp, (ppv < OVERLAPS[:, None]).sum(axis=1)
    total = 2 * tp + fn + fp
    f1 = np.divide(2 * tp, total, out=np.full(len(tp), np.nan), where=total > 0)
    return {"tp": tp, "fn": fn, "fp": fp, "F1": f1}


def component_metrics(
    score, label, threshold: float, track: str | Track = "anomaly", *, where: str = "image"
) -> dict:
    """Compute the component metrics of one image.

    Args:
        score: (H, W) floats, higher = more anomalous; array or tensor.
        label: (H, W) integers, 0 known, 1 anomaly, 255 void.
        threshold: a pixel is predicted where score > threshold.
        track: "anomaly" or "obstacle", for its size limits, or other limits.
        where: name of the image for error messages.
    Returns:
        dict with `sIoU` (one float64 per ground-truth component), `PPV` (one per predicted
        component), `tp`, `fn`, `fp` (11,) counts and `F1` (11,) at `OVERLAPS`, NaN where there is
        nothing to count, and `mean_F1`.
    Raises:
        ValueError: unknown track, wrong shapes, NaN, or other labels; names `where`.
    """
    limits = _track(track)
    shape = np.shape(label)
    if len(shape) != 2:
        raise ValueError(f"{where}: a label must be (H, W), got {tuple(shape)}")
    if math.isnan(threshold):
        raise ValueError(f"{where}: the threshold is NaN")
    score, label = (flat.reshape(shape) for flat in checked_pixels(score, label, where))
    # Python's float would be rounded to the type of the scores, perhaps to one of them.
    cut = score.dtype.type(threshold)
    cut = cut if cut == threshold else np.float64(threshold)
    siou, ppv = component_overlaps(label, score > cut, limits)
    found = _at_overlaps(siou, ppv)
    # NaN if there is nothing to find and nothing found
    return {"sIoU": siou, "PPV": ppv, **found, "mean_F1": float(found["F1"].mean())}


class ComponentMetrics:
    """Component metrics of one score over a dataset; order and split of the images do not matter.

    Args:
        track: as `component_metrics`.
    """

    def __init__(self, track: str | Track = "anomaly"):
        self.track = _track(track)
        self.images = 0
        self._siou: list[float] = []
        self._ppv: list[float] = []

    def update(self, score, label, threshold: float, **options) -> dict:
        """Count the components of one image; arguments and result as in `component_metrics`."""
        options = {"where": f"image number {self.images}", **options}
        found = component_metrics(score, label, threshold, self.track, **options)
        self._siou.extend(found["sIoU"].tolist())
        self._ppv.extend(found["PPV"].tolist())
        self.images += 1
        return found

    def merge(self, other: "ComponentMetrics") -> "ComponentMetrics":
        """Add another object's components; returns self."""
        if self.track != other.track:
            raise ValueError(f"cannot merge components of {other.track} into those of {self.track}")
        self._siou += other._siou
        self._ppv += other._ppv
        self.images += other.images
        return self

    def compute(self) -> dict:
        """Compute the figures over all images.

        Returns:
            dict with `sIoU`, `PPV`, `mean_F1` as fractions; `F1`, `tp`, `fn`, `fp` lists at
            `OVERLAPS`; `truth_components`, `predicted_components`, `images`. Without ground-truth
            components the figures are None and `why` says so; without predictions PPV is 0.
        """
        siou, ppv = np.array(self._siou), np.array(self._ppv)
        result = {name: counts.tolist() for name, counts in _at_overlaps(siou, ppv).items()}
        result["truth_components"], result["predicted_components"] = siou.size, ppv.size
        result["images"] = self.images
        if siou.size == 0:
            least = self.track.min_truth
            why = f"no ground-truth component of {least} pixels in {self.images} images"
            return {**result, **dict.fromkeys(("sIoU", "PPV", "mean_F1", "F1")), "why": why}
        # fsum rounds once, so that the order of the images cannot be seen
        return {
            "sIoU": math.fsum(self._siou) / siou.size,
            "PPV": math.fsum(self._ppv) / max(1, ppv.size),  # 0 without predictions
            "mean_F1": math.fsum(result["F1"]) / len(OVERLAPS),
            **result,
        }
