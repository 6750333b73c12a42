"""One photograph or short video of a user: predicted once, then looked at in many ways.

The maps of every frame are kept in files, so that another score or threshold needs no second
prediction and a video does not fill the memory:

    FOLDER/000000.npz    photo, sem_seg, and one array per score
    FOLDER/000001.npz    ...
    FOLDER/files/        what `Upload.write` made last
"""

import math
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from anoseg_d2.data.image_io import IMAGE_EXTENSIONS, read_image
from anoseg_d2.prediction.detections import Detection, find_detections
from anoseg_d2.prediction.outputs import ScoreOutputs
from anoseg_d2.prediction.pictures import add_color_bar, display_range, draw_detections, glow
from anoseg_d2.prediction.video import VIDEO_EXTENSIONS, open_video
from anoseg_d2.utils.files import atomic_path
from anoseg_d2.utils.visualization import color_classes, overlay, resize_image

__all__ = ["Upload", "View", "predict_upload"]

_KINDS = ("overlay", "heatmap", "contours", "segmentation", "raw_png", "json")
# Shortest and longest long side of pictures for the screen; downloaded files have native size.
_SCREEN_SIDE = 960, 1600


class View(NamedTuple):
    """What is shown of one frame.

    overlay, heatmap, segmentation: (h, w, 3) uint8 RGB, with a long side within `_SCREEN_SIDE`.
    legend: name, (R, G, B) and fraction of the pixels of every class present, largest first.
    components: in descending order of mean score.
    """

    overlay: np.ndarray
    heatmap: np.ndarray
    segmentation: np.ndarray
    legend: list[tuple[str, tuple[int, int, int], float]]
    components: list[Detection]


