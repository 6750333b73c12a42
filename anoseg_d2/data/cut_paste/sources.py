"""Sources of pasted objects: COCO objects, folders of cut-outs, and textures.

Every source lists what it cannot use in
`problems` (kind -> names) and counts what its rules leave out in `skipped` (rule -> number), so
that nothing disappears silently.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from anoseg_d2.data.cut_paste.coco_file import (
    fold_name,
    is_file_name,
    looks_like,
    mask_decides,
    read_coco,
    to_rle,
    touches_edge,
    whole_number,
)
from anoseg_d2.data.cut_paste.options import ObjectOptions
from anoseg_d2.data.cut_paste.paste import PasteObject
from anoseg_d2.data.image_io import IMAGE_EXTENSIONS, MAX_PIXELS, read_cut_out, read_image
from anoseg_d2.utils.folders import walk_files

__all__ = [
    "CONTROL_CLASSES",
    "DROPPED",
    "CocoObjects",
    "CutOutFolder",
    "ObjectSource",
    "TextureFolder",
    "control_source",
    "draw_blob",
    "outlier_sources",
]

logger = logging.getLogger(__name__)

# COCO categories that have the same name in Cityscapes; the paper drops them.
CONTROL_CLASSES = ("person", "bicycle", "car", "motorcycle", "bus", "train", "truck")
# Cityscapes knows the three others too.
DROPPED = (*CONTROL_CLASSES, "traffic light", "stop sign", "potted plant")

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

    def refuse_if_unreadable(self) -> None:
        """Raise ValueError if none of a few objects can be read; call it before any work starts."""
        reasons = []
        # Spread over the source, because a broken folder may be only one of many.
        generator = np.random.default_rng(0)
        for index in np.unique(np.linspace(0, len(self) - 1, 16).astype(int)).tolist():
            try:
                self.load(index, generator)
                return
            except (OSError, ValueError) as error:
                reasons.append(str(error))
        raise ValueError(
            f"none of {len(reasons)} objects tried can be read, so nothing would be pasted: "
            + "; ".join(reasons[:3])
        )

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


class CocoObjects(ObjectSource):
    """Instances of a COCO annotation file (polygons, RLE); photographs are read when needed.

    Args:
        json_file: `instances_*.json`.
        images: folder of its photographs.
        drop: category names left out, compared by `fold_name`.
        labels: category name -> label value; if given, only these categories are used, and
            pasted under that label (objects of known classes).
        min_area: smallest area, pixels, as stated in the annotation, or of its mask if that cannot
            be true.
        keep_cut: whether to use objects that the border of their photograph cuts off. They show a
            straight edge wherever they are pasted.
        known: names of the scenes' classes; a category that looks like one of them, or like one
            that is left out, is logged.
    Raises:
        FileNotFoundError, ValueError: a file or folder is missing, the file is not COCO, or no
            object is left.
    """

    def __init__(
        self,
        json_file,
        images,
        drop=DROPPED,
        labels: Mapping[str, int] | None = None,
        min_area: float = 1000,
        keep_cut: bool = False,
        known: Iterable[str] = (),
    ):
        super().__init__()
        self.images = Path(images)
        self.labels = dict(labels) if labels is not None else None
        self.drop = frozenset(drop)
        self._folded_drop = frozenset(map(fold_name, drop))
        self._folded_labels = {fold_name(name): value for name, value in (labels or {}).items()}
        self.min_area = min_area
        self.keep_cut = keep_cut
        if not self.images.is_dir():
            raise FileNotFoundError(f"no folder of COCO photographs: {self.images}")
        content, digest = read_coco(Path(json_file))
        self._index(content)
        # The default names what Cityscapes knows, of which a file may have none.
        there = {fold_name(name) for name in self.names.values()}
        if drop != DROPPED and (unknown := [n for n in drop if fold_name(n) not in there]):
            raise ValueError(
                f"--drop-categories (INPUT.CUT_PASTE.DROP_CATEGORIES): {', '.join(unknown)} not in "
                f"{json_file}; its categories: {', '.join(self.names.values())}"
            )
        self.settings = {
            "json_sha256": digest,
            "drop": sorted(self.drop) if labels is None else None,
            "labels": self.labels,
            "min_area": min_area,
            "keep_cut": keep_cut,
        }
        self.refuse_if_empty(f"{json_file} (min_area {min_area}, keep_cut {keep_cut})")
        self._list_files(Path(json_file))
        if labels is None:
            self._warn_of_known((*self.drop, *known))

    def _warn_of_known(self, known: Iterable[str]) -> None:
        """Log which categories are pasted as unknown although the scenes may know them."""
        # Only those with objects to paste; the file may list a thousand others.
        used = sorted({self.names[number] for number in set(self.category_ids.tolist())})
        for name in used:
            if (other := looks_like(name, sorted(set(known)))) is not None:
                logger.warning(
                    "category %r is pasted as unknown, but looks like %r, which the scenes may "
                    "know: leave it out with --drop-categories (INPUT.CUT_PASTE.DROP_CATEGORIES)",
                    *(name, other),
                )

    def __len__(self) -> int:
        return len(self.annotation_ids)

    def category(self, index: int) -> str:
        """Return the name of an object's category."""
        return self.names[int(self.category_ids[index])]

    def load(self, index, generator=None) -> PasteObject:
        photo = int(self.photo_of[index])
        name, shape = self.photo_names[photo], self.photo_shapes[photo]
        counts = self._counts[self._starts[index] : self._starts[index + 1]].tobytes()
        mask = coco_mask.decode({"size": list(shape), "counts": counts}) > 0
        category = self.category(index)
        source = {
            "source": "coco",
            "annotation_id": int(self.annotation_ids[index]),
            "source_image": name,
            "category": category,
            "category_id": int(self.category_ids[index]),
        }
        label = None if self.labels is None else self._folded_labels[fold_name(category)]
        return PasteObject(_read_photo(self.images / name, shape), mask, label, source)

    def _index(self, content: dict) -> None:
        """Keep eligible annotations in flat arrays, which are cheap to send to worker processes."""
        self.names = {whole_number(item["id"]): item["name"] for item in content["categories"]}
        photos = self._usable_photos(content["images"])
        rows, blobs = [], []
        numbers: dict[int, int] = {}
        self.photo_names, self.photo_shapes = [], []
        for annotation in content["annotations"]:
            counts = self._eligible(annotation, photos)
            if counts is None:
                continue
            image = _image_id(annotation["image_id"])
            if image not in numbers:
                numbers[image] = len(numbers)
                name, *shape = photos[image]
                self.photo_names.append(name)
                self.photo_shapes.append(tuple(shape))
            ids = (whole_number(annotation[key]) for key in ("id", "category_id"))
            rows.append((*ids, numbers[image]))
            blobs.append(counts)
        # One array each, not an object per annotation: COCO has 860,000 of them.
        table = np.array(rows, np.int64).reshape(-1, 3)
        self.annotation_ids, self.category_ids, self.photo_of = table.T.copy()
        self._counts = np.frombuffer(b"".join(blobs), np.uint8)
        self._starts = np.cumsum([0, *map(len, blobs)])

    def _usable_photos(self, entries: list) -> dict[int | str, tuple[str, int, int]]:
        """Return image id -> (file name, H, W); entries that cannot be used become problems."""
        photos: dict[int | str, tuple[str, int, int]] = {}
        for entry in entries:
            number = _image_id(entry.get("id")) if isinstance(entry, dict) else None
            if number is None:
                self._problem("image entries without an id", repr(entry)[:60])
                continue
            name, where = entry.get("file_name"), f"image {number}"
            height, width = (whole_number(entry.get(key)) or 0 for key in ("height", "width"))
            if not is_file_name(name):
                text = f"{where}: {repr(name)[:80]}"
                self._problem("photographs named outside their folder", text)
            elif min(height, width) < 1 or height * width > MAX_PIXELS:
                self._problem("image entries of no usable size", f"{where}: {width}x{height}")
            else:
                photos[number] = name, height, width
        return photos

    def _eligible(self, annotation, photos: dict) -> bytes | None:
        """Return the compressed RLE of an annotation to paste, or count why not and return None."""
        number = whole_number(annotation.get("id")) if isinstance(annotation, dict) else None
        if number is None:
            kind = "annotations without an id that is a whole number"
            return self._problem(kind, repr(annotation)[:60])
        where = f"annotation {number}"
        category = whole_number(annotation.get("category_id"))
        if category not in self.names:
            return self._problem("annotations of a category that is not listed", where)
        if not self._wanted(self.names[category]):
            return self._skip("of categories left out")
        if annotation.get("iscrowd"):
            return self._skip("crowds")
        # Cheap rules come first: decoding the masks of all small objects would take far longer.
        area, small = annotation.get("area"), f"under {self.min_area:g} px"
        if not mask_decides(area) and area < self.min_area:
            return self._skip(small)
        photo = photos.get(_image_id(annotation.get("image_id")))
        if photo is None:
            return self._problem("annotations whose image entry is missing or unusable", where)
        try:
            rle = to_rle(annotation.get("segmentation"), *photo[1:])
        except (ValueError, TypeError, IndexError, OverflowError) as error:
            return self._problem("unusable masks", f"{where} ({error})")
        pixels = int(coco_mask.area(rle))
        if pixels == 0:
            return self._problem("empty masks", where)
        if mask_decides(area, pixels) and pixels < self.min_area:
            return self._skip(small)
        if not self.keep_cut and touches_edge(rle):
            return self._skip("cut off by their photograph's border")
        return rle["counts"]

    def _wanted(self, category: str) -> bool:
        if self.labels is not None:
            return fold_name(category) in self._folded_labels
        return fold_name(category) not in self._folded_drop

    def _skip(self, rule: str) -> None:
        self.skipped[rule] += 1

    def _problem(self, kind: str, name: str) -> None:
        self.problems[kind].append(name)

    def _list_files(self, json_file: Path) -> None:
        self.files[json_file.name] = json_file.stat().st_size
        for name in self.photo_names:
            path = self.images / name
            self.files[name] = path.stat().st_size if path.is_file() else -1
        # Some may be missing, as in a part of COCO; none at all is another folder's path.
        missing = [name for name in self.photo_names if self.files[name] < 0]
        if len(missing) == len(self.photo_names):
            there = sorted(path.name for path in self.images.iterdir())[:3]
            raise FileNotFoundError(
                f"none of the {len(missing)} photographs of {json_file} is in {self.images}; "
                f"looked for {missing[0]}; the folder holds: {', '.join(there) or 'nothing'}"
            )
        if missing:
            self.problems["photographs missing"] = missing


