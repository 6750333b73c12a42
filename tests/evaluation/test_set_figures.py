"""Figures of one set: scikit-learn's on all pixels, and components at the threshold of the set."""

import numpy as np
import pytest
import small_sets
from detectron2.data import MetadataCatalog
from evaluated_sets import labels_of, outputs_of, pooled, run
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from anoseg_d2.evaluation.components import ComponentMetrics
from anoseg_d2.evaluation.metrics import PixelMetrics


def test_components_are_counted_at_the_best_threshold_of_the_whole_set(tmp_path):
    images = small_sets.anomaly_set(tmp_path)
    outputs = outputs_of(images, names=("msp",), signal=6.0)
    evaluator, _ = run(images, outputs)
    pixels, expected = PixelMetrics(), ComponentMetrics("anomaly")
    for label, output in zip(labels_of(images), outputs, strict=True):
        pixels.update(output["scores"]["msp"], label)
    cut = pixels.compute()["best_f1_cut"]
    for label, output in zip(labels_of(images), outputs, strict=True):
        expected.update(output["scores"]["msp"], label, cut)
    found, entry = expected.compute(), evaluator.result["scores"]["msp"]
    assert entry["sIoU"] == pytest.approx(100 * found["sIoU"]) and entry["sIoU"] >= 0
    assert entry["mean_F1"] == pytest.approx(100 * found["mean_F1"])


def test_components_are_stated_at_three_overlaps(tmp_path):
    images = small_sets.anomaly_set(tmp_path)
    outputs = outputs_of(images, names=("msp",), signal=6.0)
    evaluator, _ = run(images, outputs)
    expected = ComponentMetrics("anomaly")
    pixels = PixelMetrics()
    for label, output in zip(labels_of(images), outputs, strict=True):
        pixels.update(output["scores"]["msp"], label)
    for label, output in zip(labels_of(images), outputs, strict=True):
        expected.update(output["scores"]["msp"], label, pixels.compute()["best_f1_cut"])
    found = expected.compute()
    stated = evaluator.result["scores"]["msp"]["components_at"]
    for name, index in (("25", 0), ("50", 5), ("75", 10)):
        assert stated[name] == {
            "F1": 100 * found["F1"][index],
            "TP": found["tp"][index],
            "FN": found["fn"][index],
            "FP": found["fp"][index],
        }


def test_the_obstacle_track_has_its_own_sizes(tmp_path):
    images = small_sets.anomaly_set(tmp_path)
    outputs = [{"scores": {"s": (label == 1).astype(np.float32)}} for label in labels_of(images)]
    whole, _ = run(images, outputs)  # 144 pixels: too small a prediction on the anomaly track
    MetadataCatalog.get("test_anomaly").set(component_track="obstacle")
    small, _ = run(images, outputs)
    assert whole.result["scores"]["s"]["mean_F1"] == 0.0
    assert small.result["scores"]["s"]["mean_F1"] == 100.0


def test_figures_are_scikit_learns_on_all_pixels(tmp_path):
    images = small_sets.anomaly_set(tmp_path)
    outputs = outputs_of(images)
    evaluator, _ = run(images, outputs)
    for name, entry in evaluator.result["scores"].items():
        labels, scores = pooled(images, outputs, name)
        fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
        assert entry["auprc"] == pytest.approx(100 * average_precision_score(labels, scores))
        assert entry["auroc"] == pytest.approx(100 * roc_auc_score(labels, scores))
        assert entry["fpr95"] == pytest.approx(100 * fpr[np.argmax(tpr >= 0.95)])
        lowest, highest = entry["auprc_bounds"]
        assert lowest <= entry["auprc"] <= highest


def test_exact_closes_the_bounds(tmp_path):
    images = small_sets.anomaly_set(tmp_path)
    outputs = outputs_of(images, names=("msp",))
    evaluator, _ = run(images, outputs, tmp_path / "run", exact=True, components=False)
    labels, scores = pooled(images, outputs, "msp")
    expected = 100 * average_precision_score(labels, scores)
    assert evaluator.result["scores"]["msp"]["auprc"] == pytest.approx(expected, abs=1e-9)
