"""An upload is predicted once, and every later look at it gives what the predictor gave."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from anoseg_d2.evaluation.map_files import read_map
from anoseg_d2.prediction.upload import Upload
from anoseg_d2.prediction.video import VideoWriter, open_video

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
    return Upload(Predictor(), tmp_path / "road & co.png", tmp_path / "maps", 3)


@pytest.fixture
def clip(tmp_path):
    with VideoWriter(tmp_path / "drive.mp4", 10) as writer:
        for _ in range(5):
            writer.write(picture()[..., ::-1])
    seen = []
    made = Upload(
        Predictor(), tmp_path / "drive.mp4", tmp_path / "maps", 3, lambda *n: seen.append(n)
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    return made


def test_a_view_shows_the_components_and_the_classes(photo):
    view = photo.view(0, "msp", 0.5, 50)
    (found,) = view.components
    assert (found.box, found.area, found.score) == ((6, 4, 20, 10), 200, 1.0)
    assert view.classes == [
        ("lawn", pytest.approx(1 - 200 / 2400)),
        ("path", pytest.approx(200 / 2400)),
    ]
    assert view.overlay.shape == view.segmentation.shape == (40, 60, 3)
    assert photo.view(0, "msp", 0.5, 201).components == []
    assert photo.view(0, "energy", 5.0, 50).components[0].score == 10.0


def test_every_value_and_the_colour_scale_are_within_the_extremes(photo):
    assert photo.extremes["msp"] == (0.0, 1.0)
    assert photo.extremes["energy"] == (0.0, 10.0)


def test_infinite_scores_leave_the_extremes_finite(tmp_path):
    class Infinite(Predictor):
        def __call__(self, image):
            result = super().__call__(image)
            result["scores"]["energy"][0, :2] = -np.inf, np.inf
            return result

    Image.fromarray(picture()).save(tmp_path / "a.png")
    made = Upload(Infinite(), tmp_path / "a.png", tmp_path / "maps", 3)
    assert np.isfinite(made.extremes["energy"]).all()


def test_large_frames_are_shown_smaller(tmp_path):
    Image.fromarray(picture(200, 2000)).save(tmp_path / "wide.png")
    made = Upload(Predictor(), tmp_path / "wide.png", tmp_path / "maps", 3)
    assert made.view(0, "msp", 0.5, 50).overlay.shape == (160, 1600, 3)


def unpacked(path):
    with zipfile.ZipFile(path) as archive:
        archive.extractall(path.parent / "got")
    return path.parent / "got"


def test_the_files_of_a_photograph_are_those_of_predict(photo):
    got = unpacked(photo.write("msp", 0.5, 50, {"weights": "w.pth"})) / "msp"
    kinds = {"overlay", "heatmap", "contours", "segmentation", "raw_png"}
    assert {path.name for path in got.iterdir()} == kinds | {"components.json"}
    raw = read_map(got / "raw_png/road & co.png")
    np.testing.assert_allclose(raw, picture()[..., 0] / 255, atol=1e-4)
    found = json.loads((got / "components.json").read_text())
    assert found["info"] == {"score": "msp", "threshold": 0.5, "min_size": 50, "weights": "w.pth"}
    assert [a["area"] for a in found["annotations"]] == [200]


def test_a_video_is_cut_and_says_so_and_its_files_have_every_frame(clip):
    assert clip.is_cut and clip.fps == pytest.approx(10) and len(clip.times) == 3
    got = unpacked(clip.write("msp", 0.5, 50)) / "msp"
    with open_video(got / "overlay/drive.mp4") as reader:
        assert len(list(reader)) == 3
    names = sorted(path.name for path in (got / "raw_png/drive").iterdir())
    assert names == [f"00000{i}.png" for i in range(3)]


def test_discarding_leaves_nothing(clip):
    clip.discard()
    assert not clip.folder.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("broken.jpg", b"\xff\xd8\xff\xe0 no", "cannot read image broken.jpg"),
        ("broken.mp4", b"no video", "broken.mp4 cannot be opened as a video"),
        ("notes.txt", b"hello", r"notes.txt is neither an image \(.png .* nor a video \(.mp4"),
    ],
)
def test_a_broken_upload_is_named_without_its_folder(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Upload(Predictor(), tmp_path / name, tmp_path / "maps", 3)
    assert str(tmp_path) not in str(caught.value)
    assert not (tmp_path / "maps").exists()