@dataclass
class Upload:
    """The predicted frames of one upload.

    Args:
        folder: holds one npz file per frame.
        name: file name of the upload.
        class_names: K names.
        palette: (256, 3) uint8 RGB of the classes.
        size: (H, W) of a frame.
        times: seconds of each frame; a photograph has one frame, at 0.
        fps: frames per second of a video; None for a photograph.
        is_cut: whether the video continues after the last frame read.
        ranges: {score: ends of the colour scale, the same for all frames}.
        extremes: {score: lowest and highest value, of any frame or of the colour scale}.
    """

    folder: Path
    name: str
    class_names: list[str]
    palette: np.ndarray
    size: tuple[int, int] = (0, 0)
    times: list[float] = field(default_factory=list)
    fps: float | None = None
    is_cut: bool = False
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    extremes: dict[str, tuple[float, float]] = field(default_factory=dict)

    def discard(self) -> None:
        """Remove its files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, photo: np.ndarray, result: dict, time: float) -> None:
        """Keep one frame.

        Args:
            photo: (H, W, 3) uint8 RGB.
            result: of `AnomalyPredictor`.
            time: in seconds.
        """
        kind = np.uint8 if len(self.class_names) <= 256 else np.int32
        arrays = {"photo": photo, "sem_seg": result["sem_seg"].astype(kind)}
        for name, score in result["scores"].items():
            arrays[f"score {name}"] = score
            ends = self.ranges.setdefault(name, display_range(name, score))
            low, high = self.extremes.get(name, ends)
            finite = score[np.isfinite(score)]
            self.extremes[name] = (
                float(finite.min(initial=low)),
                float(finite.max(initial=high)),
            )
        with atomic_path(self._path(len(self.times)), ".npz") as path:
            np.savez(path, **arrays)
        self.size = photo.shape[:2]
        self.times.append(time)

    def read(self, index: int, name: str) -> np.ndarray:
        """Read `photo`, `sem_seg` or `score NAME` of a frame."""
        with np.load(self._path(index), allow_pickle=False) as stored:
            return stored[name]

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.npz"

    def slider_range(self, score: str) -> tuple[float, float, float]:
        """Return the lowest and highest useful threshold of a score, and a step between them."""
        low, high = self.extremes[score]
        digits = -math.floor(math.log10((high - low) / 100))
        step = 10.0**-digits
        low, high = math.floor(low / step) * step, math.ceil(high / step) * step
        return round(low, digits), round(high, digits), step

    def view(self, index: int, score: str, threshold: float, min_size: int) -> View:
        """Draw a frame.

        Args:
            index: of the frame.
            score: its name.
            threshold: a pixel is anomalous where score >= threshold.
            min_size: components of fewer pixels are left out.
        """
        photo, sem_seg = self.read(index, "photo"), self.read(index, "sem_seg")
        values, ends = self.read(index, f"score {score}"), self.ranges[score]
        found = find_detections(values, threshold, min_size)
        classes, counts = np.unique(sem_seg, return_counts=True)
        legend = [
            (self.class_names[c], tuple(self.palette[c].tolist()), count / sem_seg.size)
            for count, c in sorted(zip(counts.tolist(), classes.tolist(), strict=True))[::-1]
        ]
        return View(
            _for_screen(draw_detections(glow(photo, values, *ends), found)),
            _for_screen(add_color_bar(values, *ends, score, threshold)),
            _for_screen(overlay(photo, color_classes(sem_seg, self.palette), 0.6)),
            legend,
            found,
        )

    def pixel(self, index: int, x: float, y: float) -> tuple[int, int, str, dict[str, float]]:
        """Read the class and the scores at a place of a frame's overlay on the screen.

        Args:
            x, y: in pixels of `View.overlay`.
        Returns:
            x and y in pixels of the upload, name of the class, {score: value}.
        """
        factor = self.size[1] / _screen_size(*self.size)[1]
        column = min(int((x + 0.5) * factor), self.size[1] - 1)
        row = min(int((y + 0.5) * factor), self.size[0] - 1)
        known = self.class_names[self.read(index, "sem_seg")[row, column]]
        scores = {s: float(self.read(index, f"score {s}")[row, column]) for s in self.ranges}
        return column, row, known, scores

    def write(self, score: str, threshold: float, min_size: int, info=None) -> list[Path]:
        """Write the files to download, as `anoseg predict` writes them, in place of earlier ones.

        Args:
            score, threshold, min_size: as in `view`.
            info: further plain values for the json's `info`.
        Returns:
            paths of the files. A photograph has pictures, a 16-bit PNG of the score, an npz file
            of all scores and the segmentation, and a COCO json of the components; a video has
            pictures as mp4, a zip file of 16-bit PNG files, and the json.
        """
        folder, stem = self.folder / "files", Path(self.name).stem
        shutil.rmtree(folder, ignore_errors=True)
        options = {"threshold": threshold, "min_size": min_size, "info": info}
        options |= {"value_range": self.ranges[score], "palette": self.palette}
        with ScoreOutputs(folder, score, _KINDS, **options) as outputs:
            if self.fps is None:
                outputs.write_image(stem, self.name, *self._of_frame(0, score))
            else:
                with outputs.video(stem, self.name, self.fps) as write:
                    for index, time in enumerate(self.times):
                        write(index, time, *self._of_frame(index, score))
        made = [path for path in sorted((folder / score).rglob("*")) if path.is_file()]
        if self.fps is not None:
            made = [path for path in made if "raw_png" not in path.parts] + [
                _pack(folder / score / "raw_png.zip", folder / score / "raw_png" / stem)
            ]
        files = []
        for path in made:
            kind = path.parent.name if path.parent.name in _KINDS else path.stem
            files.append(path.rename(folder / f"{stem}_{score}_{kind}{path.suffix}"))
        if self.fps is None:
            files.append(self._write_npz(folder / f"{stem}_maps.npz"))
        shutil.rmtree(folder / score)
        return files

    def _of_frame(self, index: int, score: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return tuple(self.read(index, name) for name in ("photo", f"score {score}", "sem_seg"))

    def _write_npz(self, path: Path) -> Path:
        arrays = {name: self.read(0, f"score {name}") for name in self.ranges}
        np.savez_compressed(path, sem_seg=self.read(0, "sem_seg"), **arrays)
        return path


def _pack(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for entry in sorted(folder.iterdir()):
            archive.write(entry, entry.name)
    return path


def _screen_size(height: int, width: int) -> tuple[int, int]:
    scale = float(np.clip(1, *(side / max(height, width) for side in _SCREEN_SIDE)))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _for_screen(picture: np.ndarray) -> np.ndarray:
    size = _screen_size(*picture.shape[:2])
    if size[0] > picture.shape[0] or size[1] > picture.shape[1]:
        return cv2.resize(picture, size[::-1], interpolation=cv2.INTER_CUBIC)
    return picture if size == picture.shape[:2] else resize_image(picture, size)


def predict_upload(
    predictor,
    path,
    folder,
    max_frames: int,
    progress: Callable[[int, int], None] | None = None,
) -> Upload:
    """Predict a photograph or video.

    Args:
        predictor: `AnomalyPredictor`.
        path: file with an extension of an image or a video.
        folder: new folder for the maps; it is removed again where this fails.
        max_frames: most frames of a video; the rest is left out, and `Upload.is_cut` says so.
        progress: called with the number of finished frames and of all.
    Returns:
        the upload, with at least one frame.
    Raises:
        ValueError, OSError: the file is not a readable image or video; the message names it
            without its folder, which the user did not choose.
    """
    path, folder = Path(path), Path(folder)
    suffix = path.suffix.lower()
    upload = Upload(folder, path.name, predictor.class_names, predictor.palette)
    try:
        if suffix in VIDEO_EXTENSIONS:
            _predict_video(predictor, path, upload, max_frames, progress)
        elif suffix in IMAGE_EXTENSIONS:
            photo = read_image(path)
            upload.add(photo, predictor(photo[..., ::-1]), 0.0)
        else:
            raise ValueError(
                f"{path.name} is neither an image ({' '.join(IMAGE_EXTENSIONS)}) nor a video "
                f"({' '.join(VIDEO_EXTENSIONS)})"
            )
    except BaseException as error:
        upload.discard()
        if isinstance(error, (ValueError, OSError)) and str(path.parent) in str(error):
            raise ValueError(str(error).replace(f"{path.parent}/", "")) from error
        raise
    return upload


def _predict_video(predictor, path, upload: Upload, max_frames: int, progress) -> None:
    with open_video(str(path)) as reader:
        total = min(filter(None, (reader.frames, max_frames)))
        upload.fps = reader.fps
        for frame, time in reader:
            if len(upload.times) == max_frames:
                upload.is_cut = True
                break
            upload.add(frame[..., ::-1], predictor(frame), time)
            if progress is not None:
                progress(len(upload.times), max(total, len(upload.times)))
