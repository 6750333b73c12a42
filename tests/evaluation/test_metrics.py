"""PixelMetrics against scikit-learn, its bounds, and its independence of order and split."""

import dataclasses
import functools
import itertools
import multiprocessing
import pickle
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from anoseg_d2.evaluation.metrics import PixelMetrics
from anoseg_d2.evaluation.streaming.counts import Budget, PagedSketch
from anoseg_d2.evaluation.streaming.keys import keys_to_scores, scores_to_keys

# Tables so small that a few thousand pixels fill them: 2 ** 18 cells, shared low bits.
TINY = Budget(runs=64, pages=1 << 10, page_bits=8, fold_bits=14, kept_pixels=0)
COARSE = Budget(runs=8, pages=4, page_bits=8, fold_bits=10, kept_pixels=0)
# Pixels are not kept, distinct scores are.
RUNS = Budget(kept_pixels=0)
# Pixels are kept, up to a number that a test passes at some point.
FEW = Budget(runs=64, pages=1 << 10, page_bits=8, fold_bits=14, kept_pixels=7000)
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


def kind(metrics) -> str:
    """How the pixels are held: as `pixels`, as `runs` of equal scores, or in the `sketch`."""
    return metrics.state_dict()["counts"]["kind"]


def assert_contains(found: dict, truth: dict):
    for name in FIGURES:
        low, high = found[f"{name}_bounds"]
        assert low <= truth[name] <= high, (name, low, truth[name], high)
        assert low <= found[name] <= high, name


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


@pytest.mark.parametrize("budget", [None, RUNS], ids=["pixels", "runs"])
@given(pixels=pixel_sets())
@settings(max_examples=150, deadline=None)
def test_few_distinct_scores_equal_scikit_learn(budget, pixels):
    found, truth = counted(*pixels, budget=budget).compute(), reference(*pixels)
    for name in FIGURES:
        assert found[name] == pytest.approx(truth[name], abs=1e-12)
    assert found["threshold95"] == truth["threshold"]
    assert_contains(found, truth)


@given(pixel_sets(30, 120))
@settings(max_examples=80, deadline=None)
def test_bounds_contain_the_truth_even_with_absurdly_small_tables(pixels):
    metrics = counted(*pixels, budget=COARSE)
    assert_contains(metrics.compute(), reference(*pixels))


@given(pixel_sets(), st.sampled_from([0.1, 0.5, 0.8, 0.95, 1.0]))
@settings(max_examples=80, deadline=None)
def test_rates_are_reached_at_the_first_threshold_of_scikit_learn(pixels, rate):
    point = counted(*pixels, tpr=(rate,)).compute()["at_tpr"][rate]
    truth = reference(*pixels, rate)
    assert point["fpr"] == pytest.approx(truth["fpr95"], abs=1e-12)
    labelled = pixels[1] != 255
    predicted = pixels[0][labelled] >= truth["threshold"]
    precision = pixels[1][labelled][predicted].mean()
    assert point["precision"] == pytest.approx(precision, abs=1e-12)


@given(pixel_sets())
@settings(max_examples=60, deadline=None)
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
    budget = Budget(runs=1 << 8, kept_pixels=0)  # pass over to the sketch, of full size
    metrics = counted(scores, labels, parts=3, budget=budget)
    assert kind(metrics) == "sketch"
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


def test_the_fold_is_what_resolves_a_saturated_score():
    scores, labels = saturated_rba(300_000, np.random.default_rng(3))
    metrics = counted(scores, labels, budget=TINY)
    low, high = metrics.compute()["fpr95_bounds"]
    state = metrics.state_dict()
    size = state["counts"]["fold"]["size"]
    full = np.full(size, np.iinfo(np.uint32).max, np.uint32)  # nothing left to learn from it
    state["counts"]["fold"] = {"size": size, "values": full}
    coarse_low, coarse_high = PixelMetrics.from_state(state).compute()["fpr95_bounds"]
    assert coarse_low <= low <= high <= coarse_high
    assert high - low < (coarse_high - coarse_low) / 3


def state_bytes(metrics):
    return pickle.dumps(metrics.state_dict())


@pytest.mark.parametrize(
    "budget", [None, RUNS, FEW, TINY, COARSE], ids=["pixels", "runs", "few", "tiny", "coarse"]
)
def test_any_order_and_any_merge_tree_gives_identical_bytes(budget):
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


