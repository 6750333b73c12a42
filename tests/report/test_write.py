"""The files of a report, of one run and of several."""

import json

import numpy as np
import pytest

from anoseg_d2.report.runs import load_run
from anoseg_d2.report.write import combine_reports, write_report
from anoseg_d2.utils.files import read_json, write_json


def strict(path):
    def refuse(constant):
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_results_json_keeps_its_contract(runs):
    results = strict(runs / "weak/report/results.json")
    assert set(results) == {"version", "datasets", "closed_set", "model", "config"}
    assert results["model"] == {"weights": "weak.pth", "parameters": 7}
    found = results["datasets"]["test_anomaly"]
    assert {"images", "anomaly_pixels", "known_pixels", "void_pixels", "scores"} <= set(found)
    entry = found["scores"]["msp"]
    figures = {"auprc", "auprc_bounds", "fpr95", "auroc", "sIoU", "PPV", "mean_F1"}
    assert figures <= set(entry)
    assert 1 < entry["auprc"] <= 100 and entry["auprc_bounds"][0] <= entry["auprc_bounds"][1]
    assert results["closed_set"]["test_closed"]["mIoU"] == pytest.approx(100 / 6)


def test_a_combined_report_holds_every_run_and_the_last_one_on_top(runs):
    results = strict(runs / "both/results.json")
    assert list(results["models"]) == ["weak", "strong <b>"]
    alone = strict(runs / "strong/report/results.json")
    assert results["models"]["strong <b>"] == alone
    assert {key: results[key] for key in alone} == alone


def test_nan_never_reaches_a_file(tmp_path):
    write_json(tmp_path / "a.json", {"x": [np.float32("nan"), float("inf"), np.int64(3)]})
    assert strict(tmp_path / "a.json") == {"x": [None, None, 3]}
    write_json(tmp_path / "a.json", {1: (np.array([1.5, np.nan]),)})
    assert strict(tmp_path / "a.json") == {"1": [[1.5, None]]}


@pytest.mark.parametrize("names", [["a"], ["a", "a"]])
def test_names_of_combined_runs_are_unique_and_complete(runs, tmp_path, names):
    with pytest.raises(ValueError, match="unique names"):
        combine_reports([runs / "weak", runs / "strong"], names, tmp_path)


@pytest.mark.slow
def test_a_name_that_is_not_utf8_is_shown_with_escapes(runs, tmp_path):
    page = combine_reports([runs / "weak"], ["bad-\udcff"], tmp_path)
    assert r"bad-\udcff" in page.read_text()


def test_every_file_of_a_report_can_be_read_again(runs):
    for name in ("results.json", "curves.json"):
        assert read_json(runs / "weak/report" / name)
    broken = runs / "broken.json"
    broken.write_text("{")
    with pytest.raises(ValueError, match="broken.json"):
        read_json(broken)
    with pytest.raises(FileNotFoundError, match="absent.json"):
        read_json(runs / "absent.json")


def test_a_dataset_that_was_not_evaluated_is_named(runs):
    with pytest.raises(FileNotFoundError, match="no evaluation of absent.*test_anomaly"):
        write_report(runs / "weak", ["test_anomaly", "absent"])
    with pytest.raises(FileNotFoundError, match="any dataset"):
        load_run(runs / "nothing")
