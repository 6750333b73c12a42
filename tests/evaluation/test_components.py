"""Component metrics: worked by hand, and against a direct transcription of the definitions."""

import itertools
import pickle
from collections import deque

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from anoseg_d2.evaluation.components import (
    OVERLAPS,
    ComponentMetrics,
    Track,
    component_metrics,
    component_overlaps,
)

NO_LIMIT = {"track": Track(1, 1)}


def flood(mask):
    """8-connected components as sets of pixels, by breadth-first search."""
    left = set(zip(*np.nonzero(mask), strict=True))
    components = []
    while left:
        queue, component = deque([left.pop()]), set()
        while queue:
            row, column = queue.popleft()
            component.add((row, column))
            for step in itertools.product((-1, 0, 1), repeat=2):
                neighbour = (row + step[0], column + step[1])
                if neighbour in left:
                    left.remove(neighbour)
                    queue.append(neighbour)
        components.append(component)
    return components


def transcribed(score, label, threshold, min_predicted, min_truth):
    """sIoU and PPV, set by set, as the definitions read."""
    truth = flood(label == 1)
    void = set(zip(*np.nonzero(label == 255), strict=True))
    void |= {pixel for k in truth if len(k) < min_truth for pixel in k}
    truth = [k for k in truth if len(k) >= min_truth]
    predicted = [p for p in flood((score > threshold) & (label != 255)) if len(p) >= min_predicted]
    predicted = [p - void for p in predicted if p - void]
    everything = set().union(*truth)
    siou = []
    for k in truth:
        touching = set().union(*(p for p in predicted if p & k))
        on_others = touching & (everything - k)
        siou.append(len(k & touching) / (len(k | touching) - len(on_others)))
    return sorted(siou), sorted(len(p & everything) / len(p) for p in predicted)


@given(
    hnp.arrays(np.float32, (9, 11), elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])),
    hnp.arrays(np.uint8, (9, 11), elements=st.sampled_from([0, 0, 1, 1, 255])),
    st.sampled_from([0.1, 0.25, 0.5, 0.8]),
    st.integers(1, 5),
    st.integers(1, 5),
)
@settings(max_examples=150, deadline=None)
def test_random_maps_equal_the_definitions(score, label, threshold, min_predicted, min_truth):
    limits = {"track": Track(min_predicted, min_truth)}
    found = component_metrics(score, label, threshold, **limits)
    siou, ppv = transcribed(score, label, threshold, min_predicted, min_truth)
    assert sorted(found["sIoU"]) == pytest.approx(siou, abs=1e-15)
    assert sorted(found["PPV"]) == pytest.approx(ppv, abs=1e-15)
    for i, overlap in enumerate(OVERLAPS):
        tp, fp = sum(s >= overlap for s in siou), sum(p < overlap for p in ppv)
        assert (found["tp"][i], found["fn"][i], found["fp"][i]) == (tp, len(siou) - tp, fp)


def slow_components(label, predicted, min_predicted: int, min_truth: int):
    """`component_overlaps` on whole images, sorting all pairs of ids, as the definitions read."""

    def components(mask, least):
        _, ids = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        small = np.bincount(ids.reshape(-1)) < least
        small[0] = False
        return ids, small[ids]

    truth, void = components(label == 1, min_truth)
    predicted, dropped = components(predicted & (label != 255), min_predicted)
    predicted[dropped] = 0
    counted = (label != 255) & ~void
    truth, predicted = truth[counted], predicted[counted]
    truth_size, predicted_size = np.bincount(truth), np.bincount(predicted)
    both = (truth > 0) & (predicted > 0)
    pairs, shared = np.unique(np.stack((truth[both], predicted[both])), axis=1, return_counts=True)
    covered = np.bincount(pairs[1], weights=shared, minlength=predicted_size.size)
    found = np.bincount(pairs[0], weights=shared, minlength=truth_size.size)
    sizes = np.bincount(pairs[0], weights=predicted_size[pairs[1]], minlength=truth_size.size)
    others = np.bincount(pairs[0], weights=covered[pairs[1]] - shared, minlength=truth_size.size)
    kept, seen = np.flatnonzero(truth_size[1:]) + 1, np.flatnonzero(predicted_size[1:]) + 1
    union = truth_size + sizes - found - others
    return found[kept] / union[kept], covered[seen] / predicted_size[seen]


def blobs(*boxes, size=(40, 60)):
    image = np.zeros(size, np.uint8)
    for top, left, bottom, right in boxes:
        image[top:bottom, left:right] = 1
    return image


