"""An upload is predicted once, and every later look at it gives what the predictor gave."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from anoseg_d2.evaluation.map_files import read_map
from anoseg_d2.prediction import upload as uploads
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
    return uploads.predict_upload(Predictor(), tmp_path / "road & co.png", tmp_path / "maps", 3)


@pytest.fixture
def clip(tmp_path):
    with VideoWriter(tmp_path / "drive.mp4", 10) as writer:
        for _ in range(5):
            writer.write(picture()[..., ::-1])
    seen = []
    made = uploads.predict_upload(
        Predictor(), tmp_path / "drive.mp4", tmp_path / "maps", 3, lambda *n: seen.append(n)
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    return made


def test_a_view_shows_the_components_and_the_classes(photo):
    view = photo.view(0, "msp", 0.5, 50)
    (found,) = view.components
    assert (found.box, found.area, found.score) == ((6, 4, 20, 10), 200, 1.0)
    assert view.legend == [
        ("lawn", (200, 10, 10), pytest.approx(1 - 200 / 2400)),
        ("path", (10, 200, 10), pytest.approx(200 / 2400)),
    ]
    assert view.overlay.shape == view.segmentation.shape == (640, 960, 3)
    assert photo.pixel(0, 480, 320)[:2] == (30, 20)
    assert photo.view(0, "msp", 0.5, 201).components == []
    assert photo.view(0, "energy", 5.0, 50).components[0].score == 10.0


def test_the_slider_reaches_every_value_and_the_colour_scale(photo):
    assert photo.slider_range("msp") == (0.0, 1.0, 0.01)
    low, high, step = photo.slider_range("energy")
    assert (low, high) == (0.0, 10.0) and step == pytest.approx(0.1)


def test_infinite_scores_leave_the_slider_finite(tmp_path):
    made = uploads.Upload(tmp_path / "maps", "a.png", ["lawn"], PALETTE)
    score = np.array([[-np.inf, 0.0], [2.0, np.inf]], np.float32)
    result = {"sem_seg": np.zeros((2, 2), np.int64), "scores": {"energy": score}}
    made.add(np.zeros((2, 2, 3), np.uint8), result, 0.0)
    assert np.isfinite(made.slider_range("energy")).all()


def test_large_frames_are_shown_smaller_and_read_at_their_own_size(tmp_path):
    Image.fromarray(picture(200, 2000)).save(tmp_path / "wide.png")
    made = uploads.predict_upload(Predictor(), tmp_path / "wide.png", tmp_path / "maps", 3)
    assert made.view(0, "msp", 0.5, 50).overlay.shape == (160, 1600, 3)
    x, y, known, scores = made.pixel(0, 8, 6)  # centres at 1.25 times 8.5 and 6.5
    assert (x, y, known, scores) == (10, 8, "path", {"msp": 1.0, "energy": 10.0})
    assert made.pixel(0, 1599, 159)[:2] == (1999, 199)


def test_the_files_of_a_photograph_are_those_of_the_demo(photo):
    files = {path.name: path for path in photo.write("msp", 0.5, 50, {"weights": "w.pth"})}
    kinds = "components.json contours.jpg heatmap.png overlay.jpg raw_png.png segmentation.png"
    assert set(files) == {f"road & co_msp_{k}" for k in kinds.split()} | {"road & co_maps.npz"}
    np.testing.assert_allclose(
        read_map(files["road & co_msp_raw_png.png"]), picture()[..., 0] / 255, atol=1e-4
    )
    with np.load(files["road & co_maps.npz"]) as stored:
        assert set(stored) == {"sem_seg", "msp", "energy"} and stored["energy"].max() == 10
    found = json.loads(files["road & co_msp_components.json"].read_text())
    assert found["info"] == {"score": "msp", "threshold": 0.5, "min_size": 50, "weights": "w.pth"}
    assert [a["area"] for a in found["annotations"]] == [200]
    again = photo.write("energy", 5.0, 50)
    assert all(path.is_file() for path in again)
    assert not files["road & co_msp_raw_png.png"].exists()


def test_a_video_is_cut_and_says_so_and_its_files_have_every_frame(clip):
    assert clip.is_cut and clip.fps == pytest.approx(10) and len(clip.times) == 3
    files = {path.name: path for path in clip.write("msp", 0.5, 50)}
    kinds = "components.json contours.mp4 heatmap.mp4 overlay.mp4 raw_png.zip segmentation.mp4"
    assert set(files) == {f"drive_msp_{k}" for k in kinds.split()}
    with open_video(files["drive_msp_overlay.mp4"]) as reader:
        assert len(list(reader)) == 3
    with zipfile.ZipFile(files["drive_msp_raw_png.zip"]) as archive:
        assert archive.namelist() == [f"00000{i}.png" for i in range(3)]


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
        uploads.predict_upload(Predictor(), tmp_path / name, tmp_path / "maps", 3)
    assert str(tmp_path) not in str(caught.value)
    assert not (tmp_path / "maps").exists()
