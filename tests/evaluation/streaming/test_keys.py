"""Scores as integers of the same order."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scored_pixels import (
    FIGURES,
    RUNS,
    assert_contains,
    counted,
    reference,
    saturated,
    state_bytes,
    values,
)

from anoseg_d2.evaluation.metrics import PixelMetrics
from anoseg_d2.evaluation.streaming.keys import keys_to_scores, scores_to_keys


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_any_dtype_count_as_their_float32_values(dtype):
    scores = torch.randn(40, 50, generator=torch.Generator().manual_seed(9)).to(dtype)
    labels = torch.arange(2000).reshape(40, 50) % 2
    metrics, same = PixelMetrics(), PixelMetrics()
    metrics.update(scores.requires_grad_(), labels)
    same.update(scores.detach().float().numpy(), labels.numpy().astype(np.uint8))
    assert state_bytes(metrics) == state_bytes(same)


def test_signed_zeros_tie_and_infinities_are_extremes():
    scores = np.array([np.inf, 3e38, 1e-45, 0.0, -0.0, -1e-45, -np.inf], np.float32)
    keys = scores_to_keys(scores).astype(np.int64)
    assert keys[3] == keys[4]
    assert np.all(np.diff(keys[[6, 5, 4, 2, 1, 0]]) > 0)
    assert np.array_equal(keys_to_scores(keys), scores)


@given(st.lists(values, min_size=2, max_size=50))
def test_keys_order_as_scores_and_return_to_them(scores):
    scores = np.array(scores, np.float32)
    keys = scores_to_keys(scores)
    assert np.array_equal(keys_to_scores(keys), scores)
    assert np.array_equal(keys[:, None] < keys, scores[:, None] < scores)


def test_float64_beyond_float32_is_ranked_and_not_infinite():
    metrics = PixelMetrics()
    metrics.update(np.array([1e300, 2e300, -1e300, np.inf]), np.array([0, 1, 0, 0]))
    found = metrics.compute()
    assert found["infinite_pixels"] == 1 and found["auroc"] == pytest.approx(2 / 3)
    assert found["threshold95"] == 2e300


@pytest.mark.parametrize("options", [{}, {"budget": RUNS}, {"exact": True}], ids=str)
def test_float64_is_ranked_as_it_is(options):
    """Cast to float32, these were one tie: AUPRC 6.04 with bounds 6.04 .. 6.04, not 50.34."""
    scores, labels = saturated(4000, np.random.default_rng(20))
    assert np.unique(scores.astype(np.float32)).size < 0.2 * np.unique(scores).size
    found, truth = counted(scores, labels, parts=3, **options).compute(), reference(scores, labels)
    assert_contains(found, truth)
    for name in FIGURES:
        assert found[name] == pytest.approx(truth[name], abs=1e-12)
    assert found["threshold95"] == truth["threshold"]
    tied = reference(scores.astype(np.float32), labels)
    assert abs(tied["auprc"] - truth["auprc"]) > 0.05, "a cast would not be noticed"


@pytest.mark.parametrize("first", [2**24, 2**40], ids=str)
def test_integers_are_ranked_as_they_are(first):
    scores = first + np.arange(400, dtype=np.int64)
    labels = np.arange(400) % 2  # neighbours of different labels, which float32 would merge
    found, truth = counted(scores, labels).compute(), reference(scores, labels)
    assert found["auroc"] == pytest.approx(truth["auroc"], abs=1e-12)
    assert found["auroc"] != pytest.approx(reference(np.float32(scores), labels)["auroc"])