def test_a_late_flood_of_scores_leaves_no_trace_of_when_it_came():
    generator = np.random.default_rng(5)
    few = np.full(5000, 0.25, np.float32), (np.arange(5000) % 2).astype(np.uint8)
    flood = generator.integers(0, 2**32, 5000, dtype=np.uint32)
    flood = np.nan_to_num(flood.view(np.float32)), few[1]
    first, last = (counted(*few, budget=COARSE) for _ in range(2))
    first.update(*flood)
    last = counted(*flood, budget=COARSE).merge(last)
    assert state_bytes(first) == state_bytes(last)


def test_wide_counters_take_over_before_narrow_ones_overflow(monkeypatch):
    monkeypatch.setattr(PagedSketch, "narrow_pixels", 10_000)
    budget = TINY
    images = [make(4000, np.random.default_rng(6)) for make in SHAPES]
    metrics = PixelMetrics(budget=budget)
    for image in images:
        metrics.update(*image)
    assert metrics.state_dict()["counts"]["wide"]
    scores, labels = (np.concatenate(part) for part in zip(*images, strict=True))
    assert_contains(metrics.compute(), reference(scores, labels))
    late = PixelMetrics(budget=budget)
    for image in reversed(images):
        late.merge(counted(*image, budget=budget))
    assert state_bytes(late) == state_bytes(metrics)


def test_counts_beyond_32_bits_are_kept():
    scores, labels = two_sided(20_000, np.random.default_rng(7))
    metrics = counted(scores, labels, budget=TINY)
    doublings = 20  # 2e4 * 2 ** 20 = 2.1e10 pixels
    for _ in range(doublings):
        metrics.merge(pickle.loads(pickle.dumps(metrics)))
    assert metrics.compute()["known_pixels"] == int((labels == 0).sum()) << doublings
    assert_contains(metrics.compute(), reference(scores, labels))


@pytest.mark.parametrize("budget", [None, RUNS, TINY], ids=["pixels", "runs", "sketch"])
def test_merging_an_object_into_itself_doubles_it(budget):
    scores, labels = two_sided(3000, np.random.default_rng(8))
    metrics = counted(scores, labels, budget=budget)
    metrics.merge(metrics)
    twice = counted(np.tile(scores, 2), np.tile(labels, 2), budget=budget, parts=2)
    assert state_bytes(metrics) == state_bytes(twice)


def _worker(shard):
    metrics = PixelMetrics(budget=TINY)
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


@pytest.mark.parametrize("make", SHAPES)
def test_exact_equals_scikit_learn(make, tmp_path):
    scores, labels = make(60_000, np.random.default_rng(10))
    labels[::17] = 255
    metrics = counted(scores, labels, parts=4, exact=True, spill_dir=tmp_path)
    found, truth = metrics.compute(), reference(scores, labels)
    for name in FIGURES:
        assert found[name] == pytest.approx(truth[name], abs=1e-12)
    files = [file for folder in tmp_path.iterdir() for file in folder.iterdir()]
    assert sum(f.stat().st_size for f in files) == 4 * (labels != 255).sum()


@given(pixel_sets())
@settings(max_examples=20, deadline=None)
def test_exact_equals_scikit_learn_on_ties_and_extremes(pixels):
    found, truth = counted(*pixels, exact=True).compute(), reference(*pixels)
    for name in FIGURES:
        assert found[name] == pytest.approx(truth[name], abs=1e-12)


def test_exact_merges_through_disk_and_leaves_nothing_behind(tmp_path):
    scores, labels = two_sided(5000, np.random.default_rng(11))
    whole = counted(scores, labels, exact=True, spill_dir=tmp_path)
    half = counted(scores[:2000], labels[:2000], exact=True, spill_dir=tmp_path)
    rest = counted(scores[2000:], labels[2000:], exact=True, spill_dir=tmp_path)
    merged = pickle.loads(pickle.dumps(half)).merge(rest)
    assert len(list(tmp_path.iterdir())) == 4
    assert {**merged.compute(), "images": 1} == whole.compute()
    del whole, half, rest, merged
    assert not list(tmp_path.iterdir())


def test_exact_says_what_it_takes_and_refuses_a_full_disk(tmp_path, caplog, monkeypatch):
    with caplog.at_level("INFO"):
        metrics = PixelMetrics(exact=True, spill_dir=tmp_path)
    assert "bytes per pixel" in caplog.text and str(tmp_path) in caplog.text
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(OSError, match="spill_dir"):
        metrics.update(*two_sided(100, np.random.default_rng(0)))
    del metrics
    assert not list(tmp_path.iterdir())


