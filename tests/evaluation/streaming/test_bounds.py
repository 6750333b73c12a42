"""Bounds contain scikit-learn's figures, however small the tables."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_pixels import (
    COARSE,
    FIGURES,
    SHAPES,
    TINY,
    assert_contains,
    counted,
    kind,
    pixel_sets,
    reference,
    saturated,
    tiny_probabilities,
    two_sided,
)

from anoseg_d2.evaluation.streaming.counts import Budget


@given(pixel_sets(30, 120))
@settings(max_examples=30, deadline=None)
def test_bounds_contain_the_truth_even_with_absurdly_small_tables(pixels):
    metrics = counted(*pixels, budget=COARSE)
    assert_contains(metrics.compute(), reference(*pixels))


@given(pixel_sets(), st.sampled_from([0.1, 0.5, 0.8, 0.95, 1.0]))
@settings(max_examples=30, deadline=None)
def test_rates_are_reached_at_the_first_threshold_of_scikit_learn(pixels, rate):
    point = counted(*pixels, tpr=(rate,)).compute()["at_tpr"][rate]
    truth = reference(*pixels, rate)
    assert point["fpr"] == pytest.approx(truth["fpr95"], abs=1e-12)
    assert point["threshold"] == truth["threshold"]


@given(pixel_sets())
@settings(max_examples=30, deadline=None)
def test_best_f1_is_reached_at_its_threshold_and_above_its_cut(pixels):
    scores, labels = pixels
    found = counted(scores, labels).compute()
    kept = labels != 255
    sides = [scores >= found["best_f1_threshold"]]
    if np.isfinite(found["best_f1_threshold"]):
        sides.append(scores > found["best_f1_cut"])
    for predicted in sides:
        tp = (predicted & (labels == 1)).sum()
        f1 = 2 * tp / ((labels == 1).sum() + (predicted & kept).sum())
        assert f1 == pytest.approx(found["best_f1"], abs=1e-12)


@pytest.mark.parametrize("make", SHAPES)
def test_large_sets_are_bounded_more_closely_than_promised(make):
    scores, labels = make(500_000, np.random.default_rng(1))
    metrics = counted(scores, labels, parts=3, budget=Budget(kept_pixels=0, cells=1 << 17))
    found, truth = metrics.compute(), reference(scores, labels)
    assert_contains(found, truth)
    widths = {name: np.subtract(*found[f"{name}_bounds"][::-1]) for name in FIGURES}
    assert widths["auprc"] < 1e-4
    assert widths["fpr95"] < 1e-3


@pytest.mark.parametrize("make", SHAPES)
@pytest.mark.parametrize("budget", [TINY, COARSE], ids=["tiny", "coarse"])
def test_bounds_contain_the_truth_when_tables_overflow(make, budget):
    scores, labels = make(20_000, np.random.default_rng(2))
    found = counted(scores, labels, budget=budget).compute()
    assert_contains(found, reference(scores, labels))


@pytest.mark.parametrize("budget", [TINY, COARSE], ids=["tiny", "coarse"])
@pytest.mark.parametrize("make", [saturated, two_sided, tiny_probabilities])
def test_bounds_hold_float64_where_scores_are_counted_in_tables(make, budget):
    scores, labels = make(6000, np.random.default_rng(21))
    scores = scores.astype(np.float64) * (1 + 1e-12)
    metrics = counted(scores, labels, parts=2, budget=budget)
    assert kind(metrics) == "cells"
    found = metrics.compute()
    assert_contains(found, reference(scores, labels))
    assert (scores[labels == 1] >= found["threshold95"]).mean() >= 0.95
