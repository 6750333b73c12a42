"""Sources of pasted objects: their base class, folders of cut-outs, and textures.

Every source lists what it cannot use in `problems` (kind -> names) and counts what its rules leave
out in `skipped` (rule -> number), so that nothing disappears silently.
"""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from anoseg_d2.data.cut_paste.paste import PasteObject
from anoseg_d2.data.image_io import IMAGE_EXTENSIONS, read_cut_out, read_image
from anoseg_d2.utils.folders import walk_files
from anoseg_d2.utils.registry import Registry

__all__ = [
    "OBJECT_SOURCES",
    "CutOutFolder",
    "ObjectSource",
    "TextureFolder",
    "draw_blob",
]

# A user's own sources: name -> `(known class names, root of relative paths) -> ObjectSource`.
OBJECT_SOURCES = Registry("object source")

# Longest side of a blob, as fractions of the short side of its photograph.
TEXTURE_SIDES = (0.25, 0.75)
LEAST_SIDE = 8  # of a blob, pixels: smaller ones have no outline to speak of


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
        raise ValueError(
            f"{where} has no object to paste; left out: "
            f"{', '.join(reasons) or 'nothing, it is empty'}"
        )


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
