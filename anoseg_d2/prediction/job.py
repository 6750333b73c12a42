"""Predict many images and videos in turn, skipping broken ones."""

import contextlib
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from tqdm import tqdm

from anoseg_d2.data.image_io import read_image
from anoseg_d2.prediction.outputs import ScoreOutputs
from anoseg_d2.prediction.temporal import TemporalFilter
from anoseg_d2.prediction.video import open_video
from anoseg_d2.utils.cli import Progress, printable

__all__ = ["PredictionJob"]

# Most images that are read ahead, predicted together, or finished but not yet written.
_WAITING = 4
_BATCH_PIXELS = 2_000_000  # a batch ends here: large images fill the network with their own windows


class PredictionJob:
    """Predict inputs and write their outputs; inputs that cannot be read are reported and skipped.

    Args:
        predictor: `AnomalyPredictor`, or a callable with the same arguments and results.
        outputs: {score name: its `ScoreOutputs`}.
        temporal: weight of the current frame for `TemporalFilter`; None for no filter.
        max_frames: most frames to read from each video; None for all.

    Attributes:
        done, failed: number of images and frames written, and of inputs that could not be read.
        seconds: time spent.
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
        """Count an input that cannot be read and report it on stderr."""
        self.failed += 1
        tqdm.write(printable(f"error: {sentence}"), file=sys.stderr)

    def images(self, files) -> None:
        """Predict still images, each an `InputFile`.

        One thread reads ahead and one writes while the model runs. The writer is a single thread:
        the first image sets the colour scale for all, and the json is written in order.
        """
        start = time.monotonic()
        writing: deque = deque()
        with (
            Progress("predicted", len(files)) as progress,
            ThreadPoolExecutor(1, "read") as reader,
            ThreadPoolExecutor(1, "write") as writer,
        ):
            for batch in self._read_batches(reader, files, progress):
                for (file, photo), result in zip(batch, self._predict(batch), strict=True):
                    if result is not None:
                        writing.append(writer.submit(self._write_image, file, photo, result))
                    # Finished maps wait in memory, so their number is limited.
                    while len(writing) > _WAITING:
                        writing.popleft().result()
                progress.update(len(batch))
            for future in writing:
                future.result()
        self.seconds += time.monotonic() - start

    def _read_batches(self, reader, files, progress):
        """Yield lists of (file, photo) to predict together; report unreadable files."""
        remaining = iter(files)
        reading = deque((f, reader.submit(read_image, f.path)) for f in islice(remaining, _WAITING))
        batch, pixels = [], 0
        while reading:
            file, future = reading.popleft()
            reading.extend((f, reader.submit(read_image, f.path)) for f in islice(remaining, 1))
            try:
                photo = future.result()
            except (ValueError, OSError) as error:
                self.fail(error)
                progress.update()
                continue
            batch.append((file, photo))
            pixels += photo.shape[0] * photo.shape[1]
            if len(batch) == _WAITING or pixels >= _BATCH_PIXELS:
                yield batch
                batch, pixels = [], 0
        if batch:
            yield batch

    def _predict(self, batch) -> list[dict | None]:
        """Predict a batch; if it is refused, predict image by image and report the bad ones."""
        try:
            return self.predictor([photo[..., ::-1] for _, photo in batch])
        except ValueError as error:
            if len(batch) == 1:
                self.fail(f"{batch[0][0].path}: {error}")
                return [None]
        return [self._predict([entry])[0] for entry in batch]

    def _write_image(self, file, photo, result: dict) -> None:
        for name, outputs in self.outputs.items():
            outputs.write_image(
                file.name, str(file.path), photo, result["scores"][name], result["sem_seg"]
            )
        self.done += 1

    def video(self, path: str, name: str) -> None:
        """Predict the frames of a video file.

        Where a file is damaged, the outputs of the frames before the damage are kept.

        Args:
            path: of the file.
            name: base name of the outputs.
        """
        start = time.monotonic()
        try:
            reader = open_video(path)
        except (ValueError, OSError) as error:
            return self.fail(error)
        temporal = None if self.temporal is None else TemporalFilter(self.temporal)
        total = min(filter(None, (reader.frames, self.max_frames)), default=None)
        with reader, Progress(name, total) as progress, contextlib.ExitStack() as stack:
            writers = {
                score: stack.enter_context(outputs.video(name, path, reader.fps))
                for score, outputs in self.outputs.items()
            }
            frames = islice(self._readable(reader), self.max_frames)
            for index, (frame, when) in enumerate(frames):
                result = self.predictor(frame)
                scores = result["scores"]
                if temporal is not None:
                    scores = temporal(frame, scores)
                for score, write in writers.items():
                    write(index, when, frame[..., ::-1], scores[score], result["sem_seg"])
                self.done += 1
                progress.update()
        self.seconds += time.monotonic() - start

    def _readable(self, reader):
        """Yield frames up to the end, or up to where the file is damaged."""
        try:
            yield from reader
        except ValueError as error:
            self.fail(error)
