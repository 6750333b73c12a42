"""PixelMetrics against scikit-learn, its bounds, and its independence of order and split."""

import multiprocessing

import numpy as np
import pytest
from hypothesis import given, settings
from scored_pixels import (
    COARSE,
    FIGURES,
    RUNS,
    TINY,
    assert_contains,
    counted,
    pixel_sets,
    reference,
    state_bytes,
    two_sided,
)
from sklearn.metrics import roc_auc_score

from anoseg_d2.evaluation.metrics import PixelMetrics


@pytest.mark.parametrize("budget", [None, RUNS], ids=["pixels", "runs"])
@given(pixels=pixel_sets())
@settings(max_examples=50, deadline=None)
def test_few_distinct_scores_equal_scikit_learn(budget, pixels):
    found, truth = counted(*pixels, budget=budget).compute(), reference(*pixels)
    for name in FIGURES:
        assert found[name] == pytest.approx(truth[name], abs=1e-12)
    assert found["threshold95"] == truth["threshold"]
    assert_contains(found, truth)


@given(pixels=pixel_sets())
@settings(max_examples=20, deadline=None)
def test_exact_equals_scikit_learn_on_ties_and_extremes(pixels):
    found, truth = counted(*pixels, exact=True).compute(), reference(*pixels)
    for name in FIGURES:
        assert found[name] == pytest.approx(truth[name], abs=1e-12)


def test_exact_keeps_pixels_beyond_any_budget():
    scores, labels = two_sided(20_000, np.random.default_rng(10))
    found = counted(scores, labels, parts=4, exact=True, budget=TINY).compute()
    truth = reference(scores, labels)
    for name in FIGURES:
        assert found[name] == pytest.approx(truth[name], abs=1e-12)


def _worker(shard):
    metrics = PixelMetrics(budget=RUNS)
    for seed in shard:
        metrics.update(*two_sided(2000, np.random.default_rng(seed)))
    return metrics


@pytest.mark.slow
def test_two_processes_count_as_one_and_one_may_be_idle():
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        parts = pool.map(_worker, [[0, 1, 2], [], [3]])
    merged = parts[1].merge(parts[0]).merge(parts[2])
    assert state_bytes(merged) == state_bytes(_worker(range(4)))


def test_a_million_equal_scores_are_one_tie():
    labels = (np.arange(1_000_000) % 10 == 0).astype(np.uint8)
    found = counted(np.full(labels.size, -0.7, np.float32), labels).compute()
    assert found["auprc"] == pytest.approx(0.1, abs=1e-12)
    assert (found["auroc"], found["fpr95"]) == (0.5, 1.0)
    assert found["best_f1"] == pytest.approx(2 * 0.1 / 1.1, abs=1e-12)


@pytest.mark.parametrize("budget", [None, RUNS, COARSE], ids=["pixels", "runs", "coarse"])
def test_one_positive(budget):
    scores, labels = np.arange(500, dtype=np.float32), np.zeros(500, np.uint8)
    labels[123] = 1
    found = counted(scores, labels, budget=budget).compute()
    assert_contains(found, reference(scores, labels))
    if budget is not COARSE:
        assert found["auprc"] == pytest.approx(1 / 377)
        assert found["fpr95"] == pytest.approx(376 / 499)


LABELS = np.array([[0, 1], [255, 0]])
GOOD = np.zeros((2, 2), np.float32)


@pytest.mark.parametrize(
    "scores, labels, message",
    [
        (np.array([[0, 1], [np.nan, 0]]), LABELS, r"street_07: 1 of 4 scores are NaN"),
        (GOOD, np.array([[0, 1], [7, 254]]), r"street_07: .*found \[7, 254\]"),
        (GOOD, np.array([[0.0, 1.0], [0.5, 0.0]]), r"street_07: .*found \[0.5\]"),
        (GOOD, np.array([[0, 1], [-1, 0]]), r"street_07: .*found \[-1\]"),
        (np.zeros((2, 3)), LABELS, r"street_07: scores \(2, 3\) and labels \(2, 2\)"),
        (GOOD.astype(complex), LABELS, r"street_07: .*complex"),
    ],
)
@pytest.mark.parametrize("exact", [False, True])
def test_wrong_input_is_refused_by_name_and_nothing_is_counted(scores, labels, message, exact):
    metrics = PixelMetrics(exact=exact)
    with pytest.raises(ValueError, match=message):
        metrics.update(scores, labels, where="street_07")
    assert metrics.images == 0 and sum(metrics.pixels.values()) == 0


