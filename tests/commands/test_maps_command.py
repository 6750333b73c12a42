"""Anyone's score maps: read, checked, and evaluated as the evaluator would."""

import html
import re
from pathlib import Path

import numpy as np
import pytest
import small_sets
from sklearn.metrics import average_precision_score

from anoseg_d2.commands import maps as maps_command
from anoseg_d2.data.builtin import register_all
from anoseg_d2.data.image_io import read_label, write_image
from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator
from anoseg_d2.evaluation.thumbnails import load_thumbnails
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


def test_everything_wrong_is_named_before_anything_is_computed(tool, maps, tmp_path, capsys):
    images, folder = maps
    (folder / "test_anomaly_0.npy").unlink()
    np.save(folder / "test_anomaly_1.npy", np.zeros((3, 4), np.float32))
    bad = score_of(images[2], 2)
    bad[0, :3] = np.nan
    np.save(folder / "test_anomaly_2.npy", bad)
    (folder / "test_anomaly_3.npy").write_bytes(b"no array")
    np.save(folder / "stranger.npy", bad)
    assert tool.main(arguments(tmp_path, folder)) == 2
    said = capsys.readouterr().err
    assert "1 images have no map" in said and "test_anomaly_0" in said
    assert "1 maps belong to no image" in said and "stranger.npy" in said
    assert "3 maps cannot be used" in said
    assert "test_anomaly_1.npy: is 3x4 (HxW), expected 40x64" in said
    assert "test_anomaly_2.npy: 3 of 2560 scores are NaN" in said
    assert "test_anomaly_3.npy: cannot be read" in said
    assert not (tmp_path / "out").exists()


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
    assert tool.main(arguments(tmp_path, folder)) == 2
    assert "anoseg train" in capsys.readouterr().err


def test_a_second_score_of_the_same_method_is_kept_next_to_the_first(tool, maps, tmp_path):
    images, folder = maps
    assert tool.main(arguments(tmp_path, folder, "--name", "mine", "--score", "one")) == 0
    assert (
        tool.main(arguments(tmp_path, folder, "--name", "mine", "--score", "two", "--negate")) == 0
    )
    about = read_json(tmp_path / "out/report/results.json")["model"]
    assert about["maps"] == {f"test_anomaly/{score}": str(folder) for score in ("one", "two")}
    assert {"anoseg_d2", "numpy"} <= about["versions"].keys() and about["command"]
    both = results(tmp_path)["scores"]
    for score, options in (("one", []), ("two", ["--negate"])):
        out = ["--output", str(tmp_path / score), "--name", "mine", "--score", score]
        assert tool.main([*arguments(tmp_path, folder), *out, *options]) == 0
        assert both[score] == results(tmp_path, score)["scores"][score]
    kept = load_thumbnails(
        tmp_path / f"out/inference/test_anomaly/images/{images[0]['image_id']}.npz"
    )
    assert set(kept["scores"]) == {"one", "two"}
    record = read_json(tmp_path / "out/inference/test_anomaly/result.json")
    assert set(record["per_image"][0]["ap"]) == set(record["curves"]) == {"one", "two"}
    place = tmp_path / "out/inference/test_anomaly"
    for entry in record["failures"]:
        assert (place / "failures" / entry["file"]).is_file()


def test_scores_on_changed_labels_are_not_put_next_to_each_other(tool, maps, tmp_path, capsys):
    images, folder = maps
    assert tool.main(arguments(tmp_path, folder, "--score", "one")) == 0
    label = read_label(images[0]["sem_seg_file_name"])
    write_image(images[0]["sem_seg_file_name"], label[::-1])
    assert tool.main(arguments(tmp_path, folder, "--score", "two")) == 2
    assert "labels of test_anomaly have changed since one" in capsys.readouterr().err


@pytest.mark.parametrize("value, kind", [(0, "known"), (1, "anomaly"), (255, "void")])
def test_placeholder_labels_are_refused_with_a_reason(tool, maps, tmp_path, capsys, value, kind):
    images, folder = maps
    for image in images:
        write_image(image["sem_seg_file_name"], np.full((40, 64), value, np.uint8))
    assert tool.main(arguments(tmp_path, folder)) == 2
    assert f"nothing but {kind} pixels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_8_bit_maps_are_evaluated_with_a_warning(tool, maps, tmp_path, caplog):
    images, folder = maps
    for index, image in enumerate(images):
        (folder / f"{image['image_id']}.npy").unlink()
        levels = np.clip(score_of(image, index) * 30 + 100, 0, 255).astype(np.uint8)
        write_image(folder / f"{image['image_id']}.png", levels)
    assert tool.main(arguments(tmp_path, folder)) == 0
    assert "4 maps hold 8-bit values" in caplog.text and "256" in caplog.text
    (warning,) = results(tmp_path)["warnings"]
    assert "4 maps hold 8-bit values" in warning


def test_warnings_stay_with_their_score(tool, maps, tmp_path):
    images, folder = maps
    coarse = tmp_path / "coarse"
    coarse.mkdir()
    for index, image in enumerate(images):
        levels = np.clip(score_of(image, index) * 30 + 100, 0, 255).astype(np.uint8)
        write_image(coarse / f"{image['image_id']}.png", levels)
    name = ("--name", "mine", "--score")
    assert tool.main(arguments(tmp_path, coarse, *name, "one")) == 0
    assert tool.main(arguments(tmp_path, folder, *name, "two")) == 0
    assert "8-bit" in results(tmp_path)["warnings"][0]
    assert tool.main(arguments(tmp_path, folder, *name, "one")) == 0
    assert results(tmp_path)["warnings"] == []


@pytest.mark.parametrize(
    "change", [["--score", "../../up"], ["--name", "../up"], ["--score", "a/b"]]
)
def test_names_that_leave_the_folder_are_refused(tool, maps, tmp_path, capsys, change):
    _, folder = maps
    assert tool.main(arguments(tmp_path, folder, *change)) == 2
    assert "cannot be used as a file name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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


def test_confidence_given_as_anomaly_is_noticed(tool, maps, tmp_path, caplog):
    images, folder = maps
    for index, image in enumerate(images):
        np.save(folder / f"{image['image_id']}.npy", -score_of(image, index))
    assert tool.main(arguments(tmp_path, folder)) == 0
    (warning,) = results(tmp_path)["warnings"]
    assert "AUROC" in warning and "under 50 %" in warning and "--negate" in warning
    assert warning in caplog.text
    assert warning in html.unescape((tmp_path / "out/report/index.html").read_text())
    assert tool.main(arguments(tmp_path, folder, "--negate")) == 0
    assert results(tmp_path)["warnings"] == []


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
