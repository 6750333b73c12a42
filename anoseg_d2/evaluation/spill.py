"""Score maps kept on disk between two passes over a dataset."""

import logging
import shutil
import tempfile
from pathlib import Path

import numpy as np

__all__ = ["ScoreSpill"]

logger = logging.getLogger(__name__)


class ScoreSpill:
    """A temporary folder of float32 score maps and uint8 labels, in the order they came.

    Before the first map is written, the space that all images will take is compared with what the
    disk has; too little of it sets `error`, and nothing is written from then on.

    Args:
        folder: where the temporary folder is made; None takes the system's.
        expected_images: that this process will add.
        purpose: for messages.
    """

    def __init__(self, folder, expected_images: int, purpose: str):
        self._parent, self._expected, self._purpose = folder, expected_images, purpose
        self._folder: tempfile.TemporaryDirectory | None = None
        self._names: list[list[str]] = []
        self.error: str | None = None

    def add(self, scores: dict, label: np.ndarray) -> None:
        """Keep one image: scores {name: (H, W) float32}, label (H, W) uint8."""
        if self._folder is None and self.error is None:
            self._open(sum(score.nbytes for score in scores.values()) + label.nbytes)
        if self.error is not None:
            return
        index, folder = len(self._names), Path(self._folder.name)
        np.save(folder / f"{index}.label.npy", label)
        for position, score in enumerate(scores.values()):
            np.save(folder / f"{index}.{position}.npy", score)
        self._names.append(list(scores))

    def _open(self, bytes_per_image: int) -> None:
        if self._parent is not None:
            Path(self._parent).mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix=".spill-", dir=self._parent)
        needed = bytes_per_image * self._expected / 2**30
        free = shutil.disk_usage(self._folder.name).free / 2**30
        logger.info(
            f"{self._purpose} keep about {needed:.2f} GiB of score maps in {self._folder.name} "
            f"until the evaluation ends; {free:.1f} GiB are free"
        )
        if needed > 0.9 * free:
            self.error = (
                f"{self._purpose} need {needed:.1f} GiB of disk for score maps, {free:.1f} GiB are "
                "free; evaluate fewer scores at once, or on a larger disk"
            )
            logger.warning(self.error)

    def __iter__(self):
        """Yield (label, name, score) for every map, one in memory at a time."""
        for index, names in enumerate(self._names):
            folder = Path(self._folder.name)
            label = np.load(folder / f"{index}.label.npy")
            for position, name in enumerate(names):
                yield label, name, np.load(folder / f"{index}.{position}.npy")

    def close(self) -> None:
        """Remove the folder and all maps."""
        if self._folder is not None:
            self._folder.cleanup()
        self._folder, self._names = None, []
