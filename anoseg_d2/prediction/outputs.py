"""Write every requested output of one score, for images and for videos."""

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from anoseg_d2.data.image_io import write_image
from anoseg_d2.evaluation.alarm_rate import to_unit
from anoseg_d2.evaluation.map_files import write_map
from anoseg_d2.prediction.detections import CocoWriter, find_detections
from anoseg_d2.prediction.events import VideoEvents
from anoseg_d2.prediction.pictures import add_color_bar, display_range, draw_detections, glow
from anoseg_d2.prediction.video import VideoWriter
from anoseg_d2.utils.cli import printable
from anoseg_d2.utils.files import write_atomic
from anoseg_d2.utils.visualization import class_palette, color_classes, overlay

# Kinds of output, and the file extension of each for an image.
OUTPUTS = {
    "overlay": ".jpg",
    "heatmap": ".png",
    "contours": ".jpg",
    "segmentation": ".png",
    "raw_png": ".png",
    "raw_npy": ".npy",
    "byte": ".png",
    "json": ".json",
    "events": ".mp4",
}
_PICTURES = ("overlay", "heatmap", "contours", "segmentation")
_NEED_THRESHOLD = ("contours", "json", "events")
_LEAST_CONTRAST = 0.02  # of the colour scale, between the scores of nearly all pixels

logger = logging.getLogger(__name__)


def check_outputs(kinds) -> None:
    """Raise ValueError, which names them and the known ones, on unknown kinds of output."""
    unknown = [kind for kind in kinds if kind not in OUTPUTS]
    if unknown or not kinds:
        raise ValueError(
            f"unknown output {', '.join(unknown) or '(none)'}; known: {', '.join(OUTPUTS)}"
        )


