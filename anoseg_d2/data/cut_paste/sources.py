"""Sources of pasted objects: COCO objects, folders of cut-outs, and textures.

A source is chosen by name from `OBJECT_SOURCES`. Every source lists what it cannot use in
`problems` (kind -> names) and counts what its rules leave out in `skipped` (rule -> number), so
that nothing disappears silently.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PureWindowsPath

import numpy as np
from pycocotools import mask as coco_mask

from anoseg_d2.data.cut_paste.options import ObjectOptions
from anoseg_d2.data.cut_paste.paste import PasteObject
from anoseg_d2.data.cut_paste.shapes import LEAST_SIDE, draw_blob
from anoseg_d2.data.image_io import IMAGE_EXTENSIONS, MAX_PIXELS, read_cut_out, read_image
from anoseg_d2.utils.files import read_bytes
from anoseg_d2.utils.folders import walk_files
from anoseg_d2.utils.registry import Registry

__all__ = [
    "CONTROL_CLASSES",
    "EXTRA_OVERLAP",
    "OBJECT_SOURCES",
    "OVERLAP",
    "CocoObjects",
    "CutOutFolder",
    "ObjectSource",
    "TextureFolder",
    "control_source",
    "outlier_sources",
]

# COCO categories that are also in Cityscapes: those that the paper drops, and three more.
OVERLAP = ("person", "bicycle", "car", "motorcycle", "bus", "train", "truck")
EXTRA_OVERLAP = ("traffic light", "stop sign", "potted plant")
CONTROL_CLASSES = OVERLAP  # these have the same names in COCO and Cityscapes
EDGE_MARGIN = 3  # polygons of objects that the border cuts off end a pixel or two before it

# Name -> class; `@OBJECT_SOURCES.register("mine")` adds your own source.
OBJECT_SOURCES = Registry("object source")


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


@OBJECT_SOURCES.register("coco")
class CocoObjects(ObjectSource):
    """Instances of a COCO annotation file (polygons, RLE); photographs are read when needed.

    Args:
        json_file: `instances_*.json`.
        images: folder of its photographs.
        drop: category names left out.
        labels: category name -> label value; if given, only these categories are used, and
            pasted under that label (objects of known classes).
        min_area: smallest area, pixels, as stated in the annotation, or of its mask if it states
            none.
        keep_cut: whether to use objects that the border of their photograph cuts off. They show a
            straight edge wherever they are pasted.
    Raises:
        FileNotFoundError, ValueError: a file or folder is missing, the file is not COCO, or no
            object is left.
    """

    def __init__(
        self,
        json_file,
        images,
        drop=OVERLAP + EXTRA_OVERLAP,
        labels: Mapping[str, int] | None = None,
        min_area: float = 1000,
        keep_cut: bool = False,
    ):
        super().__init__()
        self.images = Path(images)
        self.labels = dict(labels) if labels is not None else None
        self.drop = frozenset(drop)
        self.min_area = min_area
        self.keep_cut = keep_cut
        if not self.images.is_dir():
            raise FileNotFoundError(f"no folder of COCO photographs: {self.images}")
        content, digest = _read_coco(Path(json_file))
        self._index(content)
        self.settings = {
            "json_sha256": digest,
            "drop": sorted(self.drop) if labels is None else None,
            "labels": self.labels,
            "min_area": min_area,
            "keep_cut": keep_cut,
        }
        self.refuse_if_empty(f"{json_file} (min_area {min_area}, keep_cut {keep_cut})")
        self._list_files(Path(json_file))

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
        label = None if self.labels is None else self.labels[category]
        return PasteObject(_read_photo(self.images / name, shape), mask, label, source)

    def _index(self, content: dict) -> None:
        """Keep eligible annotations in flat arrays, which are cheap to send to worker processes."""
        self.names = {item["id"]: str(item["name"]) for item in content["categories"]}
        photos = self._usable_photos(content["images"])
        rows, blobs = [], []
        numbers: dict[int, int] = {}
        self.photo_names, self.photo_shapes = [], []
        for annotation in content["annotations"]:
            counts = self._eligible(annotation, photos)
            if counts is None:
                continue
            photo = photos[annotation["image_id"]]
            if photo["id"] not in numbers:
                numbers[photo["id"]] = len(numbers)
                self.photo_names.append(photo["file_name"])
                self.photo_shapes.append((int(photo["height"]), int(photo["width"])))
            rows.append((annotation["id"], annotation["category_id"], numbers[photo["id"]]))
            blobs.append(counts)
        table = np.array(rows, np.int64).reshape(-1, 3)
        self.annotation_ids, self.category_ids, self.photo_of = table.T.copy()
        self._counts = np.frombuffer(b"".join(blobs), np.uint8)
        self._starts = np.cumsum([0, *map(len, blobs)])

    def _usable_photos(self, entries: list) -> dict:
        """Return image id -> entry; entries with an impossible file or size become problems."""
        photos = {}
        for entry in entries:
            if not isinstance(entry, dict) or not _is_id(entry.get("id")):
                self._problem("image entries without an id", repr(entry)[:60])
                continue
            where = f"image {entry['id']}"
            size = (entry.get("height"), entry.get("width"))
            if not _is_file_name(entry.get("file_name")):
                name = repr(entry.get("file_name"))[:80]
                self._problem("photographs named outside their folder", f"{where}: {name}")
            elif not all(_is_id(side) and side > 0 for side in size):
                self._problem("image entries of no usable size", where)
            elif size[0] * size[1] > MAX_PIXELS:
                self._problem("image entries of no usable size", f"{where}: {size[1]}x{size[0]}")
            else:
                photos[entry["id"]] = entry
        return photos

    def _eligible(self, annotation, photos: dict) -> bytes | None:
        """Return the compressed RLE of an annotation to paste, or count why not and return None."""
        if not isinstance(annotation, dict) or not _is_id(annotation.get("id")):
            return self._problem("annotations without an id", repr(annotation)[:60])
        where = f"annotation {annotation['id']}"
        category = annotation.get("category_id")
        if not _is_id(category) or category not in self.names:
            return self._problem("annotations of a category that is not listed", where)
        if not self._wanted(self.names[category]):
            return self._skip("of categories left out")
        if annotation.get("iscrowd"):
            return self._skip("crowds")
        area = annotation.get("area")
        if isinstance(area, int | float) and area < self.min_area:
            return self._skip(f"under {self.min_area:g} px")
        image = annotation.get("image_id")
        photo = photos.get(image) if _is_id(image) else None
        if photo is None:
            return self._problem("annotations whose image entry is missing or unusable", where)
        try:
            rle = _to_rle(annotation.get("segmentation"), photo["height"], photo["width"])
        except (ValueError, TypeError, IndexError, OverflowError) as error:
            return self._problem("unusable masks", f"{where} ({error})")
        pixels = int(coco_mask.area(rle))
        if pixels == 0:
            return self._problem("empty masks", where)
        if not isinstance(area, int | float) and pixels < self.min_area:
            return self._skip(f"under {self.min_area:g} px")
        if not self.keep_cut and _touches_edge(rle):
            return self._skip("cut off by their photograph's border")
        return rle["counts"]

    def _wanted(self, category: str) -> bool:
        return category in self.labels if self.labels is not None else category not in self.drop

    def _skip(self, rule: str) -> None:
        self.skipped[rule] += 1

    def _problem(self, kind: str, name: str) -> None:
        self.problems[kind].append(name)

    def _list_files(self, json_file: Path) -> None:
        self.files[json_file.name] = json_file.stat().st_size
        for name in self.photo_names:
            path = self.images / name
            self.files[name] = path.stat().st_size if path.is_file() else -1
        missing = [name for name in self.photo_names if self.files[name] < 0]
        if len(missing) == len(self.photo_names):
            there = sorted(path.name for path in self.images.iterdir())[:3]
            raise FileNotFoundError(
                f"none of the {len(missing)} photographs of {json_file} is in {self.images}; "
                f"looked for {missing[0]}; the folder holds: {', '.join(there) or 'nothing'}"
            )
        if missing:
            self.problems["photographs missing"] = missing


def _read_coco(path: Path) -> tuple[dict, str]:
    """Return the content and sha256 of an instances file."""
    if not path.is_file():
        raise FileNotFoundError(f"no COCO annotation file: {path}")
    data = read_bytes(path)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not json: {error}") from error
    keys = ("images", "annotations", "categories")
    found = sorted(content) if isinstance(content, dict) else type(content).__name__
    if not isinstance(content, dict) or any(not isinstance(content.get(k), list) for k in keys):
        raise ValueError(
            f"{path} is not a COCO instances file: it needs the lists {', '.join(keys)}; "
            f"found {found}"
        )
    annotations = content["annotations"]
    if annotations and not any(isinstance(a, dict) and "segmentation" in a for a in annotations):
        raise ValueError(f"{path} has no masks (`segmentation`); take COCO's instances_*.json")
    for category in content["categories"]:
        if (
            not isinstance(category, dict)
            or not _is_id(category.get("id"))
            or not isinstance(category.get("name"), str)
        ):
            raise ValueError(f"{path}: every entry of `categories` needs an id and a name")
    return content, hashlib.sha256(data).hexdigest()


def _is_id(value) -> bool:
    """Return whether it is an integer that fits into 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_file_name(name) -> bool:
    """Return whether it is a relative path that stays inside its folder, on any system."""
    if not isinstance(name, str) or not name or "\0" in name or len(name) > 1000:
        return False
    path = PureWindowsPath(name)  # knows both separators, drives and absolute paths
    return not path.anchor and not any(p == ".." or len(p) > 255 for p in path.parts)


