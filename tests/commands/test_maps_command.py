"""Anyone's score maps: read, checked, and evaluated as the evaluator would."""

import re
from pathlib import Path

import numpy as np
import pytest
import small_sets
from sklearn.metrics import average_precision_score

from anoseg_d2.commands import maps as maps_command
from anoseg_d2.data.builtin import register_all
from anoseg_d2.data.image_io import read_label
from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator
from anoseg_d2.report.write import write_report
from anoseg_d2.utils.files import read_json

TOOL = Path(__file__).parents[2] / "tools" / "evaluate_maps.py"


@pytest.fixture(autouse=True)
def default_root():
    """Undo `--root`: the catalog is shared with every later test of the process."""
    yield
    register_all()


@pytest.fixture(scope="module")
def tool():
    return maps_command


@pytest.fixture
def maps(tmp_path):
    """A registered set of four images, and a folder of npy maps for them."""
    images = small_sets.anomaly_set(tmp_path)
    folder = tmp_path / "maps"
    folder.mkdir()
    for index, image in enumerate(images):
        np.save(folder / f"{image['image_id']}.npy", score_of(image, index))
    return images, folder


def score_of(image, seed):
    label = read_label(image["sem_seg_file_name"])
    return small_sets.outputs_for(label, seed, names=("score",))["scores"]["score"]


def arguments(tmp_path, folder, *more):
    output = ["--output", str(tmp_path / "out"), "--root", str(tmp_path)]
    return ["--dataset", "test_anomaly", "--maps", str(folder), *output, *more]


@pytest.mark.slow
def test_figures_are_those_of_the_evaluator(tool, maps, tmp_path, capsys):
    images, folder = maps
    assert tool.main(arguments(tmp_path, folder, "--name", "mine")) == 0
    direct = AnomalyEvaluator("test_anomaly")
    outputs = [{"scores": {"score": score_of(image, i)}} for i, image in enumerate(images)]
    direct.process(images, outputs)
    direct.evaluate()
    results = read_json(tmp_path / "out/report/results.json")
    assert results["datasets"]["test_anomaly"] == direct.result
    shown = capsys.readouterr().out
    assert "auprc" in shown and "index.html" in shown


def test_missing_extra_and_broken_maps_are_named(tool, maps, tmp_path, capsys):
    images, folder = maps
    np.save(folder / "stranger.npy", np.zeros((2, 2)))
    assert tool.main(arguments(tmp_path, folder)) == 2
    assert "1 maps belong to no image" in capsys.readouterr().err
    (folder / "test_anomaly_1.npy").write_bytes(b"no array")
    assert tool.main(arguments(tmp_path, folder, "--ignore-extra")) == 2
    assert "test_anomaly_1.npy: cannot be read" in capsys.readouterr().err
    (folder / "test_anomaly_1.npy").unlink()
    assert tool.main(arguments(tmp_path, folder, "--ignore-extra")) == 2
    assert "1 of 4 images have no map" in capsys.readouterr().err


def test_extra_maps_can_be_passed_over(tool, maps, tmp_path):
    _, folder = maps
    np.save(folder / "stranger.npy", np.zeros((2, 2)))
    assert tool.main(arguments(tmp_path, folder, "--ignore-extra", "--no-images")) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--dataset", "nowhere"], "no anomaly set named 'nowhere'.*test_anomaly"),
        (["--maps", "/absent"], "no such folder.*/absent"),
        (["--pattern", "map"], "needs {id}"),
        (["--card", "absent.yaml"], "absent.yaml"),
    ],
)
def test_a_wrong_argument_is_one_message(tool, maps, tmp_path, capsys, change, message):
    _, folder = maps
    assert tool.main(arguments(tmp_path, folder, *change)) == 2
    assert re.search(message, capsys.readouterr().err, re.S)


@pytest.mark.slow
def test_negate_turns_the_order(tool, maps, tmp_path):
    images, folder = maps
    assert tool.main(arguments(tmp_path, folder)) == 0
    before = read_json(tmp_path / "out/report/results.json")["datasets"]["test_anomaly"]
    for index, image in enumerate(images):
        np.save(folder / f"{image['image_id']}.npy", -score_of(image, index))
    assert tool.main(arguments(tmp_path, folder, "--negate")) == 0
    after = read_json(tmp_path / "out/report/results.json")["datasets"]["test_anomaly"]
    assert after == before


