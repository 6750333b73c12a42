"""Thresholds read from results, and written maps read back."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anoseg_d2.evaluation.map_files import read_map, write_map
from anoseg_d2.evaluation.metrics import PixelMetrics
from anoseg_d2.evaluation.set_figures import TPR_LEVELS, score_entry
from anoseg_d2.report.results import find_results
from anoseg_d2.report.thresholds import read_threshold


@pytest.fixture
def run(tmp_path):
    """A run's folder with figures of 1000 anomalous pixels of scores 0.000 .. 0.999."""
    metrics = PixelMetrics(tpr=TPR_LEVELS)
    scores = np.arange(2000, dtype=np.float32) % 1000 / 1000
    metrics.update(scores, np.repeat([0, 1], 1000))
    entry = score_entry(metrics.compute())
    sets = {"road": {"scores": {"rba": entry, "anomaly": {**entry, "tpr_thresholds": None}}}}
    path = tmp_path / "run" / "report" / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"datasets": sets}))
    return tmp_path / "run"


@pytest.mark.parametrize(("tpr", "expected"), [(80, 0.2), (90, 0.1), (95, 0.05), (99.0, 0.01)])
def test_the_threshold_finds_the_stated_share(run, tpr, expected):
    threshold = read_threshold(run, "rba", tpr)
    assert threshold == pytest.approx(expected)
    assert (np.arange(1000, dtype=np.float32) / 1000 >= threshold).mean() == tpr / 100


def test_results_are_found_from_a_file_a_folder_and_a_checkpoint(run):
    (run / "model_final.pth").touch()
    expected = run / "report" / "results.json"
    for path in (expected, run, run / "report", run / "model_final.pth"):
        assert find_results(path) == expected
    assert find_results(run / "mistyped.pth") is None, "results of something else"
    assert find_results(run.parent) is None and find_results("hf://owner/name") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rba", 50), r"no threshold.*50 %; stated: 80, 90, 95, 99"),
        (("uno", 95), r"'uno' was not evaluated on road; evaluated: rba, anomaly"),
        (("rba", 95, "street"), r"no dataset 'street'.*road"),
        (("anomaly", 95), "older version"),
    ],
)
def test_what_is_missing_is_named_with_what_is_there(run, arguments, message):
    with pytest.raises(ValueError, match=message):
        read_threshold(run, *arguments)


def test_several_sets_must_be_chosen_from(run):
    path = run / "report" / "results.json"
    sets = json.loads(path.read_text())["datasets"]
    path.write_text(json.dumps({"datasets": {**sets, "track": sets["road"]}}))
    with pytest.raises(ValueError, match="choose one: road, track"):
        read_threshold(run, "rba", 95)
    assert read_threshold(run, "rba", 95, "track") == pytest.approx(0.05)


def test_no_results_and_undefined_figures_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="evaluate first"):
        read_threshold(tmp_path, "rba", 95)
    entry = score_entry(PixelMetrics(tpr=TPR_LEVELS).compute())
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"datasets": {"road": {"scores": {"rba": entry}}}}))
    with pytest.raises(ValueError, match="no image was seen"):
        read_threshold(path, "rba", 95)


@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40),
    height=st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_a_png_gives_scores_back_to_half_a_step(tmp_path_factory, values, height):
    path = tmp_path_factory.mktemp("maps") / "a.png"
    score = np.tile(np.float32(values), (height, 1))
    write_map(path, score)
    step = (float(score.max()) - float(score.min())) / 65535
    rounding = np.spacing(np.abs(score).max()) * 2
    assert np.abs(read_map(path) - score.astype(np.float64)).max() <= step / 2 + rounding
    with Image.open(path) as image:
        assert image.mode == "I;16"
        offset, scale = float(image.info["score_offset"]), float(image.info["score_scale"])
        assert offset == score.min() and scale == pytest.approx(step)


def test_maps_of_one_score_compare_across_files(tmp_path):
    """The range of a file is its own, what is read is not: higher stays higher."""
    write_map(tmp_path / "low.png", np.float32([[-5, -4]]))
    write_map(tmp_path / "high.png", np.float32([[3, 9]]))
    assert read_map(tmp_path / "low.png").max() < read_map(tmp_path / "high.png").min()


def test_npy_is_exact_and_foreign_pngs_keep_their_values(tmp_path):
    score = np.float32([[np.inf, -np.inf, 0.1]])
    write_map(tmp_path / "a.npy", score)
    assert np.array_equal(read_map(tmp_path / "a.npy"), score)
    write_map(tmp_path / "a.png", np.float32([[np.inf, -np.inf, 0.1, 0.7]]))
    assert read_map(tmp_path / "a.png").tolist() == [[np.float32(v) for v in (0.7, 0.1, 0.1, 0.7)]]
    Image.fromarray(np.uint16([[0, 500]])).save(tmp_path / "b.png")
    assert read_map(tmp_path / "b.png").tolist() == [[0, 500]]


def test_maps_that_could_not_be_read_back_are_refused(tmp_path):
    with pytest.raises(ValueError, match="NaN"):
        write_map(tmp_path / "a.npy", np.float32([[np.nan]]))
    with pytest.raises(ValueError, match="written as .npy, .png or .hdf5"):
        write_map(tmp_path / "a.jpg", np.float32([[1]]))
    assert list(tmp_path.iterdir()) == []