def _to_rle(segmentation, height: int, width: int) -> dict:
    """Convert polygons or RLE to compressed RLE of the photograph's size, counts as bytes."""
    if isinstance(segmentation, list):
        polygons = [np.asarray(p, float).tolist() for p in segmentation if len(p) >= 6]
        if not polygons:
            raise ValueError("no polygon with three or more corners")
        if any(isinstance(p[0], list) for p in polygons):
            raise ValueError("a polygon is not a flat list of coordinates")
        # pycocotools rasterises outlines before clipping, so huge coordinates would take forever.
        farthest = np.abs(np.concatenate(polygons)).max()
        if not farthest <= 10 * max(height, width) or any(len(p) % 2 for p in polygons):
            raise ValueError("a polygon's coordinates are not pairs, or far outside the photograph")
        return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError("neither polygons nor RLE")
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"RLE of size {segmentation['size']}, photograph {[height, width]}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if sum(counts) != height * width or min(counts, default=-1) < 0:
            raise ValueError(f"RLE counts sum to {sum(counts)}, not {height * width}")
        counts = [int(count) for count in counts]
        return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    counts = counts.encode() if isinstance(counts, str) else counts
    if _rle_length(counts) != height * width:
        raise ValueError(f"RLE covers {_rle_length(counts)} pixels, not {height * width}")
    return {"size": [height, width], "counts": counts}