@pytest.mark.parametrize(
    "labels, why",
    [
        (None, "no image was seen"),
        ([255, 255], "all 2 pixels of 1 images are void"),
        ([0, 255], "no anomaly pixel in 1 images"),
        ([1, 1], "no known pixel in 1 images"),
    ],
)
@pytest.mark.parametrize("exact", [False, True])
def test_undefined_figures_are_none_and_say_why(labels, why, exact):
    metrics = PixelMetrics(exact=exact)
    if labels is not None:
        metrics.update(np.zeros(2, np.float32), np.array(labels))
    found = metrics.compute()
    assert why in found["why"]
    assert found["auprc"] is found["auprc_bounds"] is found["fpr95"] is found["auroc"] is None
    assert found["best_f1_cut"] is found["threshold95"] is found["at_tpr"][0.95]["fpr"] is None
    assert metrics.compute_with_curve()[1] is None
    defined = counted(np.arange(2, dtype=np.float32), np.array([0, 1])).compute()
    assert set(defined) == set(found) - {"why"}


def test_images_without_anomaly_and_empty_images_count():
    metrics = PixelMetrics()
    metrics.update(np.array([0.5, 0.1]), np.array([1, 0]))
    metrics.update(np.array([0.9, 0.2]), np.array([0, 255]))
    metrics.update(np.zeros((0, 4)), np.zeros((0, 4), np.uint8))
    found = metrics.compute()
    assert found["auprc"] == pytest.approx(0.5)
    counts = [found[f"{name}_pixels"] for name in ("anomaly", "known", "void")]
    assert counts == [1, 2, 1] and found["images"] == 3


def test_different_options_do_not_merge():
    with pytest.raises(ValueError, match="exact"):
        PixelMetrics().merge(PixelMetrics(exact=True))
    with pytest.raises(ValueError, match="1.5"):
        PixelMetrics(tpr=(0.5, 1.5))


@pytest.mark.parametrize("budget", [None, RUNS, TINY], ids=["pixels", "runs", "cells"])
@pytest.mark.parametrize("max_points", [5, 50, 400])
def test_curves_are_thin_and_on_the_true_curves(budget, max_points):
    scores, labels = two_sided(30_000, np.random.default_rng(13))
    curve = counted(scores, labels, budget=budget).compute_with_curve(max_points)[1]
    assert len(curve["recall"]) <= max_points and curve["recall"][-1] == 1
    assert np.all(np.diff(curve["recall"]) >= 0) and np.all(np.diff(curve["threshold"]) < 0)
    for i in range(len(curve["recall"])):
        predicted = scores >= curve["threshold"][i]
        slack = 1e-3 if budget is TINY else 0
        assert curve["precision"][i] == pytest.approx(labels[predicted].mean(), abs=slack + 1e-12)
        recall = predicted[labels == 1].mean()
        assert curve["recall"][i] == pytest.approx(recall, abs=slack + 1e-12)
        fpr = predicted[labels == 0].mean()
        assert curve["false_positive_rate"][i] == pytest.approx(fpr, abs=slack + 1e-12)
    if max_points == 400:
        area = np.trapezoid(curve["recall"], curve["false_positive_rate"])
        assert area == pytest.approx(roc_auc_score(labels, scores), abs=5e-3)


def test_figures_and_curve_of_one_walk_are_those_of_two():
    scores, labels = two_sided(30_000, np.random.default_rng(16))
    for budget in (None, RUNS, TINY):
        metrics = counted(scores, labels, budget=budget)
        figures, curve = metrics.compute_with_curve(50)
        assert figures == metrics.compute()
        for name, values in metrics.compute_with_curve(50)[1].items():
            assert np.array_equal(curve[name], values)


def test_what_float64_cannot_hold_is_refused_with_how_many_would_merge():
    scores = 2**53 + np.arange(8)
    with pytest.raises(ValueError, match="a.npy: int64 .* of 8 distinct ones 5 would be left"):
        PixelMetrics().update(scores, np.arange(8) % 2, where="a.npy")
    PixelMetrics().update(np.array([2**53, 2**60, -(2**62)]), np.array([0, 1, 0]))
