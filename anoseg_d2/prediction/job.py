"""Predict many images and videos in turn, skipping broken ones."""

import contextlib
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from tqdm import tqdm

from anoseg_d2.data.image_io import read_image
from anoseg_d2.prediction.outputs import ScoreOutputs
from anoseg_d2.prediction.temporal import TemporalFilter
from anoseg_d2.prediction.video import open_video
from anoseg_d2.utils.cli import Progress, printable

# Images that are read, predicted and written together.
_TOGETHER = 4
_TOGETHER_PIXELS = 2_000_000  # larger images fill the network with their own windows


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
        """Predict still images, a list of `InputFile`, some of them together.

        Images are read in parallel, and one thread writes while the next ones are predicted. It is
        only one: the first image sets the colour scale for all, and the json is written in order.
        """
        start = time.monotonic()
        writing: list[Future] = []
        with (
            Progress("predicted", len(files)) as progress,
            ThreadPoolExecutor(_TOGETHER, "read") as readers,
            ThreadPoolExecutor(1, "write") as writer,
        ):
            for first in range(0, len(files), _TOGETHER):
                some = files[first : first + _TOGETHER]
                reading = [(file, readers.submit(read_image, file.path)) for file in some]
                batch = []
                for file, future in reading:
                    try:
                        batch.append((file, future.result()))
                    except (ValueError, OSError) as error:
                        self.fail(error)
                results = self._predict(batch)
                # Maps that are not written yet wait in memory: only those of one batch may.
                for future in writing:
                    future.result()
                writing = [
                    writer.submit(
                        outputs.write_image,
                        file.name,
                        str(file.path),
                        photo,
                        result["scores"][score],
                        result["sem_seg"],
                    )
                    for (file, photo), result in zip(batch, results, strict=True)
                    if result is not None
                    for score, outputs in self.outputs.items()
                ]
                self.done += sum(result is not None for result in results)
                progress.update(len(some))
            for future in writing:
                future.result()
        self.seconds += time.monotonic() - start

    def _predict(self, batch) -> list[dict | None]:
        """Predict images together, or one by one if they are large or one of them is refused."""
        pixels = sum(photo.shape[0] * photo.shape[1] for _, photo in batch)
        if len(batch) < 2 or pixels <= _TOGETHER_PIXELS:
            try:
                return self.predictor([photo[..., ::-1] for _, photo in batch])
            except ValueError as error:
                if len(batch) == 1:
                    self.fail(f"{batch[0][0].path}: {error}")
                    return [None]
        return [self._predict([entry])[0] for entry in batch]

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
        # A new one for each video: what it remembers are the last frames.
        temporal = None if self.temporal is None else TemporalFilter(self.temporal)
        # Many files state no number of frames, some a wrong one: only progress depends on it.
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
