"""Predict a user's photograph once and show it in many ways."""

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from anoseg_d2.data.image_io import read_image
from anoseg_d2.prediction.detections import Detection, find_detections
from anoseg_d2.prediction.outputs import ScoreOutputs
from anoseg_d2.prediction.pictures import add_color_bar, display_range, draw_detections, glow
from anoseg_d2.utils.visualization import color_classes, overlay

__all__ = ["Upload", "View"]

_KINDS = ("overlay", "heatmap", "contours", "segmentation", "raw_png", "json")


class View(NamedTuple):
    """The pictures and components shown of a photograph.

    overlay, heatmap, segmentation: (H, W, 3) uint8 RGB; the heat map has a bar below it.
    classes: name of every class present and its fraction of the pixels, largest first.
    components: in descending order of mean score.
    """

    overlay: np.ndarray
    heatmap: np.ndarray
    segmentation: np.ndarray
    classes: list[tuple[str, float]]
    components: list[Detection]


class Upload:
    """Predict a photograph and keep its maps, so that another score needs no second prediction.

    Args:
        predictor: `AnomalyPredictor`.
        path: image file.
    Raises:
        ValueError, OSError: it cannot be read; the message names it.
    """

    def __init__(self, predictor, path):
        self.name = Path(path).name
        self.class_names, self.palette = predictor.class_names, predictor.palette
        self.photo = read_image(path)
        result = predictor(self.photo[..., ::-1])
        self.scores, self.sem_seg = result["scores"], result["sem_seg"]

    def extremes(self, score: str) -> tuple[float, float]:
        """Return the lowest and highest value of a score and of its colour scale."""
        values = self.scores[score]
        low, high = display_range(score, values)
        finite = values[np.isfinite(values)]
        return float(finite.min(initial=low)), float(finite.max(initial=high))

    def view(self, score: str, threshold: float, min_size: int) -> View:
        """Draw the photograph.

        Args:
            score: its name.
            threshold: a pixel is anomalous where score >= threshold.
            min_size: components of fewer pixels are left out.
        """
        values = self.scores[score]
        ends = display_range(score, values)
        found = find_detections(values, threshold, min_size)
        classes, counts = np.unique(self.sem_seg, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return View(
            draw_detections(glow(self.photo, values, *ends), found),
            add_color_bar(values, *ends, score, threshold),
            overlay(self.photo, color_classes(self.sem_seg, self.palette), 0.6),
            [
                (self.class_names[classes[i]], float(counts[i] / self.sem_seg.size))
                for i in order
                if classes[i] < len(self.class_names)  # a bare backbone names none
            ],
            found,
        )

    def write(self, folder, score: str, threshold: float, min_size: int, info=None) -> Path:
        """Write a zip file of what `anoseg predict` writes of this photograph, into a folder."""
        stem = Path(self.name).stem
        with tempfile.TemporaryDirectory(dir=folder) as inside:
            options = {"threshold": threshold, "min_size": min_size, "info": info}
            with ScoreOutputs(inside, score, _KINDS, palette=self.palette, **options) as outputs:
                outputs.write_image(stem, self.name, self.photo, self.scores[score], self.sem_seg)
            return Path(shutil.make_archive(str(Path(folder, f"{stem}_{score}")), "zip", inside))
