"""What figures mean, and what happens to a results.json that is broken."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anoseg_d2.report.results import (
    best_score,
    check_results,
    mean_figure,
    read_results,
)

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
        ({"datasets": []}, "datasets is []"),
        ({"datasets": {"a": {"scores": {"rba": {"auprc": "high"}}}}}, "rba.auprc is 'high'"),
        ({"datasets": {"a": {"scores": {"rba": {"auprc": True}}}}}, "rba.auprc is True"),
        ({"datasets": {"a": {"scores": {"rba": {"auprc": 10**400}}}}}, "rba.auprc is 1000"),
        ({"datasets": {"a": {"scores": {"rba": {"auprc_bounds": [1]}}}}}, "auprc_bounds is [1]"),
        ({"datasets": {"a": {"scores": {"rba": {"tpr_thresholds": {"x": 1}}}}}}, "{'x': 1}"),
        ({"datasets": {"a": {"scores": 3}}}, "datasets.a.scores is 3"),
        ({"closed_set": {"a": {"mIoU": [1]}}}, "closed_set.a.mIoU is [1]"),
        ({"models": {"m": {}}}, "models.m: has no 'datasets'"),
        ({"model": "arcface"}, "model is 'arcface'"),
        ({"version": 2}, "version is 2"),
    ],
)
def test_a_wrong_type_is_named(change, message):
    with pytest.raises(ValueError) as caught:
        check_results({"datasets": {}, **change}, "results.json")
    assert str(caught.value).startswith("results.json") and message in str(caught.value)


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
    assert check_results({"datasets": {"a": entry}, "closed_set": {}}, "results.json")


def test_the_shipped_results_load():
    assert best_score(read_results(SHIPPED)) == "anomaly"