def test_exact_state_names_the_way_out_once_its_files_are_gone(tmp_path):
    state = counted(*two_sided(100, np.random.default_rng(12)), exact=True).state_dict()
    with pytest.raises(FileNotFoundError, match="until they are merged"):
        PixelMetrics.from_state(state)


def test_different_options_do_not_merge():
    with pytest.raises(ValueError, match="exact"):
        PixelMetrics().merge(PixelMetrics(exact=True))
    with pytest.raises(ValueError, match="1.5"):
        PixelMetrics(tpr=(0.5, 1.5))


@pytest.mark.parametrize("budget", [None, RUNS, TINY], ids=["pixels", "runs", "sketch"])
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
    assert kind(metrics) == "sketch"
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
    assert kind(metrics) == "sketch"  # asked for here: the answer is a copy of all counts


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
    assert (kind(whole) == "pixels") == (offset <= 0)
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


def test_figures_and_curve_of_one_walk_are_those_of_two():
    scores, labels = two_sided(30_000, np.random.default_rng(16))
    for budget in (None, RUNS, TINY):
        metrics = counted(scores, labels, budget=budget)
        figures, curve = metrics.compute_with_curve(50)
        assert figures == metrics.compute()
        for name, values in metrics.compute_with_curve(50)[1].items():
            assert np.array_equal(curve[name], values)


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


def saturated(pixels, generator):
    """Probabilities in float64, most of which are 1 in float32."""
    labels = (generator.random(pixels) < 0.2).astype(np.uint8)
    return 1 - 10.0 ** -generator.uniform(np.where(labels, 10, 7), 13), labels


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


@pytest.mark.parametrize("budget", [TINY, COARSE], ids=["tiny", "coarse"])
@pytest.mark.parametrize("make", [saturated, two_sided, tiny_probabilities])
def test_bounds_hold_float64_where_scores_are_counted_in_tables(make, budget):
    scores, labels = make(6000, np.random.default_rng(21))
    scores = scores.astype(np.float64) * (1 + 1e-12)
    metrics = counted(scores, labels, parts=2, budget=budget)
    assert kind(metrics) == "sketch"
    found = metrics.compute()
    assert_contains(found, reference(scores, labels))
    assert (scores[labels == 1] >= found["threshold95"]).mean() >= 0.95


@pytest.mark.parametrize(
    "budget", [None, RUNS, FEW, TINY, COARSE], ids=["pixels", "runs", "few", "tiny", "coarse"]
)
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


def test_exact_takes_float64_among_float32(tmp_path):
    generator = np.random.default_rng(23)
    images = [two_sided(3000, generator), saturated(2000, generator), narrow(3000, generator)]
    metrics = PixelMetrics(exact=True, spill_dir=tmp_path)
    for image in images[1:]:
        metrics.update(*image)
    metrics.merge(counted(*images[0], exact=True, spill_dir=tmp_path))
    truth = reference(*(np.concatenate(part) for part in zip(*images, strict=True)))
    for _ in range(2):  # the files are sorted by the first reading
        found = metrics.compute()
        assert all(found[name] == pytest.approx(truth[name], abs=1e-12) for name in FIGURES)
        assert found["threshold95"] == truth["threshold"]


@pytest.mark.parametrize("first", [2**24, 2**40], ids=str)
def test_integers_are_ranked_as_they_are(first):
    scores = first + np.arange(400, dtype=np.int64)
    labels = np.arange(400) % 2  # neighbours of different labels, which float32 would merge
    found, truth = counted(scores, labels).compute(), reference(scores, labels)
    assert found["auroc"] == pytest.approx(truth["auroc"], abs=1e-12)
    assert found["auroc"] != pytest.approx(reference(np.float32(scores), labels)["auroc"])


def test_what_float64_cannot_hold_is_refused_with_how_many_would_merge():
    scores = 2**53 + np.arange(8)
    with pytest.raises(ValueError, match="a.npy: int64 .* of 8 distinct ones 5 would be left"):
        PixelMetrics().update(scores, np.arange(8) % 2, where="a.npy")
    PixelMetrics().update(np.array([2**53, 2**60, -(2**62)]), np.array([0, 1, 0]))
