"""Stored figures are as an evaluation writes them, or are to be evaluated again."""

import pytest

from anoseg_d2.evaluation.stored_form import check_record, check_report_curves, check_stored

CURVE = {"recall": [0.0, 1.0], "precision": [1.0, 0.5], "fpr": [0.0, 1]}
RECORD = {"kind": "anomaly", "result": {"scores": {"rba": {"auprc": None}}}}


def test_what_is_whole_is_returned_as_it_is():
    record = {**RECORD, "more": object}
    assert check_stored(record, check_record, "a.json") is record
    curves = {"version": {"road": {"rba": CURVE, "msp": None}}}
    assert check_stored(curves, check_report_curves, "curves.json")


def test_a_file_without_a_version_is_of_version_1():
    assert check_stored({**RECORD, "version": 1}, check_record, "a")
    with pytest.raises(ValueError, match="a.json.*version is '2'.*again"):
        check_stored({**RECORD, "version": "2"}, check_record, "a.json")


@pytest.mark.parametrize(
    "change",
    [
        [],
        {"kind": "sky"},
        {"result": {}},
        {"result": {"scores": {"s": {"auroc": float("nan")}}}},
        {"per_image": [{"ap": {}}]},
        {"failures": [{"file": "../up"}]},
        {"false_components": {"s": [{}]}},
        {"curves": {"rba": {**CURVE, "fpr": [1]}}},
        {"curves": {"rba": {**CURVE, "fpr": [0, 10**400]}}},
        {"curves": {"rba": {**CURVE, "fpr": [0, None]}}},
    ],
    ids=str,
)
def test_what_is_wrong_is_named_with_its_file(change):
    record = {**RECORD, **change} if change else change
    with pytest.raises(ValueError, match="run/a.json.*evaluate again"):
        check_stored(record, check_record, "run/a.json")