def test_one_object_half_found():
    label, score = blobs((0, 0, 10, 10)), blobs((0, 5, 10, 15)).astype(np.float32)
    found = component_metrics(score, label, 0.5, **NO_LIMIT)
    assert found["sIoU"].tolist() == [50 / 150]
    assert found["PPV"].tolist() == [0.5]
    # TP at .25 and .30 only; PPV 0.5 is false above .50: at .55 .. .75
    assert found["tp"].tolist() == [1, 1] + [0] * 9
    assert found["fp"].tolist() == [0] * 6 + [1] * 5
    assert found["mean_F1"] == pytest.approx(2 / 11)


def test_one_prediction_over_two_objects_costs_neither_for_the_other():
    label = blobs((0, 0, 10, 10), (0, 20, 10, 40))
    score = blobs((0, 0, 10, 40)).astype(np.float32)
    found = component_metrics(score, label, 0.5, **NO_LIMIT)
    # 400 predicted, 100 of them on nothing: 100 / (400 - 200) and 200 / (400 - 100)
    assert sorted(found["sIoU"]) == [100 / 200, 200 / 300]
    assert found["PPV"].tolist() == [300 / 400]


def test_one_object_found_in_two_pieces_and_one_false_alarm():
    label = blobs((0, 0, 10, 30))
    score = blobs((0, 0, 10, 10), (0, 20, 10, 30), (20, 0, 30, 10)).astype(np.float32)
    found = component_metrics(score, label, 0.5, **NO_LIMIT)
    assert found["sIoU"].tolist() == [200 / 300]
    assert sorted(found["PPV"]) == [0, 1, 1]
    assert found["fp"].tolist() == [1] * 11


def test_diagonal_neighbours_are_one_component():
    label = np.eye(4, dtype=np.uint8)
    assert component_metrics(label * 1.0, label, 0.5, **NO_LIMIT)["sIoU"].tolist() == [1]


def test_the_threshold_itself_is_not_predicted():
    label = blobs((0, 0, 5, 5))
    assert component_metrics(label * 0.5, label, 0.5, **NO_LIMIT)["PPV"].size == 0
    cut = float(np.nextafter(np.float32(0.5), np.float32(0)))
    assert component_metrics(label * 0.5, label, cut, **NO_LIMIT)["PPV"].tolist() == [1]


def test_predictions_on_void_count_nowhere_and_do_not_connect():
    label = blobs((0, 0, 10, 10))
    label[:, 10:20] = 255
    score = blobs((0, 0, 10, 30)).astype(np.float32)
    found = component_metrics(score, label, 0.5, **NO_LIMIT)
    assert found["sIoU"].tolist() == [1]
    assert sorted(found["PPV"]) == [0, 1]


@pytest.mark.parametrize("track, predicted, truth", [("anomaly", 500, 100), ("obstacle", 50, 10)])
def test_size_limits_of_the_tracks(track, predicted, truth):
    def found(predicted_pixels, truth_pixels):
        score, label = np.zeros((20, 600), np.float32), np.zeros((20, 600), np.uint8)
        score[0, :predicted_pixels], label[10, :truth_pixels] = 1, 1
        metrics = component_metrics(score, label, 0.5, track)
        return metrics["PPV"].size, metrics["sIoU"].size

    assert found(predicted, truth) == (1, 1)
    assert found(predicted - 1, truth - 1) == (0, 0)


def test_a_small_object_turns_void_after_predictions_were_sized():
    label = blobs((0, 0, 3, 3), (20, 20, 30, 30))
    score = blobs((0, 0, 3, 3), (20, 20, 30, 30), (0, 30, 3, 33)).astype(np.float32)
    found = component_metrics(score, label, 0.5, Track(9, 10))
    assert found["sIoU"].tolist() == [1]
    assert sorted(found["PPV"]) == [0, 1]  # the one on the small object is gone, not false


def random_images(count, seed=0):
    generator = np.random.default_rng(seed)
    for _ in range(count):
        score = np.repeat(np.repeat(generator.random((6, 8), np.float32), 5, 0), 5, 1)
        label = np.repeat(np.repeat(generator.random((6, 8)) < 0.3, 5, 0), 5, 1).astype(np.uint8)
        yield score, label


def test_a_dataset_pools_its_components():
    metrics = ComponentMetrics("obstacle")
    siou, ppv = [], []
    for score, label in random_images(6):
        metrics.update(score, label, 0.6)
        one = component_metrics(score, label, 0.6, "obstacle")
        siou.extend(one["sIoU"])
        ppv.extend(one["PPV"])
    found = metrics.compute()
    assert found["sIoU"] == pytest.approx(np.mean(siou), abs=1e-15)
    assert found["PPV"] == pytest.approx(np.mean(ppv), abs=1e-15)
    f1 = []
    for overlap in OVERLAPS:
        tp = sum(s >= overlap for s in siou)
        f1.append(2 * tp / (tp + len(siou) + sum(p < overlap for p in ppv)))
    assert found["mean_F1"] == pytest.approx(np.mean(f1), abs=1e-15)
    assert found["images"] == 6 and found["truth_components"] == len(siou)


