"""One photograph or short video of a user: predicted once, then looked at in many ways.

The maps of every frame are kept in files (`FOLDER/000000.npz`, ...), so that another score or
threshold needs no second prediction and a video does not fill the memory.
"""

import shutil
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from anoseg_d2.data.image_io import IMAGE_EXTENSIONS, read_image
from anoseg_d2.prediction.detections import Detection, find_detections
from anoseg_d2.prediction.outputs import ScoreOutputs
from anoseg_d2.prediction.pictures import add_color_bar, display_range, draw_detections, glow
from anoseg_d2.prediction.video import VIDEO_EXTENSIONS, open_video
from anoseg_d2.utils.visualization import color_classes, fit_long_side, overlay, resize_image

__all__ = ["Upload", "View"]

_KINDS = ("overlay", "heatmap", "contours", "segmentation", "raw_png", "json")
_SCREEN_SIDE = 1600  # longest side of pictures for the screen; files have native size


class View(NamedTuple):
    """What is shown of one frame.

    overlay, heatmap, segmentation: (h, w, 3) uint8 RGB, at most `_SCREEN_SIDE` long.
    classes: name of every class present and its fraction of the pixels, largest first.
    components: in descending order of mean score.
    """

    overlay: np.ndarray
    heatmap: np.ndarray
    segmentation: np.ndarray
    classes: list[tuple[str, float]]
    components: list[Detection]


class Upload:
    """Predict the frames of a file, and keep their maps.

    Args:
        predictor: `AnomalyPredictor`.
        path: image or video.
        folder: for the maps; it is created, and removed again where this fails.
        max_frames: most frames of a video; the rest is left out.
        progress: called with the number of finished frames and of all.
    Attributes:
        name: of the file.
        size: (H, W) of a frame.
        times: seconds of each frame; a photograph has one, at 0.
        fps: frames per second; None for a photograph.
        is_cut: whether the video continues after the last frame read.
        ranges: {score: ends of the colour scale, the same for all frames}.
        extremes: {score: lowest and highest value of any frame and of the colour scale}.
    Raises:
        ValueError, OSError: the file is not a readable image or video; the message names it
            without its folder, which the user did not choose.
    """

    def __init__(self, predictor, path, folder, max_frames: int, progress=lambda *_: None):
        path = Path(path)
        self.folder, self.name = Path(folder), path.name
        self.class_names, self.palette = predictor.class_names, predictor.palette
        self.times, self.fps, self.is_cut = [], None, False
        self.ranges, self.extremes = {}, {}
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            if path.suffix.lower() in VIDEO_EXTENSIONS:
                self._read_video(predictor, path, max_frames, progress)
            elif path.suffix.lower() in IMAGE_EXTENSIONS:
                photo = read_image(path)
                self._add(photo, predictor(photo[..., ::-1]), 0.0)
            else:
                raise ValueError(
                    f"{path.name} is neither an image ({' '.join(IMAGE_EXTENSIONS)}) nor a video "
                    f"({' '.join(VIDEO_EXTENSIONS)})"
                )
        except BaseException as error:
            self.discard()
            # The user chose a file, not the folder that the page keeps it in.
            if isinstance(error, (ValueError, OSError)) and str(path.parent) in str(error):
                raise ValueError(str(error).replace(f"{path.parent}/", "")) from error
            raise

    def _read_video(self, predictor, path: Path, max_frames: int, progress) -> None:
        # Frames are written as they come: those of a minute do not fit into memory.
        with open_video(str(path)) as reader:
            self.fps = reader.fps
            total = min(filter(None, (reader.frames, max_frames)))
            for frame, time in reader:
                if len(self.times) == max_frames:
                    self.is_cut = True
                    break
                self._add(frame[..., ::-1], predictor(frame), time)
                progress(len(self.times), max(total, len(self.times)))

    def _add(self, photo: np.ndarray, result: dict, time: float) -> None:
        for name, score in result["scores"].items():
            ends = self.ranges.setdefault(name, display_range(name, score))
            low, high = self.extremes.get(name, ends)
            finite = score[np.isfinite(score)]
            self.extremes[name] = float(finite.min(initial=low)), float(finite.max(initial=high))
        # The prefix keeps a score that is called `photo` apart from the photograph.
        scores = {f"score {name}": score for name, score in result["scores"].items()}
        np.savez(self._path(len(self.times)), photo=photo, sem_seg=result["sem_seg"], **scores)
        self.size = photo.shape[:2]
        self.times.append(time)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.npz"

    def read(self, index: int, score: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read a frame: photograph, score and segmentation."""
        with np.load(self._path(index), allow_pickle=False) as stored:
            return stored["photo"], stored[f"score {score}"], stored["sem_seg"]

    def discard(self) -> None:
        """Remove its files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def view(self, index: int, score: str, threshold: float, min_size: int) -> View:
        """Draw a frame.

        Args:
            index: of the frame.
            score: its name.
            threshold: a pixel is anomalous where score >= threshold.
            min_size: components of fewer pixels are left out.
        """
        photo, values, sem_seg = self.read(index, score)
        ends = self.ranges[score]
        found = find_detections(values, threshold, min_size)
        classes, counts = np.unique(sem_seg, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return View(
            _for_screen(draw_detections(glow(photo, values, *ends), found)),
            _for_screen(add_color_bar(values, *ends, score, threshold)),
            _for_screen(overlay(photo, color_classes(sem_seg, self.palette), 0.6)),
            [(self.class_names[classes[i]], float(counts[i] / sem_seg.size)) for i in order],
            found,
        )

    def write(self, score: str, threshold: float, min_size: int, info=None) -> Path:
        """Pack what `anoseg predict` writes of this file, in place of an earlier one.

        Args:
            score, threshold, min_size: as in `view`.
            info: further plain values for the json's `info`.
        Returns:
            a zip file of the pictures, the 16-bit PNG files of the score and the COCO json.
        """
        folder, stem = self.folder / "files", Path(self.name).stem
        shutil.rmtree(folder, ignore_errors=True)
        options = {"threshold": threshold, "min_size": min_size, "info": info}
        options |= {"value_range": self.ranges[score], "palette": self.palette}
        with ScoreOutputs(folder, score, _KINDS, **options) as outputs:
            if self.fps is None:
                outputs.write_image(stem, self.name, *self.read(0, score))
            else:
                with outputs.video(stem, self.name, self.fps) as write:
                    for index, time in enumerate(self.times):
                        write(index, time, *self.read(index, score))
        target = self.folder / f"{stem}_{score}.zip"
        with zipfile.ZipFile(target, "w") as archive:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                archive.write(path, path.relative_to(folder))
        return target


def _for_screen(picture: np.ndarray) -> np.ndarray:
    size = fit_long_side(*picture.shape[:2], _SCREEN_SIDE)
    return picture if size == picture.shape[:2] else resize_image(picture, size)