class ScoreOutputs:
    """Write the outputs of one score to `<folder>/<score>/<kind>/<name><extension>`.

    The components of all images go into one COCO json, `<folder>/<score>/components.json`, and the
    events of all videos into `<folder>/<score>/events.jsonl`, one per line. Used as a context, it
    writes both when the block ends.

    Args:
        folder: folder of all outputs.
        name: name of the score.
        kinds: names in `OUTPUTS`.
        threshold: a pixel is anomalous where score >= threshold; `contours` and `json` need it.
        min_size: components of fewer pixels are left out.
        value_range: ends of the colour scale; None to take `display_range` of the first image
            for all of them, so that colours are comparable.
        unit_scale: threshold of `anoseg threshold` whose scale of 0..1 everything is written on.
        info: further plain values for the json's `info`.
        palette: (256, 3) uint8 RGB of the classes; None for the colours of Cityscapes.
    """

    def __init__(
        self,
        folder,
        name: str,
        kinds,
        *,
        threshold: float | None = None,
        min_size: int = 50,
        value_range: tuple[float, float] | None = None,
        unit_scale: Mapping[str, Any] | None = None,
        info: dict | None = None,
        palette: np.ndarray | None = None,
    ):
        check_outputs(kinds)
        needing = [kind for kind in kinds if kind in _NEED_THRESHOLD]
        if needing and threshold is None:
            raise ValueError(
                f"{' and '.join(needing)} need a threshold that separates anomalous pixels: give "
                "--threshold, --tpr with the results of an evaluation, or weights with one of "
                "`anoseg threshold`"
            )
        if "byte" in kinds and unit_scale is None:
            raise ValueError("byte is a score on the scale of 0..1: give --unit-scale")
        self.folder, self.name, self.kinds = Path(folder) / name, name, tuple(kinds)
        self.unit_scale = unit_scale
        if unit_scale is not None:
            value_range = value_range or (0.0, 1.0)
            threshold = threshold if threshold is None else float(self._scaled(threshold))
        self.threshold, self.min_size, self.value_range = threshold, min_size, value_range
        facts = {"score": name, "threshold": threshold, "min_size": min_size, **(info or {})}
        self._json = CocoWriter(self.folder / "components.json", facts)
        self.palette = class_palette(255) if palette is None else palette
        self._events: list[dict] | None = None  # there was no video yet
        self._warned = False
        self._has_components = any(kind in _NEED_THRESHOLD for kind in self.kinds)

    def __enter__(self) -> "ScoreOutputs":
        return self

    def __exit__(self, *error) -> None:
        if "json" in self.kinds:
            self._json.close()
        if self._events is not None:
            lines = "".join(json.dumps(record) + "\n" for record in self._events)
            write_atomic(self.folder / "events.jsonl", lines.encode())

    def path(self, kind: str, name: str) -> Path:
        """Return the path of an output of the image called `name`."""
        return self.folder / kind / f"{name}{OUTPUTS[kind]}"

    def write_image(
        self,
        name: str,
        file_name: str,
        photo: np.ndarray,
        score: np.ndarray,
        sem_seg: np.ndarray | None = None,
    ) -> None:
        """Write the outputs of one image.

        Args:
            name: base name of its files, without extension.
            file_name: name of the photograph, for the json.
            photo: (H, W, 3) uint8 RGB.
            score: (H, W) float32.
            sem_seg: (H, W) int64 train ids; only `segmentation` needs it.
        """
        score = self._scaled(score)
        # Heat maps have flat colours that JPEG would smear; a low level of png is fast and nearly
        # as small.
        for kind, picture in self._pictures(photo, score, file_name, sem_seg).items():
            options = {"quality": 92} if OUTPUTS[kind] == ".jpg" else {"compress_level": 3}
            write_image(self.path(kind, name), picture, **options)
        self._write_raw(name, score)

    def _pictures(self, photo, score, file_name: str, sem_seg, **fields) -> dict[str, np.ndarray]:
        """Return the requested pictures by kind, and add the components to the json."""
        if self.value_range is None:
            self.value_range = display_range(self.name, score)
        if "heatmap" in self.kinds or "overlay" in self.kinds:
            self._warn_of_one_color(score, file_name)
        detections = []
        if self._has_components:
            detections = find_detections(score, self.threshold, self.min_size)
        if "json" in self.kinds:
            self._json.add(file_name, score.shape, detections, **fields)
        # Only what was asked for is drawn.
        draw = {
            "overlay": lambda: glow(photo, score, *self.value_range),
            "heatmap": lambda: add_color_bar(score, *self.value_range, self.name, self.threshold),
            "contours": lambda: draw_detections(photo, detections),
            "segmentation": lambda: overlay(photo, color_classes(sem_seg, self.palette), 0.6),
        }
        return {kind: draw[kind]() for kind in self.kinds if kind in _PICTURES}

    def _warn_of_one_color(self, score: np.ndarray, file_name: str) -> None:
        """Warn once, with a remedy, if all values of a score lie beyond its colour scale."""
        low, high = self.value_range
        ends = np.quantile(score.ravel()[:: max(1, score.size // 10**5)], (0.005, 0.995))
        if self._warned or np.ptp(np.clip(ends, low, high)) >= _LEAST_CONTRAST * (high - low):
            return
        self._warned = True
        logger.warning(
            "the heat map of %s is nearly of one colour: %s is %.4g to %.4g there, and the scale "
            "goes from %.4g to %.4g; --range sets another one",
            *(printable(file_name), self.name, *ends, low, high),
        )

    def _scaled(self, score):
        """Put a score on the scale of 0..1, if that is asked for."""
        scale = self.unit_scale
        if scale is None or scale.get("unit_scale"):  # an exported file may give them on it
            return score
        return to_unit(score, scale["threshold"], scale["median"])

    def _write_raw(self, name: str, score: np.ndarray) -> None:
        if "byte" in self.kinds:
            # 0.5 is 128, so that anomalous pixels are those of at least 128.
            levels = np.minimum(score * 256, 255).astype(np.uint8)
            write_image(self.path("byte", name), levels)
        for kind in ("raw_png", "raw_npy"):
            if kind in self.kinds:
                write_map(self.path(kind, name), score)

    @contextlib.contextmanager
    def video(self, name: str, file_name: str, fps: float):
        """Write the outputs of a video: pictures as mp4, raw maps as one file per frame.

        Used as a context, it gives a function of (frame number, time in s, photo, score,
        segmentation). The mp4 files appear when the block ends without an error.

        Args:
            name, file_name: as in `write_image`.
            fps: frames per second.
        """
        with contextlib.ExitStack() as stack:
            writers = {
                kind: stack.enter_context(
                    VideoWriter(self.path(kind, name).with_suffix(".mp4"), fps)
                )
                for kind in self.kinds
                if kind in _PICTURES
            }

            events = None
            if "events" in self.kinds:
                events = VideoEvents(file_name, fps, self.threshold, self.min_size)
                self._events = records = self._events or []
                # It runs when `events` is closed, which ends the last ones.
                stack.callback(lambda: records.extend(events.records))
                stack.enter_context(events)
                film = stack.enter_context(VideoWriter(self.path("events", name), fps))

            def write(index: int, time: float | None, photo, score, sem_seg=None) -> None:
                score = self._scaled(score)
                pictures = self._pictures(photo, score, file_name, sem_seg, frame=index, time=time)
                for kind, picture in pictures.items():
                    writers[kind].write(picture[..., ::-1], time)
                if events is not None:
                    film.write(events.draw(time, photo, score)[..., ::-1], time)
                self._write_raw(f"{name}/{index:06d}", score)

            yield write
