"""Anyone's score maps: read, checked, evaluated as the evaluator would, resumed."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import small_sets
from PIL import Image

from anoseg_d2.data.image_io import read_label
from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator
from anoseg_d2.evaluation.map_files import MapFolder, MapReader, read_map
from anoseg_d2.utils.files import read_json

TOOL = Path(__file__).parents[2] / "tools" / "evaluate_maps.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("evaluate_maps", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    assert not (tmp_path / "out/inference/test_anomaly/progress.pkl").exists()


def test_everything_wrong_is_named_before_anything_is_computed(tool, maps, tmp_path, capsys):
    images, folder = maps
    (folder / "test_anomaly_0.npy").unlink()
    np.save(folder / "test_anomaly_1.npy", np.zeros((3, 4), np.float32))
    bad = score_of(images[2], 2)
    bad[0, :3] = np.nan
    np.save(folder / "test_anomaly_2.npy", bad)
    (folder / "test_anomaly_3.npy").write_bytes(b"no array")
    np.save(folder / "stranger.npy", bad)
    assert tool.main(arguments(tmp_path, folder)) == 1
    said = capsys.readouterr().err
    assert "1 images have no map" in said and "test_anomaly_0" in said
    assert "1 maps belong to no image" in said and "stranger.npy" in said
    assert "3 maps cannot be used" in said
    assert "test_anomaly_1.npy: is 3x4, the label is 40x64" in said
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
    assert tool.main(arguments(tmp_path, folder, *change)) == 1
    import re

    assert re.search(message, capsys.readouterr().err, re.S)


def test_a_run_that_was_cut_off_goes_on_where_it_was(tool, maps, tmp_path, monkeypatch, capsys):
    images, folder = maps
    monkeypatch.setattr(tool, "SAVE_EVERY", -1.0)
    seen = []
    process = AnomalyEvaluator.process

    def until_the_third(self, inputs, outputs):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(inputs[0]["image_id"])
        process(self, inputs, outputs)

    monkeypatch.setattr(AnomalyEvaluator, "process", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        tool.main(arguments(tmp_path, folder))
    resumed = []

    def noted(self, inputs, outputs):
        resumed.append(inputs[0]["image_id"])
        process(self, inputs, outputs)

    monkeypatch.setattr(AnomalyEvaluator, "process", noted)
    assert tool.main(arguments(tmp_path, folder)) == 0
    assert "going on after 2 of 4" in capsys.readouterr().out
    assert seen + resumed == [image["image_id"] for image in images]
    cut = read_json(tmp_path / "out/report/results.json")["datasets"]
    whole = tmp_path / "whole"
    assert tool.main(arguments(tmp_path, folder, "--output", str(whole))) == 0
    assert cut == read_json(whole / "report/results.json")["datasets"]
    kept = tmp_path / "out/inference/test_anomaly/images"
    assert len(list(kept.iterdir())) == 4


def test_counts_of_other_maps_are_not_gone_on_with(tool, maps, tmp_path, monkeypatch, capsys):
    images, folder = maps
    monkeypatch.setattr(tool, "SAVE_EVERY", -1.0)
    monkeypatch.setattr(tool.SavedCounts, "remove", lambda self: None)
    assert tool.main(arguments(tmp_path, folder)) == 0
    np.save(folder / f"{images[0]['image_id']}.npy", np.zeros((40, 64), np.float64))
    assert tool.main(arguments(tmp_path, folder)) == 0
    assert "going on" not in capsys.readouterr().out


def test_negate_turns_the_order(tool, maps, tmp_path):
    images, folder = maps
    assert tool.main(arguments(tmp_path, folder)) == 0
    before = read_json(tmp_path / "out/report/results.json")["datasets"]["test_anomaly"]
    for index, image in enumerate(images):
        np.save(folder / f"{image['image_id']}.npy", -score_of(image, index))
    assert tool.main(arguments(tmp_path, folder, "--negate")) == 0
    after = read_json(tmp_path / "out/report/results.json")["datasets"]["test_anomaly"]
    assert after == before


def test_all_formats_give_the_same_map(tmp_path):
    score = np.arange(12, dtype=np.float32).reshape(3, 4) * 100
    np.save(tmp_path / "a.npy", score[None])
    np.savez(tmp_path / "b.npz", score)
    np.savez(tmp_path / "c.npz", anomaly=score, other=np.zeros(2))
    Image.fromarray(score.astype(np.uint16)).save(tmp_path / "d.png")
    Image.fromarray(score).save(tmp_path / "e.tiff")
    read = [read_map(tmp_path / n) for n in ("a.npy", "b.npz", "d.png", "e.tiff")]
    read.append(read_map(tmp_path / "c.npz", "anomaly"))
    for values in read:
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, score)


def test_hdf5_as_segment_me_if_you_can_writes_it(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is optional and not installed")
    score = np.arange(12, dtype=np.float16).reshape(3, 4)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["value"] = score
    np.testing.assert_array_equal(read_map(tmp_path / "a.hdf5"), score)


def test_without_h5py_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.hdf5").write_bytes(b"")
    with pytest.raises(ImportError, match="pip install h5py"):
        read_map(tmp_path / "a.hdf5")


def test_what_is_no_single_map_is_refused(tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros(4))
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "colour.png")
    for name, message in (
        ("flat.npy", r"shape \(4,\)"),
        ("text.npy", "not numbers"),
        ("two.npz", "it holds a, b"),
        ("colour.png", "one channel"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            read_map(tmp_path / name)


def test_maps_are_found_by_id_photograph_or_pattern(tmp_path):
    image = {"image_id": "city__1", "file_name": "/data/1_leftImg8bit.png"}
    for name in ("city__1", "1_leftImg8bit", "city__1_score"):
        folder = tmp_path / name / "deep"
        folder.mkdir(parents=True)
        np.save(folder / f"{name}.npy", np.zeros((1, 1)))
        pattern = "{id}_score" if name.endswith("_score") else "{id}"
        found = MapFolder.find(tmp_path / name, [image], pattern)
        assert [path.stem for _, path in found.pairs] == [name] and not found.missing
    np.save(tmp_path / "city__1/city__1.npy", np.zeros((1, 1)))
    with pytest.raises(ValueError, match="several maps for city__1"):
        MapFolder.find(tmp_path / "city__1", [image])


def test_maps_found_right_before_are_not_read_again(maps):
    images, folder = maps
    reads = []

    class Counting(MapReader):
        def __call__(self, path):
            reads.append(path.stem)
            return super().__call__(path)

    found = MapFolder.find(folder, images)
    known = found.check(Counting(), {})
    assert len(reads) == 4
    np.save(folder / "test_anomaly_2.npy", np.zeros((40, 64), np.float64))
    found.check(Counting(), known)
    assert reads[4:] == ["test_anomaly_2"]