def _image_id(value) -> int | str | None:
    """Return an image's id: a whole number however it is written, or any other text."""
    number = whole_number(value)
    return value if number is None and isinstance(value, str) else number


def _read_photo(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Read a photograph as annotated: rotated by EXIF, or as stored if only that size fits."""
    image = read_image(path)
    if image.shape[:2] == shape:
        return image
    if image.shape[1::-1] == shape:
        image = read_image(path, upright=False)
    if image.shape[:2] == shape:
        return image
    raise ValueError(
        f"photograph {path} is {image.shape[1]}x{image.shape[0]}, "
        f"its annotation says {shape[1]}x{shape[0]}"
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
        label: label value of its objects; None for the anomaly value.
    """

    def __init__(self, folder, label: int | None = None):
        super().__init__(folder)
        self.label = label
        self.settings = {"label": label}

    def load(self, index, generator=None) -> PasteObject:
        name = self.names[index]
        image, alpha = read_cut_out(self.folder / name)
        mask = alpha > 127
        if not mask.any() or mask.all():
            how = "transparent" if not mask.any() else "opaque, with nothing cut out"
            raise ValueError(f"cut-out {self.folder / name} is all {how}")
        source = {"source": "cutouts", "annotation_id": None, "source_image": name}
        source["category"] = Path(name).parent.name
        return PasteObject(image, mask, self.label, source)


class TextureFolder(_Folder):
    """Blobs of texture: random smooth outlines filled from photographs.

    Args:
        folder: folder of photographs, searched with its subfolders.
        side: range of the blob's longest side, as a fraction of the photograph's short side.
    """

    def __init__(self, folder, side: tuple[float, float] = (0.25, 0.75)):
        super().__init__(folder)
        self.side = tuple(side)
        self.settings = {"side": list(self.side)}

    def load(self, index, generator) -> PasteObject:
        name = self.names[index]
        photo = read_image(self.folder / name)
        side = max(int(generator.uniform(*self.side) * min(photo.shape[:2])), LEAST_SIDE)
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
    size, phase = generator.normal(0, 0.35 / waves), generator.uniform(0, 2 * np.pi, 5)
    stretch = generator.uniform(0.5, 1)
    y, x = (np.mgrid[:side, :side] + 0.5) * 2 / side - 1
    angle = np.arctan2(y, x * stretch)
    radius = np.exp((size * np.cos(angle[..., None] * waves + phase)).sum(-1))
    return np.hypot(y, x / stretch) <= 0.9 * radius / radius.max()


def outlier_sources(options: ObjectOptions, known: Iterable[str], root="") -> list[ObjectSource]:
    """Return the sources of unknown objects that the options name.

    Args:
        options: at least one of COCO, cut-outs and textures.
        known: names of the scenes' classes.
        root: folder that relative paths start from.
    """
    sources: list[ObjectSource] = []
    if options.coco_json:
        drop = options.drop_categories or DROPPED
        sources.append(_coco(options, root, drop=drop, known=known))
    if options.cutouts:
        sources.append(CutOutFolder(Path(root, options.cutouts)))
    if options.textures:
        sources.append(TextureFolder(Path(root, options.textures)))
    return sources


def control_source(options: ObjectOptions, known: Mapping[str, int], root="") -> CocoObjects:
    """Return the source of known COCO objects, under their own label.

    Args:
        options: must name a COCO file.
        known: class name -> label value of the scenes.
        root: as in `outlier_sources`.
    Raises:
        ValueError: there is no COCO file, or the scenes have none of its classes.
    """
    if not options.coco_json:
        raise ValueError(
            "control objects are COCO objects of known classes: give --coco-json "
            "(INPUT.CUT_PASTE.COCO_JSON), or no controls (INPUT.CUT_PASTE.CONTROL_OBJECTS 0)"
        )
    labels = {name: known[name] for name in CONTROL_CLASSES if name in known}
    if not labels:
        raise ValueError(
            f"control objects: none of {', '.join(CONTROL_CLASSES)} is a class of this dataset; "
            f"its classes: {', '.join(known)}"
        )
    return _coco(options, root, labels=labels)


def _coco(options: ObjectOptions, root, **kind) -> CocoObjects:
    return CocoObjects(
        Path(root, options.coco_json),
        Path(root, options.coco_images),
        min_area=options.min_area,
        keep_cut=options.keep_cut,
        **kind,
    )
