"""Counts that add up in any order, in bounded memory."""

import dataclasses
import functools
import itertools
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_pixels import (
    COARSE,
    RUNS,
    SHAPES,
    TINY,
    assert_contains,
    counted,
    kind,
    narrow,
    reference,
    saturated,
    state_bytes,
    two_sided,
)

from anoseg_d2.evaluation.metrics import PixelMetrics
from anoseg_d2.evaluation.streaming.counts import Budget

# Pixels are kept, up to a number that a test passes at some point.
FEW = Budget(kept_pixels=7000, cells=1 << 11)


@pytest.mark.parametrize("budget", [None, RUNS], ids=["pixels", "runs"])
def test_any_order_and_any_merge_tree_gives_identical_figures(budget):
    generator = np.random.default_rng(4)
    images = [make(3000, generator) for make in SHAPES]
    whole = PixelMetrics(budget=budget)
    for image in images:
        whole.update(*image)
    expected, figures = state_bytes(whole), whole.compute()
    for order in itertools.islice(itertools.permutations(range(len(images))), 0, 120, 13):
        parts = [counted(*images[i], budget=budget) for i in order]
        left = PixelMetrics(budget=budget)
        for part in parts:
            left.merge(part)
        right = parts[0].merge(parts[1].merge(parts[2])).merge(parts[3].merge(parts[4]))
        assert state_bytes(left) == state_bytes(right) == expected
        assert left.compute() == figures


@pytest.mark.parametrize("budget", [FEW, TINY, COARSE], ids=["few", "tiny", "coarse"])
def test_bounds_hold_in_any_order_and_any_merge_tree(budget):
    generator = np.random.default_rng(4)
    images = [make(3000, generator) for make in SHAPES]
    truth = reference(*(np.concatenate(part) for part in zip(*images, strict=True)))
    for order in itertools.islice(itertools.permutations(range(len(images))), 0, 120, 31):
        parts = [counted(*images[i], budget=budget) for i in order]
        merged = parts[0].merge(parts[1].merge(parts[2])).merge(parts[3].merge(parts[4]))
        assert_contains(merged.compute(), truth)
        assert merged.compute()["known_pixels"] == sum((labels == 0).sum() for _, labels in images)


def test_a_late_flood_of_scores_leaves_no_trace_of_when_it_came():
    generator = np.random.default_rng(5)
    few = np.full(5000, 0.25, np.float32), (np.arange(5000) % 2).astype(np.uint8)
    flood = generator.integers(0, 2**32, 5000, dtype=np.uint32)
    flood = np.nan_to_num(flood.view(np.float32)), few[1]
    first, last = (counted(*few, budget=RUNS) for _ in range(2))
    first.update(*flood)
    last = counted(*flood, budget=RUNS).merge(last)
    assert state_bytes(first) == state_bytes(last)


def test_counts_beyond_32_bits_are_kept():
    scores, labels = two_sided(20_000, np.random.default_rng(7))
    metrics = counted(scores, labels, budget=TINY)
    doublings = 20  # 2e4 * 2 ** 20 = 2.1e10 pixels
    for _ in range(doublings):
        metrics.merge(pickle.loads(pickle.dumps(metrics)))
    assert metrics.compute()["known_pixels"] == int((labels == 0).sum()) << doublings
    assert_contains(metrics.compute(), reference(scores, labels))


@pytest.mark.parametrize("budget", [None, RUNS], ids=["pixels", "runs"])
def test_merging_an_object_into_itself_doubles_it(budget):
    scores, labels = two_sided(3000, np.random.default_rng(8))
    metrics = counted(scores, labels, budget=budget)
    metrics.merge(metrics)
    twice = counted(np.tile(scores, 2), np.tile(labels, 2), budget=budget, parts=2)
    assert state_bytes(metrics) == state_bytes(twice)


@pytest.mark.slow
def test_memory_stays_under_128_megabytes_and_does_not_grow():
    generator = np.random.default_rng(14)
    images = [two_sided(700_000, generator) for _ in range(3)] * 6
    held = []
    tracemalloc.start()
    try:
        metrics = PixelMetrics()
        for image in images:
            metrics.update(*image)
            held.append(tracemalloc.get_traced_memory()[0])
        metrics.compute()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert kind(metrics) == "cells"
    assert peak < 128e6
    assert held[-1] < held[-2] + 1e5


