"""Stored figures have the stated form, or are to be evaluated again."""

import pytest

from anoseg_d2.evaluation.stored_form import CURVES, RECORD, RESULTS, check_stored

CURVE = {"recall": [0.0, 1.0], "precision": [1.0, 0.5], "fpr": [0.0, 1]}


def test_what_is_whole_is_returned_as_it_is():
    record = {"kind": "anomaly", "result": {"scores": {"rba": {"auprc": None}}}, "more": object}
    assert check_stored(record, RECORD, "a.json") is record
    assert check_stored({"rba": CURVE, "msp": None}, CURVES, "curves.json")


def test_a_file_without_a_version_is_of_version_1():
    assert check_stored({"datasets": {}}, RESULTS, "a") == {"datasets": {}}
    assert check_stored({"version": 1, "datasets": {}}, RESULTS, "a")
    with pytest.raises(ValueError, match="a.json: version is '2', .*again"):
        check_stored({"version": "2"}, RESULTS, "a.json")


@pytest.mark.parametrize(
    ("value", "form", "entry"),
    [
        ([], RECORD, "the file is"),
        ({"kind": "sky"}, RECORD, "kind is 'sky'"),
        ({"kind": "anomaly", "per_image": [{"ap": {}}]}, RECORD, "per_image.0 is"),
        ({"kind": "anomaly", "failures": [{"file": "../up"}]}, RECORD, "failures.0 is"),
        ({"kind": "anomaly", "false_components": {"s": [{}]}}, RECORD, "components.s.0 is"),
        ({"rba": {**CURVE, "fpr": [1]}}, CURVES, "rba is"),
        ({"rba": {**CURVE, "fpr": [0, 10**400]}}, CURVES, "rba is"),
        ({"datasets": {"a": {"scores": {"s": {"auroc": float("nan")}}}}}, RESULTS, "auroc is nan"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_file(value, form, entry):
    with pytest.raises(ValueError) as caught:
        check_stored(value, form, "run/a.json")
    message = str(caught.value)
    assert message.startswith("run/a.json") and entry in message and "evaluate again" in message
