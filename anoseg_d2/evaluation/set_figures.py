"""Turn the metrics of one score on one dataset into its part of results.json."""

import numpy as np

from anoseg_d2.evaluation.components import OVERLAPS

TPR_LEVELS = (0.8, 0.9, 0.95, 0.99)  # true-positive rates whose thresholds results.json states
PIXEL_FIGURES = ("auprc", "fpr95", "auroc", "best_f1")
COMPONENT_FIGURES = ("sIoU", "PPV", "mean_F1")
# Overlaps at which F1, TP, FN and FP are stated one by one, as SegmentMeIfYouCan does.
STATED_OVERLAPS = (25, 50, 75)


def score_entry(found: dict) -> dict:
    """Return a score's part of results.json, in percent; a missing figure is None, with `why`.

    Args:
        found: what `PixelMetrics.compute` gives, and `COMPONENT_FIGURES`, `components_at` and
            `component_why` where components were counted.
    """
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


def _percent(value):
    if isinstance(value, (list, tuple)):
        return [_percent(entry) for entry in value]
    return None if value is None or not np.isfinite(value) else 100 * float(value)


def stated_components(found: dict) -> dict | None:
    """Return counts, and F1 in percent, at `STATED_OVERLAPS`; None where there is no F1.

    Args:
        found: what `ComponentMetrics.compute` gives.
    """
    if found["F1"] is None:
        return None
    stated = {}
    for overlap in STATED_OVERLAPS:
        index = int(np.argmin(np.abs(100 * OVERLAPS - overlap)))  # linspace is rounded
        counts = {name.upper(): found[name][index] for name in ("tp", "fn", "fp")}
        stated[str(overlap)] = {"F1": 100 * found["F1"][index], **counts}
    return stated


def short_curve(curve: dict | None) -> dict | None:
    """Round a curve to what a plot can show, under the names of curves.json."""
    if curve is None:
        return None
    names = {"recall": "recall", "precision": "precision", "false_positive_rate": "fpr"}
    return {short: [round(float(v), 5) for v in curve[name]] for name, short in names.items()}
