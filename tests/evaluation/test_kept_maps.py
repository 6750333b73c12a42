"""Score maps kept for the second pass."""

import numpy as np

from anoseg_d2.evaluation.kept_maps import KeptMaps


def test_kept_maps_come_back(tmp_path):
    maps = KeptMaps(tmp_path / "kept")
    score, label = np.array([[0.1, np.inf]], np.float32), np.array([[0, 1]], np.uint8)
    maps.add({"a": score, "b": -score}, label)
    read = [(name, label.tolist(), score.tolist()) for label, name, score in maps]
    truth = [[0, 1]]
    assert read == [("a", truth, score.tolist()), ("b", truth, (-score).tolist())]
    maps.close()
    assert not list((tmp_path / "kept").iterdir())
