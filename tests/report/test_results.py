"""What figures mean, and what happens to a results.json that is broken."""

from pathlib import Path

import pytest

from anoseg_d2.report.results import (
    best_score,
    mean_figure,
    read_results,
    results_of_weights,
)
from anoseg_d2.utils.files import file_hash, write_json

SHIPPED = Path(__file__).resolve().parents[2] / "experiments" / "camvid" / "results.json"


def results(*datasets):
    """One dataset per argument: {score: AUPRC}."""
    sets = {
        f"set{index}": {"scores": {score: {"auprc": value} for score, value in scores.items()}}
        for index, scores in enumerate(datasets)
    }
    return {"datasets": sets, "closed_set": {}}


def test_an_ensemble_with_the_learned_class_is_not_implicit():
    made = results({"rba": 70.0, "rba+anomaly": 95.0, "anomaly": 90.0, "msp": 60.0})
    assert best_score(made) == "rba+anomaly"
    assert best_score(made, implicit=True) == "rba"
    foreign = results({"MyMethod": 80.0, "rba": 70.0})
    assert best_score(foreign, implicit=True) == "MyMethod"


def test_a_score_that_a_dataset_lacks_does_not_win_with_fewer_datasets():
    made = results({"rba": 99.0, "msp": 60.0}, {"rba": None, "msp": 50.0})
    assert mean_figure(made, "rba", "auprc") is None
    assert best_score(made) == "msp"


def test_a_dataset_without_anomalies_takes_part_in_no_choice():
    made = results({"rba": 70.0, "msp": 60.0}, {"rba": None, "msp": None})
    assert best_score(made) == "rba"
    assert best_score(results({"rba": None})) is None


def test_the_shipped_results_load():
    assert best_score(read_results(SHIPPED)) == "anomaly"


def test_results_of_other_weights_are_used_only_where_they_are_named(tmp_path, caplog):
    (tmp_path / "model.pth").write_bytes(b"weights")
    results = tmp_path / "report/results.json"
    stated = {"weights_file_sha256": file_hash(tmp_path / "model.pth")}
    write_json(results, {"datasets": {}, "model": stated})
    assert results_of_weights(None, tmp_path / "model.pth") == results
    write_json(results, {"datasets": {}, "model": {"weights_file_sha256": "0" * 64}})
    assert results_of_weights(None, tmp_path / "model.pth") is None
    assert "other weights" in caplog.text
    assert results_of_weights(results, tmp_path / "model.pth") == results
    with pytest.raises(FileNotFoundError, match="--results"):
        results_of_weights(tmp_path / "no", tmp_path / "model.pth")