def at_the_limit(scores, labels, pixels=10_000_000):
    """Metrics that keep as many pixels as they may, most of them with a score of their own."""
    metrics = PixelMetrics()
    for start in range(0, pixels, scores.size):
        part = slice(0, pixels - start)
        metrics.update(scores[part] * np.float32(1 + start / pixels), labels[part])
    return metrics


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.02, 0.98])
@pytest.mark.parametrize("pixels", [1_000_000, 20_000], ids=["large", "small"])
def test_memory_stays_under_128_megabytes_on_every_way_over_the_limit(fraction, pixels):
    generator = np.random.default_rng(17)
    scores = generator.standard_normal(pixels, np.float32)
    labels = (generator.random(pixels) < fraction).astype(np.uint8)
    more = generator.standard_normal(500_000, np.float32), np.zeros(500_000, np.uint8)
    tracemalloc.start()
    try:
        metrics = at_the_limit(scores, labels)
        metrics.compute_with_curve(400)  # afterwards the pixels are in one array
        assert metrics.pixels[0] + metrics.pixels[1] == metrics.budget.kept_pixels
        metrics.update(*more)
        metrics.compute()
        assert tracemalloc.get_traced_memory()[1] < 128e6
    finally:
        tracemalloc.stop()
    assert kind(metrics) == "cells"


@pytest.mark.slow
def test_merging_two_halves_over_the_limit_takes_no_more_memory_than_one_object():
    scores, labels = two_sided(1_000_000, np.random.default_rng(18))
    half = 6_000_000
    other = at_the_limit(scores, labels, half)
    tracemalloc.start()
    try:
        at_the_limit(scores, labels, half).merge(other).compute()
        assert tracemalloc.get_traced_memory()[1] < 128e6
    finally:
        tracemalloc.stop()


@given(st.data(), st.integers(-3, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_any_split_with_figures_in_between_is_identical_on_both_sides_of_the_limit(
    data, offset, seed
):
    limit = 400
    budget = dataclasses.replace(FEW, kept_pixels=limit)
    scores, labels = two_sided(limit + offset, np.random.default_rng(seed))
    labels[:2] = 0, 1
    whole = counted(scores, labels, budget=budget)
    assert_contains(whole.compute(), reference(scores, labels))
    cuts = sorted(data.draw(st.lists(st.integers(0, scores.size), max_size=6)))
    pieces = list(zip(np.split(scores, cuts), np.split(labels, cuts), strict=True))
    parts = [PixelMetrics(budget=budget) for _ in range(data.draw(st.integers(1, 3)))]
    for piece in data.draw(st.permutations(pieces)):
        part = data.draw(st.sampled_from(parts))
        part.update(*piece)
        if data.draw(st.booleans()):
            part.compute()
    merged = functools.reduce(PixelMetrics.merge, data.draw(st.permutations(parts)))
    merged.images = whole.images  # of which there are as many as pieces
    assert state_bytes(merged) == state_bytes(whole)
    assert merged.compute() == whole.compute()


@pytest.mark.parametrize("make", SHAPES)
def test_kept_pixels_equal_counted_scores(make):
    scores, labels = make(30_000, np.random.default_rng(15))
    kept, runs = (counted(scores, labels, 3, budget=b).compute() for b in (None, RUNS))
    assert kept == runs  # to the last bit


def test_many_small_images_are_kept_in_few_arrays():
    metrics, images = PixelMetrics(), 3000
    tracemalloc.start()
    try:
        for _ in range(images):
            metrics.update(np.zeros(4, np.float32), np.array([0, 0, 1, 255], np.uint8))
        # Three pixels take 12 bytes; an array of their own would take a hundred more.
        assert tracemalloc.get_traced_memory()[0] < 50 * images
    finally:
        tracemalloc.stop()
    assert metrics.compute()["anomaly_pixels"] == images


@pytest.mark.parametrize("budget", [None, RUNS], ids=["pixels", "runs"])
def test_float64_among_float32_leaves_no_trace_of_when_it_came(budget):
    generator = np.random.default_rng(22)
    images = [two_sided(3000, generator), saturated(2000, generator), narrow(3000, generator)]
    parts = [[counted(*image, budget=budget) for image in images] for _ in range(2)]
    whole = PixelMetrics(budget=budget)
    for image in images:
        whole.update(*image)
    backwards = parts[0][2].merge(parts[0][1]).merge(parts[0][0])
    forwards = parts[1][0].merge(parts[1][2].merge(parts[1][1]))
    assert state_bytes(whole) == state_bytes(backwards) == state_bytes(forwards)
    assert state_bytes(pickle.loads(pickle.dumps(whole))) == state_bytes(whole)
    scores, labels = (np.concatenate(part) for part in zip(*images, strict=True))
    assert_contains(whole.compute(), reference(scores, labels))
    assert forwards.compute() == whole.compute()
