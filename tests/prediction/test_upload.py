"""An upload is predicted once, and every later look at it gives what the predictor gave."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from anoseg_d2.evaluation.map_files import read_map
from anoseg_d2.prediction.upload import Upload

PALETTE = np.zeros((256, 3), np.uint8)
PALETTE[:2] = (200, 10, 10), (10, 200, 10)


class Predictor:
    """Gives scores that can be read off the picture: red, and ten times red."""

    class_names, palette = ["lawn", "path"], PALETTE

    def __call__(self, image):
        red = image[..., 2].astype(np.float32) / 255
        scores = {"msp": red, "energy": 10 * red}
        return {"sem_seg": (red > 0.5).astype(np.int64), "scores": scores}


def picture(height=40, width=60):
    photo = np.zeros((height, width, 3), np.uint8)
    photo[4:14, 6:26] = (255, 0, 0)
    return photo


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "road & co.png")
    return Upload(Predictor(), tmp_path / "road & co.png")


def test_a_view_shows_the_components_and_the_classes(photo):
    view = photo.view("msp", 0.5, 50)
    (found,) = view.components
    assert (found.box, found.area, found.score) == ((6, 4, 20, 10), 200, 1.0)
    assert view.classes == [
        ("lawn", pytest.approx(1 - 200 / 2400)),
        ("path", pytest.approx(200 / 2400)),
    ]
    assert view.overlay.shape == view.segmentation.shape == (40, 60, 3)
    assert photo.view("msp", 0.5, 201).components == []
    assert photo.view("energy", 5.0, 50).components[0].score == 10.0


def test_every_finite_value_and_the_colour_scale_are_within_the_extremes(photo):
    assert photo.extremes("msp") == (0.0, 1.0)
    photo.scores["energy"][0, :2] = -np.inf, np.inf
    assert np.isfinite(photo.extremes("energy")).all() and photo.extremes("energy")[1] >= 10


def test_the_files_are_those_of_predict(photo, tmp_path):
    path = photo.write(tmp_path, "msp", 0.5, 50, {"weights": "w.pth"})
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "got")
    got = tmp_path / "got/msp"
    kinds = {"overlay", "heatmap", "contours", "segmentation", "raw_png"}
    assert {entry.name for entry in got.iterdir()} == kinds | {"components.json"}
    raw = read_map(got / "raw_png/road & co.png")
    np.testing.assert_allclose(raw, picture()[..., 0] / 255, atol=1e-4)
    found = json.loads((got / "components.json").read_text())
    assert found["info"] == {"score": "msp", "threshold": 0.5, "min_size": 50, "weights": "w.pth"}
    assert [a["area"] for a in found["annotations"]] == [200]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        *("got", "road & co.png", "road & co_msp.zip")
    ]
