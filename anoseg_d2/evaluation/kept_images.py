"""What an evaluation keeps of single images for the report."""

from pathlib import Path

import cv2
import numpy as np
from detectron2.utils import comm

from anoseg_d2.data.image_io import read_image
from anoseg_d2.evaluation.streaming.keys import to_numpy
from anoseg_d2.evaluation.thumbnails import (
    FailureGallery,
    image_average_precision,
    save_thumbnails,
    thumbnail_name,
)

__all__ = ["KeptImages"]


class KeptImages:
    """Figures of every image, thumbnails, and crops of the worst mistakes.

    Args:
        folder: of the dataset's evaluation; None keeps only the figures.
        keep_scores: thumbnails of scores that an earlier evaluation left there are kept.
    """

    def __init__(self, folder: Path | None, keep_scores: bool = False):
        self._folder, self._keep_scores = folder, keep_scores
        self._gallery = FailureGallery()
        self.per_image: list[dict] = []

    def add(self, image_id: str, input_: dict, label: np.ndarray, output: dict, scores: dict):
        """Take in one image.

        Args:
            image_id: its name in the report.
            input_: dataset dict, with or without its `image`.
            label: (H, W) uint8, 0 known, 1 anomaly, 255 void.
            output: of the model; only `sem_seg` is read.
            scores: {name: (H, W) floats}.
        """
        record = {
            "image_id": image_id,
            "file_name": input_["file_name"],
            "anomaly_pixels": int((label == 1).sum()),
            "ap": {name: image_average_precision(score, label) for name, score in scores.items()},
        }
        self.per_image.append(record)
        if self._folder is None:
            return
        photo, sem_seg = _photo(input_, label), output.get("sem_seg")
        sem_seg = None if sem_seg is None else to_numpy(sem_seg)
        path = self._folder / "images" / thumbnail_name(image_id)
        save_thumbnails(path, photo, label, sem_seg, scores, keep_scores=self._keep_scores)
        self._gallery.update(image_id, photo, label, scores)

    def gather(self) -> None:
        """Bring what all ranks kept to rank 0; every rank must call it."""
        records, galleries = comm.gather(self.per_image), comm.gather(self._gallery)
        if comm.is_main_process():
            found = (record for part in records for record in part)
            self.per_image = sorted(found, key=lambda record: record["image_id"])
            for other in galleries[1:]:
                self._gallery.merge(other)

    def save_failures(self) -> list[dict]:
        """Write the crops of the worst mistakes and return their records."""
        return [] if self._folder is None else self._gallery.save(self._folder / "failures")


def _photo(input_: dict, label: np.ndarray) -> np.ndarray:
    """Return the photograph at the label's size, from the input's tensor or else from its file."""
    image = input_.get("image")
    photo = read_image(input_["file_name"]) if image is None else to_numpy(image).transpose(1, 2, 0)
    if photo.shape[:2] != label.shape:
        photo = cv2.resize(photo, label.shape[::-1], interpolation=cv2.INTER_AREA)
    return photo
