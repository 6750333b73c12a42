"""Compute pixel and component metrics of every score of a dataset, added over ranks."""

import numpy as np
from detectron2.utils import comm

from anoseg_d2.evaluation.components import OVERLAPS, TRACKS, ComponentMetrics, GroundTruth
from anoseg_d2.evaluation.metrics import PixelMetrics
from anoseg_d2.utils.cli import Progress
from anoseg_d2.utils.constants import ANOMALY, KNOWN
from anoseg_d2.utils.files import check_name

__all__ = ["COMPONENT_FIGURES", "TPR_LEVELS", "SetFigures", "score_entry"]

CURVE_POINTS = 400
TPR_LEVELS = (0.8, 0.9, 0.95, 0.99)  # true-positive rates whose thresholds results.json states
PIXEL_FIGURES = ("auprc", "fpr95", "auroc", "best_f1")
COMPONENT_FIGURES = ("sIoU", "PPV", "mean_F1")
# Overlaps at which F1, TP, FN and FP are stated one by one, as SegmentMeIfYouCan does.
STATED_OVERLAPS = (25, 50, 75)


class SetFigures:
    """Count the scores of one dataset, image by image, and compute its figures from all ranks.

    Component figures need the best-F1 threshold of the whole dataset, so the maps of all images are
    read a second time.

    Args:
        dataset_name: for messages.
        track: "anomaly" or "obstacle", for the sizes below which components do not count.
        maps: `KeptMaps` for the second pass; None computes no component figures.
        exact, spill_dir: of `PixelMetrics`.
    """

    def __init__(self, dataset_name: str, track: str, maps=None, *, exact=False, spill_dir=None):
        self.dataset_name, self.track, self.maps = dataset_name, track, maps
        self._exact, self._spill_dir = exact, spill_dir
        self.counts = {"images": 0, "anomaly_pixels": 0, "known_pixels": 0, "void_pixels": 0}
        self._pixels: dict[str, PixelMetrics] = {}

    def add(self, scores: dict, label: np.ndarray, where: str) -> None:
        """Count one image: scores {name: (H, W) floats}, label (H, W) uint8; `where` names it."""
        for name, score in scores.items():
            if name not in self._pixels:
                if self._spill_dir is not None:
                    self._spill_dir.mkdir(parents=True, exist_ok=True)
                self._pixels[check_name(name, "score")] = PixelMetrics(
                    exact=self._exact, tpr=TPR_LEVELS, spill_dir=self._spill_dir
                )
            self._pixels[name].update(score, label, where=where)
        known, anomaly = int((label == KNOWN).sum()), int((label == ANOMALY).sum())
        found = {"images": 1, "anomaly_pixels": anomaly, "known_pixels": known}
        found["void_pixels"] = label.size - known - anomaly
        for key, count in found.items():
            self.counts[key] += count
        if self.maps is not None:
            self.maps.add(scores, label)

    def compute(self) -> tuple[dict, dict]:
        """Add the counts of all ranks; every rank must call it.

        Returns:
            on rank 0 {score: its part of results.json} and {score: its curve}, and `counts` hold
            those of all ranks; empty elsewhere.
        """
        # Ranks may have seen different scores: one without images has seen none.
        names = list(dict.fromkeys(n for part in comm.all_gather(list(self._pixels)) for n in part))
        figures, curves = {}, {}
        for name in names:
            pixels = self._merged_pixels(name)
            if comm.is_main_process():
                figures[name], curve = pixels.compute_with_curve(CURVE_POINTS)
                curves[name] = _short_curve(curve)
        if self.maps is not None:
            self._add_components(names, figures)
            self.maps.close()
        parts = comm.gather(self.counts)
        if comm.is_main_process():
            self.counts = {key: sum(part[key] for part in parts) for key in self.counts}
        return {name: score_entry(found) for name, found in figures.items()}, curves

    def _merged_pixels(self, name: str) -> PixelMetrics | None:
        # One score at a time: rank 0 never holds more than one score's counts of all ranks.
        parts = [part for part in comm.gather(self._pixels.get(name)) if part is not None]
        for part in parts[1:]:
            parts[0].merge(part)
        # Exact counts are in files of their own rank until they are merged.
        comm.synchronize()
        return parts[0] if parts else None

    def _add_components(self, names: list[str], figures: dict) -> None:
        """Read the maps a second time, with the thresholds of the whole dataset."""
        # Components are the pixels with score > threshold, so the cut is just below the best score.
        cuts = {name: found.get("best_f1_cut") for name, found in figures.items()}
        cuts = comm.all_gather(cuts)[0]  # only rank 0 has figures
        counted = self._count_components(cuts)
        for name in names:
            parts = comm.gather(counted[name])
            if not comm.is_main_process():
                continue
            if cuts[name] is None:
                why = "component figures need anomaly and known pixels for a threshold"
                missing = dict.fromkeys((*COMPONENT_FIGURES, "components_at"))
                figures[name].update(missing, component_why=why)
                continue
            for part in parts[1:]:
                parts[0].merge(part)
            found = parts[0].compute()
            figures[name].update({key: found[key] for key in COMPONENT_FIGURES})
            figures[name]["components_at"] = _stated_components(found)
            figures[name]["component_why"] = found.get("why")

    def _count_components(self, cuts: dict[str, float | None]) -> dict[str, ComponentMetrics]:
        """Count the components of this rank's images, {score: ...}."""
        counted = {name: ComponentMetrics(self.track) for name in cuts}
        seen, truth = None, None
        images = self.counts["images"]
        with Progress(f"{self.dataset_name}: components of", images) as progress:
            for label, name, score in self.maps:
                # The scores of an image follow each other and share its label.
                if label is not seen:
                    seen, truth = label, GroundTruth.of(label, TRACKS[self.track].min_truth)
                    if comm.is_main_process():
                        progress.update()
                if cuts[name] is not None:
                    counted[name].update(score, label, cuts[name], truth=truth)
        return counted