def _rle_length(counts: bytes) -> int:
    """Count the pixels of a compressed RLE, -1 if invalid: pycocotools checks no bounds."""
    if any(not 48 <= byte < 112 for byte in counts):
        return -1
    runs: list[int] = []
    value = shift = 0
    for byte in counts:
        byte -= 48
        value |= (byte & 31) << shift
        shift += 5
        if byte & 32:
            continue
        if byte & 16:
            value |= -1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return sum(runs) if not shift and min(runs, default=-1) >= 0 else -1


def _touches_edge(rle: dict) -> bool:
    height, width = rle["size"]
    x, y, w, h = coco_mask.toBbox(rle)
    return min(x, y) < EDGE_MARGIN or x + w > width - EDGE_MARGIN or y + h > height - EDGE_MARGIN


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


@OBJECT_SOURCES.register("cutouts")
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


@OBJECT_SOURCES.register("textures")
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


def outlier_sources(
    options: ObjectOptions, root="", drop: Iterable[str] | None = None
) -> list[ObjectSource]:
    """Return the sources of unknown objects that the options name.

    Args:
        options: at least one of COCO, cut-outs and textures.
        root: folder that relative paths start from.
        drop: COCO categories left out; None for those of the options, or their default.
    """
    sources: list[ObjectSource] = []
    if options.coco_json:
        if drop is None:
            drop = options.drop_categories or OVERLAP + EXTRA_OVERLAP
        sources.append(_coco(options, root, drop=drop))
    for name, folder in (("cutouts", options.cutouts), ("textures", options.textures)):
        if folder:
            sources.append(OBJECT_SOURCES[name](folder=Path(root, folder)))
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
