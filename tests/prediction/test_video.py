"""Videos are read and written, one frame at a time."""

import tracemalloc

import numpy as np
import pytest

from anoseg_d2.prediction import video
from anoseg_d2.prediction.video import VideoWriter, open_video

pytest.importorskip("av", reason="the optional package av is missing")


def frames(count, height=48, width=64):
    """Gray frames, brighter each time, left half darker; odd sizes too."""
    for index in range(count):
        frame = np.full((height, width, 3), 40 + 10 * index % 200, np.uint8)
        frame[:, : width // 2] //= 2
        yield frame


def write(path, count=8, fps=12.5, **options):
    with VideoWriter(path, fps) as writer:
        for frame in frames(count, **options):
            writer.write(frame)
    return path


def test_what_is_written_is_read_back(tmp_path):
    path = write(tmp_path / "new" / "a.mp4")
    with open_video(path) as reader:
        assert (reader.fps, reader.frames) == (12.5, 8)
        found = list(reader)
    times = [time for _, time in found]
    assert np.allclose(times, np.arange(8) / 12.5)
    for (frame, _), expected in zip(found, frames(8), strict=True):
        assert np.abs(frame.astype(int) - expected).mean() < 4
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]


def test_odd_sizes_gain_a_row_and_a_column(tmp_path):
    path = write(tmp_path / "a.mp4", height=47, width=63)
    with open_video(path) as reader:
        assert next(iter(reader))[0].shape == (48, 64, 3)


def test_a_failed_or_empty_video_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4", 25) as writer:
        writer.write(next(frames(1)))
        raise KeyboardInterrupt
    with VideoWriter(tmp_path / "b.mp4", 25):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_a_video_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.mp4"):
        open_video(tmp_path / "gone.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match="text.mp4 cannot be opened"):
        open_video(tmp_path / "text.mp4")


def test_a_playlist_named_like_a_video_opens_no_other_file(tmp_path):
    pytest.importorskip("av")
    write(tmp_path / "secret.mp4")
    for text in (
        "#EXTM3U\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile secret.mp4\n",
    ):
        (tmp_path / "drive.mp4").write_text(text)
        with pytest.raises(ValueError, match="drive.mp4 cannot be opened as a video"):
            open_video(str(tmp_path / "drive.mp4"))


def test_a_damaged_video_gives_its_first_frames_or_names_itself(tmp_path):
    av, path = video.av, tmp_path / "whole.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in frames(50):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
        out.mux(stream.encode(None))
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with open_video(cut) as reader:
        assert 0 < len(list(reader)) < 50


def test_uneven_times_are_kept(tmp_path):
    times = [0.0, 0.1, 0.5, 0.6]
    with VideoWriter(tmp_path / "a.mp4", 10) as writer:
        for frame, time in zip(frames(4), times, strict=True):
            writer.write(frame, time)
    with open_video(tmp_path / "a.mp4") as reader:
        assert np.allclose([time for _, time in reader], times, atol=1e-4)


def test_without_av_it_is_named(tmp_path, monkeypatch):
    write(tmp_path / "a.mp4")
    monkeypatch.setattr(video, "av", None)
    with pytest.raises(ImportError, match="PyAV"):
        open_video(tmp_path / "a.mp4")
    with pytest.raises(ImportError, match="PyAV"):
        VideoWriter(tmp_path / "b.mp4", 25)


def test_a_longer_video_takes_no_more_memory(tmp_path):
    def peak(count):
        path = write(tmp_path / f"{count}.mp4", count, height=240, width=320)
        tracemalloc.start()
        with open_video(path) as reader:
            for _ in reader:
                pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    one = 240 * 320 * 3
    assert peak(24) < peak(6) + 2 * one
