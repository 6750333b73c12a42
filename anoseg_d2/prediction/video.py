"""Read and write videos one frame at a time.

PyAV, which is optional, decodes and encodes.
"""

import contextlib
import math
from fractions import Fraction
from pathlib import Path

import numpy as np

from anoseg_d2.utils.files import atomic_path

try:
    import av
except ImportError:
    av = None

VIDEO_EXTENSIONS = (
    ".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".gif",
)  # fmt: skip
# A text file named drive.mp4 may be a playlist that makes ffmpeg read other files, or the network:
# only containers that hold the video themselves are opened.
_OPENING = {
    "format_whitelist": "mov,mp4,avi,matroska,webm,mpeg,mpegts,mpegvideo,gif",
    "protocol_whitelist": "file",
}
_FALLBACK_FPS = 25.0  # where the file does not state one
_TICKS = Fraction(1, 90000)  # seconds; the usual frame intervals are whole multiples of it


def open_video(path):
    """Open a video file.

    Args:
        path: of the file.
    Returns:
        an object to iterate over once, which yields (frame (H, W, 3) uint8 BGR, rotated as the
        file says, and time in seconds). It has `fps` in 1/s, `frames`, the number that the file
        states or None, and it is a context manager.
    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a video; also while iterating, where a file is damaged.
        ImportError: PyAV is not installed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such video file: {path}")
    _need_av()
    return _Reader(str(path))


def _need_av() -> None:
    if av is None:
        raise ImportError("videos need PyAV, which is optional: pip install av")


class VideoWriter:
    """Write an mp4 without sound, which appears under its name when it is complete.

    Used as a context, it is finished when the block ends and discarded when the block fails.

    Args:
        path: file to write, .mp4.
        fps: frames per second.
    """

    def __init__(self, path, fps: float):
        _need_av()
        self.path, self.fps = Path(path), fps
        self._stack = contextlib.ExitStack()
        self._container = None
        self._last = -math.inf

    def write(self, frame: np.ndarray, time: float | None = None) -> None:
        """Append a frame.

        Args:
            frame: (H, W, 3) uint8 BGR; all frames have one size. The last row or column of an odd
                size is repeated, because the codec stores colour at half size.
            time: in seconds, which preserves uneven intervals; None for 1 / fps after the last
                frame.
        """
        rows, columns = (side % 2 for side in frame.shape[:2])
        if rows or columns:
            frame = np.pad(frame, ((0, rows), (0, columns), (0, 0)), mode="edge")
        if self._container is None:
            self._open(frame.shape[:2])
        if time is None or time <= self._last:
            time = 0.0 if self._last < 0 else self._last + 1 / self.fps
        self._last = time
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="bgr24")
        picture.pts, picture.time_base = round(time / _TICKS), _TICKS
        picture.duration = round(1 / self.fps / _TICKS)
        self._container.mux(self._stream.encode(picture))

    def _open(self, size: tuple[int, int]) -> None:
        temporary = self._stack.enter_context(atomic_path(self.path, ".part.mp4"))
        self._container = self._stack.enter_context(av.open(str(temporary), "w"))
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        rate = Fraction(self.fps).limit_denominator(1001)
        self._stream = self._container.add_stream(codec, rate=rate)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = _TICKS
        self._stream.options = {"crf": "18"} if codec == "libx264" else {"qscale": "2"}
        # The codec still holds frames when the last one is written.
        self._stack.callback(lambda: self._container.mux(self._stream.encode(None)))

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)  # without a frame, no file is written


class _Reader:
    def __init__(self, name: str):
        self._name = name
        try:
            self._container = av.open(name, options=_OPENING)
        except (av.FFmpegError, OSError) as error:
            raise ValueError(f"{name} cannot be opened as a video: {error}") from error
        if not self._container.streams.video:
            self._container.close()
            raise ValueError(f"{name} contains no video stream")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.fps = float(self._stream.average_rate or self._stream.guessed_rate or _FALLBACK_FPS)
        seconds = (self._container.duration or 0) / av.time_base
        self.frames = self._stream.frames or round(seconds * self.fps) or None

    def __iter__(self):
        index = 0
        try:
            for frame in self._container.decode(self._stream):
                picture = frame.to_ndarray(format="bgr24")
                # The rotation is counter-clockwise, like that of rot90.
                turns = round(getattr(frame, "rotation", 0) / 90) % 4
                yield np.rot90(picture, turns) if turns else picture, frame.time
                index += 1
        except av.FFmpegError as error:
            raise ValueError(
                f"{self._name} cannot be decoded after frame {index}: {error}"
            ) from error
        if index == 0:
            raise ValueError(f"{self._name} contains no frame that can be decoded")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._container.close()
