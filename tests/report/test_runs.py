"""Runs read from disk."""

import pytest

from anoseg_d2.report.runs import load_run


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "anomaly"}', '{"kind": 1, "result": 2}'])
def test_a_broken_evaluation_is_named(tmp_path, text):
    path = tmp_path / "inference" / "road" / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ValueError, match="result.json"):
        load_run(tmp_path)


def test_only_the_named_datasets_are_shown(runs):
    run = load_run(runs / "weak", ["test_other"])
    assert list(run.results()["datasets"]) == ["test_other"] and not run.results()["closed_set"]
