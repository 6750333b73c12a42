"""Maps for leaderboards: complete, in the layout that their tools read, from one model."""

import h5py
import numpy as np
import pytest
import torch

from anoseg_d2 import AnomalyPredictor
from anoseg_d2.checkpoint import AnosegCheckpointer
from anoseg_d2.commands import submit
from anoseg_d2.data.image_io import write_image
from anoseg_d2.evaluation.map_files import read_map

SIZE = (20, 36)
OBSTACLES = ("curvy-street", "darkasphalt2", "motorway")
WITHDRAWN = ["validation_19", *(f"validation_{i}" for i in range(21, 30))]
VALIDATION = [f"validation_{i}" for i in (*range(1, 19), 20, *range(30, 41))]


def anomaly_frames():
    test = [f"{'cow' if i % 2 else 'boat_trailer'}{i:04d}" for i in range(100)]
    return test + [f"validation{i:04d}" for i in range(10)]


def obstacle_frames():
    return [f"{OBSTACLES[i % 3]}_cans_{i}.5" for i in range(327)] + VALIDATION


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch):
    """Hundreds of flushes to a busy disk take seconds."""
    monkeypatch.setattr("os.fsync", lambda _: None)


def write_frames(root, track, names, ending):
    folder = root / track / "images"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    first = folder / f"{names[0]}{ending}"
    write_image(first, rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8))
    for name in names[1:]:
        (folder / f"{name}{ending}").write_bytes(first.read_bytes())


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Both tracks as they are released, with small frames."""
    root = tmp_path_factory.mktemp("release")
    write_frames(root, "dataset_AnomalyTrack", anomaly_frames(), ".jpg")
    night = [f"driveway_{i}" for i in range(30)]
    names = obstacle_frames() + WITHDRAWN + night
    write_frames(root, "dataset_ObstacleTrack", names, ".webp")
    return root


@pytest.fixture(scope="module")
def maps(release, tmp_path_factory):
    """A map of every frame, by some other method."""
    folder = tmp_path_factory.mktemp("maps")
    for index, image in enumerate(sorted(release.glob("*/images/*"))):
        np.save(folder / f"{image.stem}.npy", np.full(SIZE, index, np.float32))
    return folder


@pytest.fixture
def weights(tiny_eomt, tmp_path):
    def make(**options):
        model = tiny_eomt(**options)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        AnosegCheckpointer(model.eval(), str(tmp_path), save_to_disk=True).save("model")
        return tmp_path / "model.pth"

    return make


def run(*arguments):
    return submit.main([str(argument) for argument in arguments])


def test_maps_of_any_method_become_the_files_of_both_tracks(release, maps, tmp_path, capsys):
    command = ("smiyc", "--maps", maps, "--method", "Mine", "--root", release)
    assert run(*command, "--output", tmp_path) == 0
    folder = tmp_path / "anomaly_p" / "Mine"
    anomaly = sorted(path.stem for path in (folder / "AnomalyTrack-all").iterdir())
    assert anomaly == sorted(anomaly_frames())
    assert len(list((folder / "ObstacleTrack-all").glob("*.hdf5"))) == 327 + 30 + 10 + 30
    name = "curvy-street_cans_0.5"
    with h5py.File(folder / f"ObstacleTrack-all/{name}.hdf5") as stored:
        assert list(stored) == ["value"] and stored["value"].dtype == np.float16
        assert np.array_equal(stored["value"][:], read_map(maps / f"{name}.npy"))
    said = capsys.readouterr().out
    assert "100 test, 10 validation" in said
    assert all(part in said for part in ("327 test", "30 validation", "10 withdrawn", "30 night"))
    assert "https://segmentmeifyoucan.com/submit" in said
    assert "metric PixBinaryClass Mine AnomalyTrack-validation,ObstacleTrack-validation" in said


def test_maps_of_a_model_are_its_scores_and_a_stopped_run_continues(
    release, weights, tmp_path, caplog
):
    checkpoint = weights()
    command = ["smiyc", "--weights", checkpoint, "--method", "Ours", "--root", release]
    command += ["--track", "anomaly", "--split", "validation", "--output", tmp_path / "out"]
    assert run(*command) == 0
    folder = tmp_path / "out/anomaly_p/Ours/AnomalyTrack-all"
    files = sorted(folder.iterdir())
    assert len(files) == 10
    predictor = AnomalyPredictor.from_pretrained(str(checkpoint), ["MODEL.DEVICE", "cpu"])
    photo = release / "dataset_AnomalyTrack/images/validation0003.jpg"
    score = predictor(photo)["scores"]["rba"]
    np.testing.assert_allclose(read_map(files[3]), score, atol=2e-3)
    # Its figures were those of other maps, which is said.
    (tmp_path / "results.json").write_text('{"datasets": {}, "config": "TEST: {FLIP: true}"}')
    files[3].unlink()
    before = files[4].stat().st_mtime_ns
    assert run(*command) == 0
    assert files[3].is_file() and files[4].stat().st_mtime_ns == before
    assert "TEST.FLIP was True, is False" in caplog.text


def test_two_sources_are_not_mixed_under_one_method(release, maps, weights, tmp_path, capsys):
    both = ["--method", "Ours", "--root", release, "--track", "anomaly", "--split", "validation"]
    both += ["--output", tmp_path / "out"]
    assert run("smiyc", "--maps", maps, *both) == 0
    assert run("smiyc", "--weights", weights(), *both) == 2
    assert "holds maps from another source" in capsys.readouterr().err
    assert run("smiyc", "--maps", maps, *both) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"remove": "cow0001"}, "contains 99 test frames instead of 100"),
        ({"remove": "validation_7"}, "contains 29 validation frames instead of 30"),
        ({"add": "validation0003.png"}, "several images named validation0003"),
        ({"add": "street_1.webp"}, "images that are not of this track: street_1"),
        ({"add": "snowstorm1_00_08_18.898.webp"}, "1 snowstorm frames instead of 55"),
    ],
)
def test_a_release_that_is_not_complete_is_refused(
    tmp_path, release, maps, capsys, changes, message
):
    root = tmp_path / "copy"
    for image in release.glob("*/images/*"):
        target = root / image.relative_to(release)
        target.parent.mkdir(parents=True, exist_ok=True)
        if image.stem != changes.get("remove"):
            target.hardlink_to(image)
    if "add" in changes:
        track = "Anomaly" if changes["add"].startswith("validation0") else "Obstacle"
        image = root / f"dataset_{track}Track/images" / changes["add"]
        write_image(image, np.zeros((*SIZE, 3), np.uint8))
    command = ("smiyc", "--maps", maps, "--method", "M", "--root", root, "--output", tmp_path / "o")
    assert run(*command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (np.zeros((3, 4)), "is 3x4 (HxW), expected 20x36"),
        (np.full(SIZE, 1e5), "scores reach 100000, but float16 ends at 65504"),
        (None, "1 of 10 frames have no map"),
    ],
)
def test_maps_that_cannot_be_submitted_are_named(release, maps, tmp_path, capsys, score, message):
    folder = tmp_path / "maps"
    folder.mkdir()
    for path in maps.glob("validation0*"):
        (folder / path.name).hardlink_to(path)
    (folder / "validation0004.npy").unlink()
    if score is not None:
        np.save(folder / "validation0004.npy", score.astype(np.float32))
    command = ("smiyc", "--maps", folder, "--method", "M", "--root", release)
    options = ("--track", "anomaly", "--split", "validation", "--output", tmp_path / "o")
    assert run(*command, *options) == 2
    said = capsys.readouterr().err
    assert message in said and "validation0004" in said


def test_a_track_that_is_not_there_says_where_to_get_it(tmp_path, capsys):
    command = ("smiyc", "--maps", tmp_path, "--method", "M", "--root", tmp_path)
    assert run(*command, "--output", tmp_path / "o") == 2
    said = capsys.readouterr().err
    assert "dataset_AnomalyTrack/images" in said and "segmentmeifyoucan.com/datasets" in said


def test_a_model_or_maps_but_not_both(release, maps, tmp_path, capsys):
    command = ("smiyc", "--method", "M", "--root", release, "--output", tmp_path / "o")
    assert run(*command) == 2 and run(*command, "--maps", maps, "--weights", "w.pth") == 2
    assert capsys.readouterr().err.count("give --weights (or --config-file), or else --maps") == 2


def test_fishyscapes_gets_a_score_map_and_a_segmentation_of_every_image(weights, tmp_path):
    source, output = tmp_path / "input", tmp_path / "output"
    rng = np.random.default_rng(0)
    for index in range(3):
        write_image(source / f"{index:04d}_a.png", rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8))
    checkpoint = weights(num_known=19)
    options = ("--weights", checkpoint, "--input", source, "--output", output)
    assert run("fishyscapes", *options, "--score", "msp") == 0
    names = [f"{i:04d}_a_{kind}.npy" for i in range(3) for kind in ("anomaly", "segmentation")]
    assert sorted(path.name for path in output.iterdir()) == names
    predictor = AnomalyPredictor.from_pretrained(str(checkpoint), ["MODEL.DEVICE", "cpu"])
    expected = predictor(source / "0001_a.png")
    found = np.load(output / "0001_a_anomaly.npy")
    assert found.dtype == np.float32 and np.allclose(found, expected["scores"]["msp"], atol=1e-5)
    classes = np.load(output / "0001_a_segmentation.npy")
    assert classes.shape == SIZE and classes.max() < 19
    assert (classes == expected["sem_seg"]).mean() > 0.99


def test_fishyscapes_needs_the_classes_of_cityscapes(weights, tmp_path, capsys):
    write_image(tmp_path / "in/0_a.png", np.zeros((*SIZE, 3), np.uint8))
    options = ("--weights", weights(), "--input", tmp_path / "in", "--output", tmp_path / "out")
    assert run("fishyscapes", *options) == 2
    assert "Cityscapes' 19 classes, but this model has 3" in capsys.readouterr().err