def results(tmp_path, out="out"):
    return read_json(tmp_path / out / "report/results.json")["datasets"]["test_anomaly"]


@pytest.mark.slow
def test_a_second_method_is_refused_and_the_first_stays(tool, maps, tmp_path, capsys):
    _, folder = maps
    assert tool.main(arguments(tmp_path, folder, "--name", "first")) == 0
    before = (tmp_path / "out/report/results.json").read_bytes()
    assert tool.main(arguments(tmp_path, folder, "--name", "second", "--score", "other")) == 2
    said = capsys.readouterr().err
    assert "'first'" in said and "'second'" in said and "--output" in said
    assert (tmp_path / "out/report/results.json").read_bytes() == before


def test_the_folder_of_an_evaluated_model_is_refused(tool, maps, tmp_path, capsys):
    images, folder = maps
    evaluator = AnomalyEvaluator("test_anomaly", output_dir=tmp_path / "out")
    evaluator.process(images[:1], [{"scores": {"rba": score_of(images[0], 0)}}])
    evaluator.evaluate()
    write_report(tmp_path / "out", model={"weights": "a.pth"})
    assert tool.main(arguments(tmp_path, folder)) == 2
    assert "another method" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [["--score", "../../up"], ["--name", "../up"], ["--score", "a/b"]]
)
def test_names_that_leave_the_folder_are_refused(tool, maps, tmp_path, capsys, change):
    _, folder = maps
    assert tool.main(arguments(tmp_path, folder, *change)) == 2
    assert "cannot be used as a file name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_that_was_stopped_starts_over_with_the_same_figures(
    tool, maps, tmp_path, monkeypatch
):
    images, folder = maps
    process, seen = AnomalyEvaluator.process, []

    def until_the_third(self, inputs, outputs):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(inputs[0]["image_id"])
        process(self, inputs, outputs)

    with monkeypatch.context() as patched:
        patched.setattr(AnomalyEvaluator, "process", until_the_third)
        assert tool.main(arguments(tmp_path, folder)) == 130
    assert tool.main(arguments(tmp_path, folder)) == 0
    assert tool.main([*arguments(tmp_path, folder), "--output", str(tmp_path / "fresh")]) == 0
    assert results(tmp_path) == results(tmp_path, "fresh")
    assert len(list((tmp_path / "out/inference/test_anomaly/images").iterdir())) == len(images)


@pytest.mark.slow
def test_confidence_given_as_anomaly_is_noticed(tool, maps, tmp_path, caplog):
    images, folder = maps
    for index, image in enumerate(images):
        np.save(folder / f"{image['image_id']}.npy", -score_of(image, index))
    assert tool.main(arguments(tmp_path, folder)) == 0
    assert "AUROC" in caplog.text and "--negate" in caplog.text
    caplog.clear()
    assert tool.main(arguments(tmp_path, folder, "--negate")) == 0
    assert "AUROC" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--exact"]], ids=str)
def test_saturated_probabilities_in_float64_keep_their_order(tool, maps, tmp_path, options):
    images, folder = maps
    pooled = []
    for index, image in enumerate(images):
        score = 1 - 1e-9 * np.exp(-score_of(image, index).astype(np.float64))
        assert np.unique(score.astype(np.float32)).size <= 2
        np.save(folder / f"{image['image_id']}.npy", score)
        pooled.append((read_label(image["sem_seg_file_name"]).ravel(), score.ravel()))
    assert tool.main(arguments(tmp_path, folder, "--no-images", *options)) == 0
    labels, scores = (np.concatenate(part) for part in zip(*pooled, strict=True))
    expected = average_precision_score(labels[labels != 255], scores[labels != 255])
    found = results(tmp_path)["scores"]["score"]
    assert found["auprc"] == pytest.approx(100 * expected, abs=1e-9) and expected > 0.1
    assert found["mean_F1"] is not None
