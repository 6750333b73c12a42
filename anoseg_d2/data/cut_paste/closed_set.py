"""Cut known things from other training frames, to be pasted as controls.

A detector that only ever sees unknown objects pasted can learn that a pasted edge means anomaly.
Pasting known things of the same dataset with the same code, under their own label, removes that
shortcut, and shows rare classes more often (Simple Copy-Paste, Ghiasi et al., arXiv:2012.07177).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import cv2
import numpy as np

from anoseg_d2.data.cut_paste.paste import PasteObject
from anoseg_d2.data.cut_paste.sources import ObjectSource
from anoseg_d2.data.image_io import read_image

__all__ = ["ClosedSetObjects"]

# Those that the dataset has are used.
CLASSES = (
    *("person", "rider", "car", "truck", "bus", "motorcycle", "bicycle"),
    *("pole", "traffic sign", "traffic light"),
)
COLUMNS = ("frame", "value", "x", "y", "w", "h", "area", "seed_x", "seed_y")


class ClosedSetObjects(ObjectSource):
    """Segments of known things: connected components of a label map.

    Their index is built at the start, from every label.

    Args:
        frames: (image file, label file) pairs of the training set, in its order; a frame whose
            label is None has no segments.
        read_label: label file -> (H, W) integers, in the coding in which labels are pasted.
        known: class name -> value in this coding.
        min_area: smallest area of a segment, pixels.
        rarest_first: choose the class first, each equally often, so that rare classes are pasted
            far more often than they occur; otherwise every segment is equally likely.
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
        self.files = {image.name: label.stat().st_size for image, label in self.frames if label}
        self.segments = self._index()
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
        label, image = self.read_label(label_path), read_image(image_path)
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

    def _index(self) -> np.ndarray:
        """Find the segments of every frame, (N, len(COLUMNS)) int64."""
        rows = []
        # Threads are enough: decoding, most of the work, releases the interpreter lock.
        with ThreadPool() as pool:
            for found, skipped in pool.imap(self._segments, enumerate(self.frames)):
                rows += found
                self.skipped += skipped
        return np.array(rows, np.int64).reshape(-1, len(COLUMNS))

    def _segments(self, frame) -> tuple[list[tuple[int, ...]], Counter]:
        """Return the segments of a (number, (image, label)), and how many the rules leave out."""
        number, (_, path) = frame
        rows, skipped = [], Counter()
        try:
            label = np.empty((0, 0), np.uint8) if path is None else self.read_label(path)
        except (OSError, ValueError) as error:
            self.problems["labels unreadable"].append(str(error))
            return rows, skipped
        for value in np.intersect1d(np.unique(label), list(self.class_of)).tolist():
            mask = (label == value).astype(np.uint8)
            _, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
            # Part 0 is the background.
            for part, (x, y, w, h, area) in list(enumerate(stats.tolist()))[1:]:
                if area < self.min_area:
                    skipped[f"under {self.min_area:g} px"] += 1
                elif min(x, y) == 0 or x + w == mask.shape[1] or y + h == mask.shape[0]:
                    skipped["cut off by their frame's border"] += 1
                else:
                    seed_x = x + int(np.flatnonzero(parts[y, x : x + w] == part)[0])
                    rows.append((number, value, x, y, w, h, area, seed_x, y))
        return rows, skipped
