"""Score maps kept for the second pass."""

from collections import namedtuple

import numpy as np
import small_sets
from evaluated_sets import outputs_of, run

from anoseg_d2.evaluation.kept_maps import KeptMaps


def test_too_full_a_disk_leaves_components_out_and_says_why(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr("anoseg_d2.evaluation.kept_maps.shutil.disk_usage", lambda path: usage)
    images = small_sets.anomaly_set(tmp_path)
    evaluator, _ = run(images, outputs_of(images))
    entry = evaluator.result["scores"]["msp"]
    assert entry["sIoU"] is None and "disk" in entry["why"] and entry["auprc"] > 0


def test_kept_maps_come_back(tmp_path):
    small_sets.anomaly_set(tmp_path)
    maps = KeptMaps(tmp_path / "kept", "test_anomaly", "test")
    score, label = np.array([[0.1, np.inf]], np.float32), np.array([[0, 1]], np.uint8)
    maps.add("first", {"a": score, "b": -score}, label)
    read = [(image, name, label.tolist(), score.tolist()) for image, label, name, score in maps]
    truth = [[0, 1]]
    assert read == [
        ("first", "a", truth, score.tolist()),
        ("first", "b", truth, (-score).tolist()),
    ]
    maps.close()
    assert not list((tmp_path / "kept").iterdir())
