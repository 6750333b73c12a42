"""Scores and labels for the tests of pixel metrics, and their figures by scikit-learn."""

import pickle

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from anoseg_d2.evaluation.metrics import PixelMetrics
from anoseg_d2.evaluation.streaming.counts import Budget

FIGURES = ("auprc", "fpr95", "auroc", "best_f1")


def reference(scores, labels, rate=0.95) -> dict:
    """The figures by scikit-learn, from all pixels at once."""
    labelled = labels != 255
    scores, labels = scores[labelled], labels[labelled]
    fpr, tpr, thresholds = roc_curve(labels, ranked(scores), drop_intermediate=False)
    first = np.flatnonzero(tpr >= rate)[0]
    precision, recall, _ = precision_recall_curve(labels, ranked(scores))
    both = precision + recall
    f1 = 2 * precision * recall / np.where(both > 0, both, 1)
    return {
        # scikit-learn adds up rounded terms, and can end just above 1.
        "auprc": min(average_precision_score(labels, ranked(scores)), 1.0),
        "auroc": roc_auc_score(labels, ranked(scores)),
        "fpr95": fpr[first],
        "best_f1": f1.max(),
        "threshold": np.unique(scores)[int(thresholds[first])],
    }


def ranked(scores):
    """Scores as their ranks: scikit-learn refuses infinities."""
    return np.unique(scores, return_inverse=True)[1].reshape(-1)


def counted(scores, labels, parts=1, **options) -> PixelMetrics:
    metrics = PixelMetrics(**options)
    for chunk in zip(np.array_split(scores, parts), np.array_split(labels, parts), strict=True):
        metrics.update(*chunk)
    return metrics


def saturated_rba(pixels, generator):
    """Known pixels within 1e-3 of -tanh(1), anomalies spread out, some of each where not wanted."""
    labels = (generator.random(pixels) < 0.03).astype(np.uint8)
    claimed = 1 - np.minimum(generator.exponential(3e-5, pixels), 1)
    claimed = np.where(generator.random(pixels) < 0.15, generator.random(pixels), claimed)
    unsure = (labels == 1) & (generator.random(pixels) < 0.93)
    claimed = np.where(unsure, generator.beta(2, 2, pixels), claimed)
    return -np.tanh(claimed).astype(np.float32), labels


def confident_msp(pixels, generator):
    labels = (generator.random(pixels) < 0.03).astype(np.uint8)
    logit = generator.normal(np.where(labels, 3, 11), 4).astype(np.float32)
    return 1 - 1 / (1 + np.exp(-logit)), labels


def two_sided(pixels, generator):
    labels = (generator.random(pixels) < 0.03).astype(np.uint8)
    return (generator.standard_normal(pixels) + labels).astype(np.float32), labels


def narrow(pixels, generator):
    labels = (generator.random(pixels) < 0.03).astype(np.uint8)
    return (7 + 1e-4 * (generator.standard_normal(pixels) + labels)).astype(np.float32), labels


def tiny_probabilities(pixels, generator):
    labels = (generator.random(pixels) < 0.03).astype(np.uint8)
    return np.exp(generator.normal(-16, 4, pixels) + 6 * labels).clip(0, 1).astype(
        np.float32
    ), labels


SHAPES = [saturated_rba, confident_msp, two_sided, narrow, tiny_probabilities]


EXTREMES = [0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, np.inf, -np.inf, 1.0, np.nextafter(1, 2)]


values = st.one_of(
    st.sampled_from(EXTREMES), st.integers(-3, 3), st.floats(width=32, allow_nan=False)
).map(np.float32)


@st.composite
def pixel_sets(draw, least=2, most=60):
    size = draw(st.integers(least, most))
    scores = np.array(draw(st.lists(values, min_size=size, max_size=size)), np.float32)
    labels = draw(hnp.arrays(np.uint8, size, elements=st.sampled_from([0, 0, 1, 255])))
    labels[:2] = 0, 1
    return scores, draw(st.permutations(labels.tolist()).map(lambda p: np.array(p, np.uint8)))


def saturated(pixels, generator):
    """Probabilities in float64, most of which are 1 in float32."""
    labels = (generator.random(pixels) < 0.2).astype(np.uint8)
    return 1 - 10.0 ** -generator.uniform(np.where(labels, 10, 7), 13), labels


# Pixels are not kept, distinct scores are.
RUNS = Budget(kept_pixels=0)
# So few cells that a few thousand pixels fill them.
TINY = Budget(kept_pixels=0, cells=1 << 11)
COARSE = Budget(kept_pixels=0, cells=8)


def assert_contains(found: dict, truth: dict):
    for name in FIGURES:
        low, high = found[f"{name}_bounds"]
        assert low <= truth[name] <= high, (name, low, truth[name], high)
        assert low <= found[name] <= high, name


def state_bytes(metrics):
    """All figures and the curve of a metric, equal for equal multisets of pixels."""
    figures, curve = metrics.compute_with_curve(1000)
    return pickle.dumps((figures, {k: v.tolist() for k, v in (curve or {}).items()}))


def kind(metrics) -> str:
    """How the pixels are held: as `pixels`, as `runs` of equal scores, or in wider `cells`."""
    figures = metrics.compute()
    if all(figures[f"{name}_bounds"] is None for name in FIGURES):
        return "exact"
    exact = np.ptp(figures["auroc_bounds"]) < 1e-11
    return "exact" if exact else "cells"