def test_any_order_and_split_gives_identical_figures():
    images = list(random_images(9, seed=1))
    whole = ComponentMetrics("obstacle")
    for image in images:
        whole.update(*image, 0.6)
    parts = []
    for i in (7, 2, 0, 8, 4, 1, 3, 6, 5):
        parts.append(ComponentMetrics("obstacle"))
        parts[-1].update(*images[i], 0.6)
    merged = ComponentMetrics("obstacle")
    for part in pickle.loads(pickle.dumps(parts)):
        merged.merge(part)
    assert merged.compute() == whole.compute()


def test_no_prediction_has_ppv_zero_and_no_truth_says_why():
    label = blobs((0, 0, 20, 20))
    metrics = ComponentMetrics()
    metrics.update(np.zeros(label.shape), label, 0.5)
    found = metrics.compute()
    assert (found["sIoU"], found["PPV"], found["mean_F1"]) == (0, 0, 0)
    metrics = ComponentMetrics()
    metrics.update(np.ones(label.shape), 0 * label, 0.5)
    found = metrics.compute()
    assert found["sIoU"] is found["PPV"] is found["mean_F1"] is None
    assert "no ground-truth component of 100 pixels in 1 images" in found["why"]
    assert found["fp"] == [1] * 11


def test_tensors_and_infinite_scores_are_taken():
    label = torch.from_numpy(blobs((0, 0, 5, 5))).long()
    score = torch.where(label == 1, torch.inf, -torch.inf).half()
    assert component_metrics(score, label, 0.0, **NO_LIMIT)["sIoU"].tolist() == [1]


@pytest.mark.parametrize(
    "score, label, options, message",
    [
        (np.full((2, 2), np.nan), np.zeros((2, 2), np.uint8), {}, "lot_3: 4 of 4 scores are NaN"),
        (np.zeros((2, 2)), np.full((2, 2), 9), {}, r"lot_3: .*found \[9\]"),
        (np.zeros((2, 3)), np.zeros((2, 2), np.uint8), {}, "lot_3: .*differ in shape"),
        (np.zeros(4), np.zeros(4, np.uint8), {}, r"lot_3: a label must be \(H, W\)"),
        (np.zeros((2, 2)), np.zeros((2, 2), np.uint8), {"track": "sky"}, "known: anomaly"),
        (np.zeros((2, 2)), np.zeros((2, 2), np.uint8), {"threshold": np.nan}, "threshold is NaN"),
    ],
)
def test_wrong_input_is_refused_by_name(score, label, options, message):
    with pytest.raises(ValueError, match=message):
        component_metrics(score, label, **{"threshold": 0.5, "where": "lot_3", **options})


@given(
    hnp.arrays(bool, (12, 14), elements=st.sampled_from([True, False])),
    hnp.arrays(np.uint8, (12, 14), elements=st.sampled_from([0, 0, 1, 1, 255])),
    st.integers(1, 4),
    st.integers(1, 4),
)
@settings(max_examples=150, deadline=None)
def test_overlaps_are_the_bits_of_the_slow_version(predicted, label, min_predicted, min_truth):
    fast = component_overlaps(label, predicted, Track(min_predicted, min_truth))
    slow = slow_components(label, predicted, min_predicted, min_truth)
    for one, other in zip(fast, slow, strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other)


def test_many_pairs_are_counted():
    label = np.zeros((200, 200), np.uint8)
    label[::2, ::2] = 1
    for predicted in (label == 1, label == 0, np.ones(label.shape, bool)):
        fast = component_overlaps(label, predicted, Track(1, 1))
        for one, other in zip(fast, slow_components(label, predicted, 1, 1), strict=True):
            assert np.array_equal(one, other)


def test_a_threshold_between_two_float32_is_not_rounded_to_one_of_them():
    score = np.full((40, 40), np.float32(0.1))
    label = np.ones((40, 40), np.uint8)
    below = np.nextafter(np.float64(np.float32(0.1)), -np.inf)
    assert np.float32(below) == np.float32(0.1)
    assert component_metrics(score, label, below)["mean_F1"] == 1.0
    assert component_metrics(score, label, np.float64(np.float32(0.1)))["mean_F1"] == 0.0
