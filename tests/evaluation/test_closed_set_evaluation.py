"""Closed-set counts against hand-made cases and scikit-learn."""

import numpy as np
import pytest
import small_sets
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score

from anoseg_d2.evaluation.closed_set_evaluation import (
    ClosedSetCounts,
    ClosedSetEvaluator,
    closed_set_figures,
)
from anoseg_d2.utils.files import read_json

NAMES = small_sets.CLASSES


def figures(sem_seg, label, confidence=None, **kwargs):
    counts = ClosedSetCounts(3)
    counts.update(np.array(sem_seg), np.array(label, np.uint8), confidence)
    return closed_set_figures(counts, NAMES, **kwargs)


def test_a_case_by_hand():
    # class 0: 2 right of 3, one predicted as 1; class 1: 1 right of 1
    found = figures([[0, 0], [1, 1]], [[0, 0], [0, 1]])
    assert found["IoU"] == {"road": pytest.approx(200 / 3), "car": 50.0, "sky": None}
    assert found["mIoU"] == pytest.approx((200 / 3 + 50) / 2)
    assert found["pixel_accuracy"] == 75.0
    assert found["mean_accuracy"] == pytest.approx((200 / 3 + 100) / 2)
    assert found["classes"] == 2 and found["mIoU_union"] == pytest.approx(found["mIoU"])


def test_a_class_that_never_occurs_is_an_error_of_the_true_one_but_not_averaged():
    found = figures([[0, 2]], [[0, 0]])
    assert found["mIoU"] == 50.0 and found["mIoU_union"] == 25.0
    assert found["IoU"]["sky"] is None


def test_present_classes_choose_the_mean():
    found = figures([[0, 2]], [[0, 0]], present=(0, 2))
    assert found["mIoU"] == 25.0
    assert found["IoU"] == {"road": 50.0, "car": None, "sky": 0.0}


def test_void_and_pasted_anomaly_are_left_out():
    assert figures([[0, 1, 2]], [[0, 255, 3]])["mIoU"] == 100.0


def test_only_void_gives_none_and_says_why():
    found = figures([[0, 1]], [[255, 3]])
    assert found["mIoU"] is None and found["pixel_accuracy"] is None and found["ECE"] is None
    assert "no labelled pixel" in found["why"]


def test_calibration_error_by_hand():
    # Bin of 0.9: three pixels, two right; bin of 0.3: one pixel, right.
    confidence = np.array([[0.9, 0.9], [0.9, 0.3]], np.float32)
    found = figures([[0, 0], [0, 1]], [[0, 0], [1, 1]], confidence)
    assert found["ECE"] == pytest.approx(100 * (abs(2.7 - 2) + abs(0.3 - 1)) / 4, abs=1e-4)


def test_without_confidence_the_calibration_error_is_none_and_says_why():
    found = figures([[0]], [[0]])
    assert found["ECE"] is None and "confidence" in found["why"]


def test_a_confidence_outside_of_its_range_is_refused():
    with pytest.raises(ValueError, match="not in 0..1"):
        figures([[0]], [[0]], np.array([[1.5]], np.float32))


def test_a_prediction_outside_of_the_classes_is_refused():
    with pytest.raises(ValueError, match="not in 0..2"):
        figures([[3]], [[0]])


@given(st.integers(0, 2**32 - 1))
def test_miou_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    label, sem_seg = rng.integers(0, 3, (2, 6, 7))
    present = np.unique(label)
    expected = jaccard_score(label.ravel(), sem_seg.ravel(), labels=present, average="macro")
    assert figures(sem_seg, label)["mIoU"] == pytest.approx(100 * expected)


def test_any_order_and_split_gives_the_same_bits():
    rng = np.random.default_rng(1)
    images = [
        (
            rng.integers(0, 3, (9, 9)),
            rng.integers(0, 5, (9, 9)).astype(np.uint8),
            rng.random((9, 9)),
        )
        for _ in range(6)
    ]
    one, two, three = (ClosedSetCounts(3) for _ in range(3))
    for image in images:
        one.update(*image)
    for index, image in enumerate(reversed(images)):
        (two if index % 3 else three).update(*image)
    three.merge(two)
    assert closed_set_figures(one, NAMES) == closed_set_figures(three, NAMES)


def test_evaluator_reads_labels_and_leaves_its_figures(tmp_path):
    label = np.array([[0, 1], [2, 255]], np.uint8)
    images = small_sets.closed_set(tmp_path, [label, label])
    evaluator = ClosedSetEvaluator("test_closed", tmp_path / "run")
    perfect = {
        "sem_seg": torch.tensor([[0, 1], [2, 0]]),
        "confidence": torch.ones(2, 2),
    }
    evaluator.process(images, [perfect, perfect])
    printed = evaluator.evaluate()
    assert printed["closed_set"]["mIoU"] == 100.0 and printed["closed_set"]["ECE"] == 0.0
    stored = read_json(tmp_path / "run/inference/test_closed/result.json")
    assert stored["result"] == evaluator.result and stored["result"]["images"] == 2


def test_a_prediction_of_another_size_names_the_image(tmp_path):
    images = small_sets.closed_set(tmp_path, [np.zeros((4, 4), np.uint8)])
    evaluator = ClosedSetEvaluator("test_closed")
    with pytest.raises(ValueError, match="test_closed_0.png.*2, 2.*4, 4"):
        evaluator.process(images, [{"sem_seg": torch.zeros(2, 2, dtype=torch.long)}])
