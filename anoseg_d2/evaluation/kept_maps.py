"""Provide score maps for a second pass over a dataset, from temporary copies or user files.

Component metrics need a threshold that only the whole dataset gives, so every map is read twice.
"""

import logging
import shutil
import tempfile
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from anoseg_d2.data.label_rules import LabelRule, load_label
from anoseg_d2.evaluation.map_files import MapReader
from anoseg_d2.utils.files import name_failed_write

__all__ = ["KEPT_PREFIX", "FileMaps", "KeptMaps"]

logger = logging.getLogger(__name__)

# Folders with this prefix are temporary; what a killed run left is removed by the next one.
KEPT_PREFIX = ".kept-maps-"


class KeptMaps:
    """A temporary folder of score maps and uint8 labels, in order of arrival.

    Before the first map is written, the space that all images will take is compared with what the
    disk has. If it is too little, `error` says so and nothing is written.

    Args:
        folder: where the temporary folder is made; None takes the system's.
        dataset_name: registered; each rank will add its part of the images.
        purpose: for messages.
    """

    def __init__(self, folder, dataset_name: str, purpose: str):
        self._parent, self._dataset, self._purpose = folder, dataset_name, purpose
        self._folder: tempfile.TemporaryDirectory | None = None
        self._images: list[tuple[str, tuple[str, ...]]] = []  # id and names of the scores
        self.error: str | None = None

    def add(self, image_id: str, scores: dict, label: np.ndarray) -> None:
        """Keep one image: scores {name: (H, W) float32}, label (H, W) uint8."""
        if self._folder is None and self.error is None:
            self._open(sum(score.nbytes for score in scores.values()) + label.nbytes)
        if self.error is not None:
            return
        index, folder = len(self._images), Path(self._folder.name)
        with name_failed_write(folder / f"{index}.label.npy"):
            np.save(folder / f"{index}.label.npy", label)
            for position, score in enumerate(scores.values()):
                np.save(folder / f"{index}.{position}.npy", score)
        names = tuple(scores)
        if self._images and self._images[-1][1] == names:
            names = self._images[-1][1]  # one tuple for all images: there may be very many
        self._images.append((image_id, names))

    def _open(self, bytes_per_image: int) -> None:
        if self._parent is not None:
            Path(self._parent).mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix=KEPT_PREFIX, dir=self._parent)
        images = len(DatasetCatalog.get(self._dataset)) / comm.get_world_size()
        needed = bytes_per_image * images / 2**30
        free = shutil.disk_usage(self._folder.name).free / 2**30
        logger.info(
            "%s keep %.2f GiB of score maps in %s, with %.1f GiB free",
            *(self._purpose, needed, self._folder.name, free),
        )
        if needed > 0.9 * free:
            self.error = (
                f"{self._purpose} need {needed:.1f} GiB of disk for score maps, {free:.1f} GiB are "
                "free; evaluate fewer scores at once, or on a larger disk"
            )
            logger.warning(self.error)

    def __iter__(self):
        """Yield (image id, label, name, score) for every map, one in memory at a time."""
        for index, (image_id, names) in enumerate(self._images):
            folder = Path(self._folder.name)
            label = np.load(folder / f"{index}.label.npy", allow_pickle=False)
            for position, name in enumerate(names):
                score = np.load(folder / f"{index}.{position}.npy", allow_pickle=False)
                yield image_id, label, name, score

    def close(self) -> None:
        """Remove the folder and all maps."""
        if self._folder is not None:
            self._folder.cleanup()
        self._folder, self._images = None, []


class FileMaps:
    """Replaces `KeptMaps` when the maps already are files, and reads those again.

    Args:
        pairs: of `MapFolder`.
        reader: how maps are read.
        rule: the dataset's label rule.
        name: of the score.
    """

    error = None

    def __init__(self, pairs, reader: MapReader, rule: LabelRule, name: str):
        self._pairs, self._reader, self._rule, self._name = pairs, reader, rule, name

    def add(self, image_id: str, scores: dict, label: np.ndarray) -> None:
        """Do nothing: the files stay where they are."""

    def __iter__(self):
        """Yield (image id, label, name, score) for every image."""
        for image, path in self._pairs:
            label = load_label(image["sem_seg_file_name"], self._rule)
            score = self._reader(path, label.shape)
            yield str(image["image_id"]), label, self._name, score

    def close(self) -> None:
        """Do nothing: the files are the user's."""
