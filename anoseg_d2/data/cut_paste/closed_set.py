"""Cut known things from other training frames, to be pasted as controls.

A detector that only ever sees unknown objects pasted can learn that a pasted edge means anomaly.
Pasting known things of the same dataset with the same code, under their own label, removes that
shortcut, and shows rare classes more often (Simple Copy-Paste, Ghiasi et al., arXiv:2012.07177).
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from anoseg_d2.data.cut_paste.paste import PasteObject
from anoseg_d2.data.cut_paste.sources import ObjectSource
from anoseg_d2.data.image_io import read_image
from anoseg_d2.utils.files import atomic_path

__all__ = ["ClosedSetObjects", "cache_folder"]

logger = logging.getLogger(__name__)

# Those that the dataset has are used.
CLASSES = (
    *("person", "rider", "car", "truck", "bus", "motorcycle", "bicycle"),
    *("pole", "traffic sign", "traffic light"),
)
VERSION = 1  # of the cached index
COLUMNS = ("frame", "value", "x", "y", "w", "h", "area", "seed_x", "seed_y")


def cache_folder() -> Path:
    """Return the folder of cached indices: `anoseg_d2` in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "anoseg_d2"


class ClosedSetObjects(ObjectSource):
    """Segments of known things: connected components of a label map.

    The index of all segments is built once and cached; it is rebuilt when a label file, a class or
    `min_area` changes.

    Args:
        frames: (image file, label file) pairs of the training set, in its order; a frame whose
            label is None has no segments.
        read_label: label file -> (H, W) integers, in the coding in which labels are pasted.
        known: class name -> value in this coding.
        min_area: smallest area of a segment, pixels.
        rarest_first: choose the class first, each equally often, so that rare classes are pasted
            far more often than they occur; otherwise every segment is equally likely.
        cache: folder of the index; None builds it in memory.
    Raises:
        ValueError: there are no segments, or the dataset has none of the classes.
    """

    def __init__(
        self,
        frames: Sequence[tuple[Path, Path | None]],
        read_label: Callable[[Path], np.ndarray],
        known: Mapping[str, int],
        min_area: float = 100,
        rarest_first: bool = False,
        cache=None,
    ):
        super().__init__()
        self.frames = [(Path(image), label and Path(label)) for image, label in frames]
        self.read_label = read_label
        self.class_of = {known[name]: name for name in CLASSES if name in known}
        if not self.class_of:
            raise ValueError(
                f"none of {', '.join(CLASSES)} is a class of this dataset; its classes: "
                + ", ".join(known)
            )
        self.min_area, self.rarest_first = min_area, rarest_first
        self.settings = {
            "classes": sorted(self.class_of.values()),
            "min_area": min_area,
            "rarest_first": rarest_first,
        }
        self.segments = self._cached(cache)
        self.refuse_if_empty(f"the closed set ({len(self.frames)} frames, min_area {min_area})")
        values = self.segments[:, 1]
        self._of_class = [np.flatnonzero(values == value) for value in np.unique(values)]

    def __len__(self) -> int:
        return len(self.segments)

    def sample(self, generator: np.random.Generator) -> int:
        if not self.rarest_first:
            return super().sample(generator)
        indices = self._of_class[int(generator.integers(len(self._of_class)))]
        return int(indices[int(generator.integers(len(indices)))])

    def frame_of(self, index: int) -> int:
        return int(self.segments[index, 0])

    def load(self, index: int, generator=None) -> PasteObject:
        frame, value, x, y, w, h, area, seed_x, seed_y = self.segments[index].tolist()
        image_path, label_path = self.frames[frame]
        label, image = self.read_label(label_path), read_image(image_path, labelled=True)
        if label.shape != image.shape[:2] or y + h > label.shape[0] or x + w > label.shape[1]:
            raise ValueError(f"{label_path} does not fit its image {image_path}, or has changed")
        box = np.s_[y : y + h, x : x + w]
        # Cropped to its box, the component stays connected; others of its class may reach in, so it
        # is found again by its seed pixel.
        _, parts = cv2.connectedComponents((label[box] == value).astype(np.uint8), connectivity=8)
        number = parts[seed_y - y, seed_x - x]
        mask = parts == number
        if number == 0 or int(mask.sum()) != area:
            raise ValueError(f"{label_path} has changed since its segments were indexed")
        source = {
            "source": "closed_set",
            "annotation_id": index,
            "source_image": image_path.name,
            "category": self.class_of[value],
        }
        crop = np.ascontiguousarray(image[box])
        # A pole or a distant person is as small as it looks in the scene, and is not enlarged.
        return PasteObject(crop, mask, value, source, min_side=4)

    def _cached(self, cache) -> np.ndarray:
        files = [(str(label), _stamp(label)) for _, label in self.frames]
        key = json.dumps([VERSION, files, sorted(self.class_of.items()), self.min_area])
        self.files = {str(image.name): _stamp(label)[0] for image, label in self.frames}
        if cache is None:
            return self._index()
        path = Path(cache, f"closed_set_{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy")
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            pass  # not there yet, or damaged: build it below
        segments = self._index()
        if self.problems:
            return segments  # what is unreadable today may be readable next time
        try:
            with atomic_path(path, suffix=".npy") as temporary:
                np.save(temporary, segments, allow_pickle=False)
        except OSError as error:
            logger.warning("the index of known segments cannot be cached: %s", error)
        return segments

    def _index(self) -> np.ndarray:
        """Find the segments of every frame, (N, len(COLUMNS)) int64."""
        rows = []
        for number, (_, path) in enumerate(self.frames):
            if path is None:
                continue
            try:
                label = self.read_label(path)
            except (OSError, ValueError) as error:
                self.problems["labels unreadable"].append(str(error))
                continue
            for value in np.intersect1d(np.unique(label), list(self.class_of)).tolist():
                rows += self._segments(number, label == value, value)
        return np.array(rows, np.int64).reshape(-1, len(COLUMNS))

    def _segments(self, number: int, mask: np.ndarray, value: int) -> list[tuple[int, ...]]:
        _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        rows = []
        for part, (x, y, w, h, area) in enumerate(stats.tolist()):
            if part == 0:
                continue
            if area < self.min_area:
                self.skipped[f"under {self.min_area:g} px"] += 1
            elif min(x, y) == 0 or x + w == mask.shape[1] or y + h == mask.shape[0]:
                self.skipped["cut off by their frame's border"] += 1
            else:
                seed_x = x + int(np.flatnonzero(parts[y, x : x + w] == part)[0])
                rows.append((number, value, x, y, w, h, area, seed_x, y))
        return rows


def _stamp(path: Path | None) -> tuple[int, int]:
    """Return the size and modification time of a file, (-1, -1) if there is none."""
    try:
        stat = os.stat(path) if path else None
    except OSError:
        stat = None
    return (stat.st_size, stat.st_mtime_ns) if stat else (-1, -1)
