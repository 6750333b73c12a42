"""A disk that fails at any call leaves whole files, and evaluating again completes them."""

import errno
import json
from pathlib import Path

import numpy as np
import plot_results
import pytest
import small_sets
from failing_disk import FailAt

from anoseg_d2.commands import compare
from anoseg_d2.data.image_io import read_label
from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator
from anoseg_d2.evaluation.closed_set_evaluation import ClosedSetEvaluator
from anoseg_d2.evaluation.samples import load_samples
from anoseg_d2.report import figures
from anoseg_d2.report.write import write_report
from anoseg_d2.utils.files import write_json

CALLS = ((Path, "write_bytes"),)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """The page is written some fifty times, and drawing takes most of it."""
    for name in ("image_sheet", "roc_and_pr", "confusion_matrix"):
        monkeypatch.setattr(figures, name, lambda *_: None)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """One image of an anomaly set and one of a closed set."""
    folder = tmp_path_factory.mktemp("images")
    anomaly = small_sets.anomaly_set(folder, "test_failing", 1)
    label = np.array([[0, 1], [1, 255]], np.uint8)
    return anomaly, small_sets.closed_set(folder, [label], "test_failing_closed")


def evaluate(images, output):
    """What `--eval-only` does after the model."""
    anomaly, closed = images
    evaluator = AnomalyEvaluator("test_failing", output_dir=output)
    evaluator.reset()
    label = read_label(anomaly[0]["sem_seg_file_name"])
    evaluator.process(anomaly, [small_sets.outputs_for(label, 0, names=("rba",))])
    evaluator.evaluate()
    known = ClosedSetEvaluator("test_failing_closed", output)
    known.process(closed, [{"sem_seg": np.zeros((2, 2), int), "confidence": np.ones((2, 2))}])
    known.evaluate()
    write_report(output, name="run")


def assert_whole(folder):
    """Every file that has its name can be read; nothing temporary is left."""
    for path in folder.rglob("*"):
        assert not path.name.endswith(".tmp") and not path.name.startswith("."), path
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.parent.name == "images":
            load_samples(path.parent)
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>")
        elif path.suffix == ".png":
            assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
        elif path.suffix == ".pdf":
            assert path.read_bytes().rstrip().endswith(b"%%EOF")


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.*") if p.is_file()}


def fail_at_every_call(monkeypatch, code, work, folder, calls):
    """Let call 1 fail, then call 2 and so on until `work()` passes; returns how many failed."""
    for number in range(1, 400):
        fault = FailAt(number, code)
        with monkeypatch.context() as patched:
            fault.patch(patched, *calls)
            try:
                work()
                return number - 1
            except OSError:
                pass
        assert_whole(folder)
    raise AssertionError("it never passed")


@pytest.mark.slow
def test_whichever_call_of_an_evaluation_fails_the_next_one_is_complete(
    images, tmp_path, monkeypatch
):
    evaluate(images, tmp_path / "whole")
    output = tmp_path / "run"
    failed = fail_at_every_call(
        monkeypatch, errno.ENOSPC, lambda: evaluate(images, output), output, CALLS
    )
    # By three calls each: two samples, two result.json, a report of six.
    assert failed == 10 * 3
    found, expected = content(output), content(tmp_path / "whole")
    assert found.keys() == expected.keys()
    same = [name for name in found if found[name] == expected[name]]
    assert len(same) == len(found)


@pytest.mark.slow
@pytest.mark.parametrize("tool", [compare, plot_results], ids=["compare", "plot_results"])
def test_whichever_call_fails_tables_and_figures_are_whole(tmp_path, monkeypatch, capsys, tool):
    curve = {"recall": [0.5, 1.0], "precision": [1.0, 0.4], "fpr": [0.0, 0.3]}
    scores = {"max_logit_raw": {"auprc": 40.0, "fpr95": 60.0}}
    results = {"datasets": {"road_obstacle21": {"scores": scores}}, "closed_set": {}, "model": {}}
    write_json(tmp_path / "run/report/results.json", results)
    curves = {"run": {"road_obstacle21": {"max_logit_raw": curve}}}
    write_json(tmp_path / "run/report/curves.json", curves)
    output = tmp_path / "out"
    named = [str(tmp_path / "run")] if tool is compare else ["--run", f"arcface={tmp_path / 'run'}"]

    def work():
        if tool.main([*named, "--output", str(output)]) == 2:
            error = capsys.readouterr().err
            assert error.startswith("error: ") and error.count("\n") == 1
            raise OSError(error)

    failed = fail_at_every_call(monkeypatch, errno.EIO, work, output, CALLS)
    # Six files by three calls each; two tables, and two figures that matplotlib writes itself.
    assert failed == (6 * 3 if tool is compare else 2 * 3 + 2 * 2)
    assert {p.suffix for p in output.iterdir()} >= ({".html"} if tool is compare else {".pdf"})
