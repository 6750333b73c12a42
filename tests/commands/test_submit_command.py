"""Maps for leaderboards: complete, in the layout that their tools read, from one model."""

import h5py
import numpy as np
import pytest
import torch

from anoseg_d2 import AnomalyPredictor
from anoseg_d2.checkpoint import AnosegCheckpointer
from anoseg_d2.commands import submit
from anoseg_d2.data.image_io import write_image

SIZE = (20, 36)


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
    write_frames(root, "dataset_AnomalyTrack", [f"cow{i:04d}" for i in range(110)], ".jpg")
    names = [f"motorway_cans_{i}.5" for i in range(357)] + ["driveway_1"]
    write_frames(root, "dataset_ObstacleTrack", names, ".webp")
    return root


@pytest.fixture
def constant(monkeypatch):
    """A predictor that costs nothing."""

    class Constant:
        cfg = None

        def __call__(self, images):
            shapes = [image.shape[:2] for image in images]
            return [
                {"scores": {"rba": np.full(s, 0.5, np.float32)}, "sem_seg": None} for s in shapes
            ]

    monkeypatch.setattr(submit, "load_predictor", lambda args: Constant())


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


@pytest.mark.slow
def test_every_frame_of_both_tracks_gets_a_file(release, constant, tmp_path, capsys):
    assert run("smiyc", "--method", "Mine", "--root", release, "--output", tmp_path) == 0
    folder = tmp_path / "anomaly_p" / "Mine"
    assert len(list((folder / "AnomalyTrack-all").glob("*.hdf5"))) == 110
    assert len(list((folder / "ObstacleTrack-all").glob("*.hdf5"))) == 358
    with h5py.File(folder / "ObstacleTrack-all/motorway_cans_0.5.hdf5") as stored:
        assert list(stored) == ["value"] and stored["value"].dtype == np.float16
        assert stored["value"].shape == SIZE and (stored["value"][:] == 0.5).all()
    said = capsys.readouterr().out
    assert "110 maps" in said and "https://segmentmeifyoucan.com/submit" in said
    assert "metric PixBinaryClass Mine AnomalyTrack-validation,ObstacleTrack-validation" in said


def test_a_release_that_is_not_complete_is_refused(tmp_path, release, capsys):
    for image in sorted(release.glob("dataset_AnomalyTrack/images/*"))[1:]:
        target = tmp_path / image.relative_to(release)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(image)
    command = ("smiyc", "--weights", "w.pth", "--method", "M", "--root", tmp_path)
    assert run(*command, "--output", tmp_path / "o") == 2
    assert "109 of 110 frames" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_two_images_of_one_name_are_refused(tmp_path, capsys):
    for ending in ("png", "jpg"):
        write_image(tmp_path / f"in/0.{ending}", np.zeros((*SIZE, 3), np.uint8))
    assert run("fishyscapes", "--weights", "w.pth", "--input", tmp_path / "in") == 2
    assert "several images named 0" in capsys.readouterr().err


def test_a_track_that_is_not_there_says_where_to_get_it(tmp_path, capsys):
    command = ("smiyc", "--weights", "w.pth", "--method", "M", "--root", tmp_path)
    assert run(*command, "--output", tmp_path / "o") == 2
    said = capsys.readouterr().err
    assert "dataset_AnomalyTrack/images" in said and "segmentmeifyoucan.com/datasets" in said


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
