"""Predicting many images and videos in a row, whatever single inputs do."""

import contextlib
import sys
import time

from tqdm import tqdm

from anoseg_d2.data.image_io import read_image
from anoseg_d2.prediction.outputs import ScoreOutputs
from anoseg_d2.prediction.temporal import TemporalFilter
from anoseg_d2.prediction.video import open_video

__all__ = ["PredictionJob"]

_BAR = "{desc} {n_fmt}/{total_fmt} |{bar}| {rate_noinv_fmt}, {remaining} left"
_ENDLESS_BAR = "{desc} {n_fmt}, {rate_noinv_fmt}, {elapsed} gone"


class PredictionJob:
    """Predict inputs and write their outputs; name those that cannot be read, and go on.

    Args:
        predictor: `AnomalyPredictor`, or anything called alike.
        outputs: {score name: its `ScoreOutputs`}.
        temporal: weight of the present frame for `TemporalFilter`; None for no filter.
        max_frames: of each video.

    Attributes:
        done, failed: images and frames that were written; inputs that could not be read.
        seconds: that it took.
    """

    def __init__(
        self,
        predictor,
        outputs: dict[str, ScoreOutputs],
        *,
        temporal: float | None = None,
        max_frames: int | None = None,
    ):
        self.predictor, self.outputs = predictor, outputs
        self.temporal, self.max_frames = temporal, max_frames
        self.done = self.failed = 0
        self.seconds = 0.0

    def fail(self, sentence) -> None:
        """Name on stderr an input that cannot be read."""
        self.failed += 1
        tqdm.write(f"error: {sentence}", file=sys.stderr)

    def images(self, files) -> None:
        """Predict still images, each an `InputFile`."""
        start = time.monotonic()
        with _progress("images", len(files)) as bar:
            for file in files:
                try:
                    photo = read_image(file.path)
                except (ValueError, OSError) as error:
                    self.fail(error)
                else:
                    self._image(file, photo)
                bar.update()
        self.seconds += time.monotonic() - start

    def _image(self, file, photo) -> None:
        scores = self.predictor(photo[..., ::-1])["scores"]
        for name, outputs in self.outputs.items():
            outputs.write_image(file.name, str(file.path), photo, scores[name])
        self.done += 1

    def video(self, source: str | int, name: str) -> None:
        """Predict the frames of a video file, or of a webcam until Ctrl-C.

        A file that is damaged on the way keeps the outputs of the frames before.

        Args:
            source: path, or number of the webcam.
            name: of the outputs.
        """
        start = time.monotonic()
        try:
            reader = open_video(source)
        except (ValueError, OSError) as error:
            return self.fail(error)
        is_camera = isinstance(source, int)
        with reader, contextlib.ExitStack() as stack:
            fps = self._camera_rate(reader) if is_camera else reader.fps
            sound_of = None if is_camera else source
            writers = {
                score: stack.enter_context(outputs.video(name, str(source), fps, sound_of))
                for score, outputs in self.outputs.items()
            }
            try:
                self._frames(reader, writers, name, is_camera)
            except KeyboardInterrupt:
                # That is how a recording ends; what is recorded is whole.
                if not is_camera:
                    raise
        self.seconds += time.monotonic() - start

    def _frames(self, reader, writers: dict, name: str, is_camera: bool) -> None:
        temporal = None if self.temporal is None else TemporalFilter(self.temporal)
        total = min(filter(None, (reader.frames, self.max_frames)), default=None)
        with _progress(name, total) as bar:
            for index, (frame, when) in enumerate(self._readable(reader)):
                scores = self.predictor(frame)["scores"]
                if temporal is not None:
                    scores = temporal(frame, scores)
                for score, write in writers.items():
                    write(index, None if is_camera else when, frame[..., ::-1], scores[score])
                self.done += 1
                bar.update()
                if index + 1 == self.max_frames:
                    break

    def _readable(self, reader):
        """Frames up to the end, or up to where the file is damaged."""
        try:
            yield from reader
        except ValueError as error:
            self.fail(error)

    def _camera_rate(self, reader) -> float:
        """Frames per second that this machine predicts, at most those of the camera."""
        for frame, _ in self._readable(reader):
            self.predictor(frame)  # the first call prepares kernels and memory
            start = time.monotonic()
            self.predictor(frame)
            return min(reader.fps, 1 / max(time.monotonic() - start, 1e-3))
        return reader.fps


def _progress(what: str, total: int | None) -> tqdm:
    """A bar with images per second and time left, on a terminal alone."""
    form = _BAR if total else _ENDLESS_BAR
    return tqdm(desc=what, total=total, unit=" images", bar_format=form, disable=None)