def _stated_components(found: dict) -> dict | None:
    """Return counts, and F1 in percent, at `STATED_OVERLAPS`; None where there is no F1."""
    if found["F1"] is None:
        return None
    stated = {}
    for overlap in STATED_OVERLAPS:
        index = int(np.argmin(np.abs(100 * OVERLAPS - overlap)))  # linspace is rounded
        counts = {name.upper(): found[name][index] for name in ("tp", "fn", "fp")}
        stated[str(overlap)] = {"F1": 100 * found["F1"][index], **counts}
    return stated


def _short_curve(curve: dict | None) -> dict | None:
    """Round a curve to what a plot can show, under the names of curves.json."""
    if curve is None:
        return None
    names = {"recall": "recall", "precision": "precision", "false_positive_rate": "fpr"}
    return {short: [round(float(v), 5) for v in curve[name]] for name, short in names.items()}


def _percent(value):
    if isinstance(value, (list, tuple)):
        return [_percent(entry) for entry in value]
    return None if value is None or not np.isfinite(value) else 100 * float(value)


def score_entry(found: dict) -> dict:
    """Return a score's part of results.json, in percent; a missing figure is None, with `why`."""
    keys = [k for k in PIXEL_FIGURES + COMPONENT_FIGURES if k in found]
    entry = {key: _percent(found[key]) for key in keys}
    entry.update({key: _percent(found[key]) for key in found if key.endswith("_bounds")})
    if "components_at" in found:
        entry["components_at"] = found["components_at"]
    entry["infinite_pixels"] = found["infinite_pixels"]
    entry["best_f1_threshold"] = found.get("best_f1_threshold")
    points = found.get("at_tpr") or {}
    entry["tpr_thresholds"] = {f"{100 * r:g}": at["threshold"] for r, at in points.items()}
    reasons = [found.get("why"), found.get("component_why")]
    if any(value is None for value in entry.values()):
        entry["why"] = "; ".join(r for r in reasons if r) or "undefined for these labels"
    return entry
