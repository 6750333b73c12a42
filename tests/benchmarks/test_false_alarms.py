"""False alarms per minute, on a video of a few frames made by hand."""

import json

import false_alarms
import numpy as np
import pytest
import torch

from anoseg_d2.checkpoint import model_meta
from anoseg_d2.prediction.video import VideoWriter

FPS = 10.0


def frame(*boxes):
    """A dark frame with bright boxes (x, y, side)."""
    picture = np.zeros((60, 80, 3), np.uint8)
    for x, y, side in boxes:
        picture[y : y + side, x : x + side] = 200
    return picture


def brightness(picture):
    return {"scores": {"rba": picture[..., 0] / np.float32(255)}}


# One box that stands still for four frames, one that appears in the third, and specks.
VIDEO = [
    frame((5, 5, 10)),
    frame((6, 5, 10), (40, 40, 3)),
    frame((6, 6, 10), (50, 20, 12)),
    frame((7, 6, 10), (60, 45, 12)),
    frame(),
    frame((5, 5, 10)),
]


def count(video, temporal=None, **options):
    arguments = {"min_size": 50, **options}
    return false_alarms.count_alarms(video, FPS, brightness, {"rba": 0.5}, temporal, **arguments)


def test_components_and_alarms_are_counted_by_hand():
    (row,) = count(VIDEO)
    minutes = 6 / FPS / 60
    # The first box is a component in five frames; it is new in the first and after its gap.
    assert row["components"] == pytest.approx(7 / minutes)
    assert row["alarms"] == pytest.approx(4 / minutes)
    assert row["alarming"] == pytest.approx(100 * 5 / 6)
    assert (row["frames"], row["threshold"], row["temporal"]) == (6, 0.5, "-")


def test_specks_count_when_they_are_large_enough():
    (row,) = count(VIDEO, min_size=9)
    assert row["components"] == pytest.approx(8 / (6 / FPS / 60))


def test_the_filter_has_rows_of_its_own_and_calms_what_flickers():
    still = np.tile(np.linspace(40, 120, 80).astype(np.uint8)[None, :, None], (60, 1, 3))
    flicker = iter([0.0, 0.9, 0.0, 0.9, 0.0])

    def predictor(picture):
        return {"scores": {"rba": np.full((60, 80), next(flicker), np.float32)}}

    plain, filtered = false_alarms.count_alarms(
        [still] * 5, FPS, predictor, {"rba": 0.5}, 0.3, min_size=50
    )
    assert (plain["temporal"], filtered["temporal"]) == ("-", "0.3")
    assert plain["alarms"] == pytest.approx(2 / (5 / FPS / 60))
    assert filtered["alarms"] == filtered["components"] == filtered["alarming"] == 0


def test_one_command_reads_thresholds_and_names_scores_that_a_model_lacks(
    tmp_path, tiny_eomt, monkeypatch, capsys
):
    model = tiny_eomt(has_anomaly=True)
    torch.save({"model": model.state_dict(), "meta": model_meta(model)}, tmp_path / "w.pth")
    entry = {"tpr_thresholds": {"95": -9.0}}
    sets = {"road": {"scores": {"rba": entry}}, "lane": {"scores": {}}}
    (tmp_path / "results.json").write_text(json.dumps({"datasets": sets}))
    with VideoWriter(tmp_path / "clip.mp4", FPS) as writer:
        for picture in VIDEO:
            writer.write(picture)
    arguments = [str(tmp_path / "clip.mp4"), "--weights", str(tmp_path / "w.pth")]
    arguments += ["--results", str(tmp_path / "results.json"), "--results-set", "road"]
    arguments += ["--scores", "rba", "memory", "--max-frames", "3", "--temporal", "0.3"]
    arguments += ["--json", str(tmp_path / "alarms.json")]
    monkeypatch.setattr("sys.argv", ["false_alarms.py", *arguments])
    false_alarms.main()
    assert "without memory: score 'memory' needs a model with 'memory'" in capsys.readouterr().out
    rows = json.loads((tmp_path / "alarms.json").read_text())["rows"]
    assert [(row["score"], row["temporal"], row["frames"]) for row in rows] == [
        ("rba", "-", 3),
        ("rba", "0.3", 3),
    ]
    # Every pixel is above -9: one component in each frame, new only in the first.
    assert rows[0]["components"] == pytest.approx(60 * FPS)
    assert rows[0]["alarms"] == pytest.approx(60 * FPS / 3)
