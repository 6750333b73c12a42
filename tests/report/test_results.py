"""What figures mean, and what happens to a results.json that is broken."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anoseg_d2.evaluation.stored_form import check_results, check_stored
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datasets": []}, "list"),
        ({"datasets": {"a": {"scores": {"rba": {"auprc": "high"}}}}}, "str"),
        ({"datasets": {"a": {"scores": {"rba": {"auprc": True}}}}}, "True"),
        ({"datasets": {"a": {"scores": {"rba": {"auprc": 10**400}}}}}, "1000"),
        ({"datasets": {"a": {"scores": {"rba": {"auprc_bounds": [1]}}}}}, "unpack"),
        ({"datasets": {"a": {"scores": {"rba": {"tpr_thresholds": {"x": 1}}}}}}, "'x'"),
        ({"datasets": {"a": {"scores": 3}}}, "int"),
        ({"closed_set": {"a": {"mIoU": [1]}}}, "list"),
        ({"models": {"m": {}}}, "datasets"),
        ({"model": "arcface"}, "arcface"),
        ({"version": 2}, "version is 2"),
    ],
)
def test_a_wrong_type_is_named(change, message):
    with pytest.raises(ValueError) as caught:
        check_stored({"datasets": {}, **change}, check_results, "results.json")
    said = str(caught.value)
    assert said.startswith("results.json") and message in said and "evaluate again" in said


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1), byte=st.binary(max_size=1), cut=st.booleans())
def test_a_damaged_file_loads_or_is_named(tmp_path_factory, place, byte, cut):
    whole = json.dumps(json.loads(SHIPPED.read_text())["models"]["arcface"]).encode()
    index = int(place * (len(whole) - 1))
    path = tmp_path_factory.mktemp("damaged") / "results.json"
    path.write_bytes(whole[:index] + byte + (b"" if cut else whole[index + 1 :]))
    try:
        read_results(path)
    except ValueError as error:
        assert str(path) in str(error)


def test_entries_that_no_table_reads_may_be_anything():
    entry = {"scores": {}, "warnings": ["label 3"], "new": True}
    assert check_stored({"datasets": {"a": entry}, "closed_set": {}}, check_results, "r.json")


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
