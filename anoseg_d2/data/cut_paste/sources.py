"""Sources of pasted objects: a base class, folders of cut-outs and textures, and the scenes.

Every source lists what it cannot use in `problems` (kind -> names) and counts what its rules leave
out in `skipped` (rule -> number), so that nothing disappears silently.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import cv2
import numpy as np

from anoseg_d2.data.cut_paste.paste import PasteObject
from anoseg_d2.data.image_io import IMAGE_EXTENSIONS, read_cut_out, read_image
from anoseg_d2.utils.folders import walk_files
from anoseg_d2.utils.registry import Registry

# A user's own sources: name -> `(known class names, root of relative paths) -> ObjectSource`.
OBJECT_SOURCES = Registry("object source")

# Longest side of a blob, as fractions of the short side of its photograph.
TEXTURE_SIDES = (0.25, 0.75)
LEAST_SIDE = 8  # of a blob, pixels: smaller ones have no outline to speak of
# Those that the dataset has are used.
CLOSED_SET_CLASSES = (
    *("person", "rider", "car", "truck", "bus", "motorcycle", "bicycle"),
    *("pole", "traffic sign", "traffic light"),
)
# Of the index of segments.
COLUMNS = ("frame", "value", "x", "y", "w", "h", "area", "seed_x", "seed_y")


class ObjectSource:
    """Base class: objects by index.

    Attributes:
        problems: kind -> names of what could not be used.
        skipped: rule -> number of objects that it leaves out.
        settings: what the choice of objects depends on, as plain json values.
        files: file name -> size in bytes of every file that an object may come from.
    """

    def __init__(self):
        self.problems: dict[str, list[str]] = defaultdict(list)
        self.skipped: Counter[str] = Counter()
        self.settings: dict = {}
        self.files: dict[str, int] = {}

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} does not define __len__, its number of objects")

    def sample(self, generator: np.random.Generator) -> int:
        """Return the index of a random object."""
        return int(generator.integers(len(self)))

    def frame_of(self, index: int) -> int | None:
        """Return the number of the training frame from which object `index` is cut, if any."""
        return None

    def load(self, index: int, generator: np.random.Generator) -> PasteObject:
        """Cut out object `index`; sources whose objects are random draw from `generator`.

        Raises:
            FileNotFoundError, ValueError: its file is missing, unreadable or does not fit.
        """
        raise TypeError(f"{type(self).__name__} does not define load, which cuts out an object")

    def refuse_if_empty(self, where: str) -> None:
        """Raise ValueError, with the reasons, if there is nothing to paste."""
        if len(self):
            return
        reasons = [f"{number} {rule}" for rule, number in self.skipped.items()]
        reasons += [f"{len(names)} {kind}" for kind, names in self.problems.items()]
        why = ", ".join(reasons) or "nothing, it is empty"
        raise ValueError(f"{where} has no object to paste; left out: {why}")


class _Folder(ObjectSource):
    """Base of sources that list the image files below a folder, sorted."""

    def __init__(self, folder):
        super().__init__()
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no folder of objects: {self.folder}")
        self.names = sorted(
            path.relative_to(self.folder).as_posix()
            for path in walk_files(self.folder, IMAGE_EXTENSIONS)
        )
        self.files = {name: (self.folder / name).stat().st_size for name in self.names}
        self.refuse_if_empty(str(self.folder))

    def __len__(self) -> int:
        return len(self.names)


class CutOutFolder(_Folder):
    """A folder of images whose alpha channel cuts out the object (png, webp).

    Args:
        folder: searched with its subfolders; the subfolder names an object's category.
    """

    def load(self, index, generator=None) -> PasteObject:
        name = self.names[index]
        image, alpha = read_cut_out(self.folder / name)
        mask = alpha > 127
        if not mask.any() or mask.all():
            how = "transparent" if not mask.any() else "opaque, with nothing cut out"
            raise ValueError(f"cut-out {self.folder / name} is all {how}")
        source = {"source": "cutouts", "annotation_id": None, "source_image": name}
        source["category"] = Path(name).parent.name
        return PasteObject(image, mask, None, source)


class TextureFolder(_Folder):
    """Blobs of texture: random smooth outlines filled from photographs.

    Args:
        folder: folder of photographs, searched with its subfolders.
    """

    def load(self, index, generator) -> PasteObject:
        name = self.names[index]
        photo = read_image(self.folder / name)
        side = max(int(generator.uniform(*TEXTURE_SIDES) * min(photo.shape[:2])), LEAST_SIDE)
        if side > min(photo.shape[:2]):
            raise ValueError(f"texture {self.folder / name} is too small: {photo.shape[:2]}")
        y, x = (int(generator.integers(limit - side + 1)) for limit in photo.shape[:2])
        source = {"source": "textures", "annotation_id": None, "source_image": name}
        source |= {"category": "texture", "source_box": [x, y, x + side, y + side]}
        crop = np.ascontiguousarray(photo[y : y + side, x : x + side])
        return PasteObject(crop, draw_blob(side, generator), None, source)


def draw_blob(side: int, generator: np.random.Generator) -> np.ndarray:
    """Draw a star-shaped outline from a few random waves, (side, side) bool."""
    waves = np.arange(1, 6)
    # The higher the wave, the weaker, which keeps the outline smooth.
    size, phase = generator.normal(0, 0.35 / waves), generator.uniform(0, 2 * np.pi, 5)
    stretch = generator.uniform(0.5, 1)
    y, x = (np.mgrid[:side, :side] + 0.5) * 2 / side - 1
    angle = np.arctan2(y, x * stretch)
    radius = np.exp((size * np.cos(angle[..., None] * waves + phase)).sum(-1))
    return np.hypot(y, x / stretch) <= 0.9 * radius / radius.max()


class ClosedSetObjects(ObjectSource):
    """Segments of known things: connected components of a label map.

    A detector that only ever sees unknown objects pasted can learn that a pasted edge means
    anomaly. Known things of the same dataset, pasted by the same code under their own label, remove
    that shortcut, and show rare classes more often (Simple Copy-Paste, Ghiasi et al.,
    arXiv:2012.07177). Their index is built at the start, from every label.

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
        self.class_of = {known[name]: name for name in CLOSED_SET_CLASSES if name in known}
        if not self.class_of:
            raise ValueError(
                f"none of {', '.join(CLOSED_SET_CLASSES)} is a class of this dataset; its classes: "
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
        # The class first, then one of its segments: a bus is as likely as one of a thousand poles.
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
