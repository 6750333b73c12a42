"""Keep score maps for a second pass over a dataset.

Component metrics need a threshold that only the whole dataset gives, so every map is read twice.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from anoseg_d2.utils.files import name_failed_write

__all__ = ["KEPT_PREFIX", "KeptMaps"]

# Folders with this prefix are temporary; what a killed run left is removed by the next one.
KEPT_PREFIX = ".kept-maps-"


class KeptMaps:
    """A temporary folder of score maps and uint8 labels, in order of arrival.

    Args:
        parent: where the temporary folder is made; None takes the system's.
    """

    def __init__(self, parent: Path | None = None):
        self._parent = parent
        self._folder: tempfile.TemporaryDirectory | None = None
        self._images: list[tuple[str, ...]] = []  # names of the scores

    def add(self, scores: dict, label: np.ndarray) -> None:
        """Keep one image: scores {name: (H, W) floats}, label (H, W) uint8."""
        if self._folder is None:
            if self._parent is not None:
                self._parent.mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(prefix=KEPT_PREFIX, dir=self._parent)
        stem = Path(self._folder.name, str(len(self._images)))
        with name_failed_write(Path(f"{stem}.label.npy")):
            np.save(f"{stem}.label.npy", label)
            for position, score in enumerate(scores.values()):
                np.save(f"{stem}.{position}.npy", score)
        names = tuple(scores)
        # One tuple for all images: there may be very many.
        self._images.append(
            self._images[-1] if self._images and self._images[-1] == names else names
        )

    def __iter__(self) -> Iterator[tuple[np.ndarray, str, np.ndarray]]:
        """Yield (label, name, score) for every map, one in memory at a time."""
        for index, names in enumerate(self._images):
            stem = Path(self._folder.name, str(index))
            label = np.load(f"{stem}.label.npy", allow_pickle=False)
            for position, name in enumerate(names):
                yield label, name, np.load(f"{stem}.{position}.npy", allow_pickle=False)

    def close(self) -> None:
        """Remove the folder and all maps."""
        if self._folder is not None:
            self._folder.cleanup()
        self._folder, self._images = None, []
