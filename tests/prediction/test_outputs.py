"""Every requested output of a score, for images and for videos."""

import json

import numpy as np
import pytest

from anoseg_d2.data.image_io import read_image
from anoseg_d2.evaluation.map_files import read_map
from anoseg_d2.prediction.outputs import OUTPUTS, ScoreOutputs, check_outputs
from anoseg_d2.prediction.video import open_video
from anoseg_d2.utils.visualization import heat_map


def scene(height=60, width=80):
    """Gray photo and a score of 0 with a block of 0.8."""
    score = np.zeros((height, width), np.float32)
    score[30:40, 20:50] = 0.8
    return np.full((height, width, 3), 90, np.uint8), score


@pytest.mark.parametrize("kinds", [["contours"], ["json"], ["overlay", "json"]])
def test_components_need_a_threshold(kinds, tmp_path):
    with pytest.raises(ValueError, match="give --threshold, --tpr"):
        ScoreOutputs(tmp_path, "rba", kinds)
    ScoreOutputs(tmp_path, "rba", kinds, threshold=0.5)


def test_unknown_outputs_are_named():
    with pytest.raises(ValueError, match="mask.*overlay"):
        check_outputs(["overlay", "mask"])


def test_every_output_of_an_image_lies_in_its_place(tmp_path):
    photo, score = scene()
    kinds = [kind for kind in OUTPUTS if kind != "byte"]  # which needs another scale
    with ScoreOutputs(tmp_path, "rba_sum", kinds, threshold=0.5, min_size=4) as outputs:
        outputs.write_image("a", "in/a.png", photo, score, (score > 0.5).astype(np.int64))
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert files == [
        "rba_sum/components.json",
        "rba_sum/contours/a.jpg",
        "rba_sum/heatmap/a.png",
        "rba_sum/overlay/a.jpg",
        "rba_sum/raw_npy/a.npy",
        "rba_sum/raw_png/a.png",
        "rba_sum/segmentation/a.png",
    ]
    assert np.array_equal(read_map(tmp_path / "rba_sum/raw_npy/a.npy"), score)
    assert np.abs(read_map(tmp_path / "rba_sum/raw_png/a.png") - score).max() < 1e-5
    assert read_image(tmp_path / "rba_sum/overlay/a.jpg").shape == photo.shape
    content = json.loads((tmp_path / "rba_sum/components.json").read_text())
    assert content["info"] == {"score": "rba_sum", "threshold": 0.5, "min_size": 4}
    assert content["annotations"][0]["bbox"] == [20, 30, 30, 10]
    assert content["images"][0]["file_name"] == "in/a.png"


def test_the_first_image_gives_an_unbounded_score_its_scale(tmp_path):
    photo, score = scene()
    outputs = ScoreOutputs(tmp_path, "energy", ["heatmap"])
    outputs.write_image("a", "a", photo, score - 10)
    outputs.write_image("b", "b", photo, score + 90)
    bright = read_image(tmp_path / "energy/heatmap/b.png")[:60]
    assert (bright == heat_map(np.ones((1, 1)), 0, 1)[0, 0]).all()


def test_a_heat_map_of_one_colour_is_said_once(tmp_path, caplog):
    photo, score = scene()
    outputs = ScoreOutputs(tmp_path, "rba", ["heatmap"])
    outputs.write_image("a", "a.png", photo, score * 0.7 - 0.7)
    assert not caplog.records
    for name in "bc":
        outputs.write_image(name, f"{name}.png", photo, score * 1e-3 + 2)
    (record,) = caplog.records
    assert "b.png is nearly of one colour" in record.getMessage()


def test_a_video_gives_videos_maps_per_frame_and_records(tmp_path):
    photo, score = scene()
    with (
        ScoreOutputs(
            tmp_path, "anomaly", ["overlay", "heatmap", "raw_npy", "json"], threshold=0.5
        ) as outputs,
        outputs.video("clip.v1", "clip.v1.mp4", 10) as write,
    ):
        for index in range(3):
            write(index, index / 10, photo, score)
    with open_video(tmp_path / "anomaly/overlay/clip.v1.mp4") as reader:
        assert len(list(reader)) == 3
    maps = sorted(p.name for p in (tmp_path / "anomaly/raw_npy/clip.v1").iterdir())
    assert maps == ["000000.npy", "000001.npy", "000002.npy"]
    images = json.loads((tmp_path / "anomaly/components.json").read_text())["images"]
    assert [(i["file_name"], i["frame"], i["time"]) for i in images] == [
        ("clip.v1.mp4", 0, 0.0),
        ("clip.v1.mp4", 1, 0.1),
        ("clip.v1.mp4", 2, 0.2),
    ]


def test_the_events_of_every_video_are_in_one_file_and_drawn(tmp_path):
    photo, score = scene()
    with ScoreOutputs(tmp_path, "anomaly", ["events"], threshold=0.5) as outputs:
        for name in ("a", "b"):
            with outputs.video(name, f"{name}.mp4", 10) as write:
                for index in range(4):
                    write(index, index / 10, photo, score)
    lines = (tmp_path / "anomaly/events.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [(r["video"], r["event"], r["frames"]) for r in records] == [
        ("a.mp4", 1, 4),
        ("b.mp4", 1, 4),
    ]
    assert records[0]["box"] == [20, 30, 30, 10] and records[0]["end"] == 0.3
    with open_video(tmp_path / "anomaly/events/a.mp4") as reader:
        first, *_, last = (frame for frame, _ in reader)
    # A thing is numbered when it has been seen for a while.
    assert np.abs(first.astype(int) - 90).max() < 12 < np.abs(last.astype(int) - 90).max()
