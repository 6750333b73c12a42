"""Paste objects of a COCO annotation file, of an exporter that writes numbers as text included.

COCO's own files have whole numbers as ids, areas in pixels, and names in lower case. Exporters and
other data sets (LVIS, Open Images) differ in all of these; here they are read alike.
"""

import difflib
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PureWindowsPath

import numpy as np
from pycocotools import mask as coco_mask

from anoseg_d2.data.cut_paste.paste import PasteObject
from anoseg_d2.data.cut_paste.sources import ObjectSource
from anoseg_d2.data.image_io import MAX_PIXELS, read_image
from anoseg_d2.utils.files import read_bytes
from anoseg_d2.utils.ranges import shown

__all__ = ["CONTROL_CLASSES", "DROPPED", "CocoObjects"]

logger = logging.getLogger(__name__)

# COCO categories that have the same name in Cityscapes; the paper drops them.
CONTROL_CLASSES = ("person", "bicycle", "car", "motorcycle", "bus", "train", "truck")
# Cityscapes knows the three others too.
DROPPED = (*CONTROL_CLASSES, "traffic light", "stop sign", "potted plant")
EDGE_MARGIN = 3  # polygons of objects that the border cuts off end a pixel or two before it


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
        self._left_out = frozenset(map(fold_name, drop))
        self._label_of = {fold_name(name): value for name, value in (labels or {}).items()}
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
            "drop": sorted(set(drop)) if labels is None else None,
            "labels": self.labels,
            "min_area": min_area,
            "keep_cut": keep_cut,
        }
        self.refuse_if_empty(f"{json_file} (min_area {min_area}, keep_cut {keep_cut})")
        self._list_files(Path(json_file))
        # Only those with objects to paste; the file may list a thousand others.
        used = {self.names[number] for number in set(self.category_ids.tolist())}
        for name in sorted(used) if labels is None else ():
            if (other := looks_like(name, sorted({*drop, *known}))) is not None:
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
        label = None if self.labels is None else self._label_of[fold_name(category)]
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
        name = fold_name(self.names[category])
        if name in self._left_out if self.labels is None else name not in self._label_of:
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


def fold_name(name: str) -> str:
    """Return a category's name as it is compared: `Traffic_Light` is `traffic light`.

    LVIS adds what a word means, as in `car_(automobile)`; other sets write upper case, underscores
    and hyphens.
    """
    plain = re.sub(r"\(.*?\)", " ", name.casefold())
    return " ".join(re.findall(r"\w+", plain.replace("_", " ")))


def looks_like(category: str, known: Iterable[str]) -> str | None:
    """Return the first known class that a category nearly equals, or is a kind of, if any.

    `cars`, `trafficlight` and `pickup truck` look like a car, a traffic light and a truck.
    """
    name = fold_name(category)
    for known_name in known:
        other = fold_name(known_name)
        close = difflib.SequenceMatcher(None, name.replace(" ", ""), other.replace(" ", ""))
        if other and (f" {name}".endswith(f" {other}") or close.ratio() >= 0.85):
            return known_name
    return None


def whole_number(value) -> int | None:
    """Return an id, which exporters also write as 3.0 or "3"; None if it is none of these."""
    if isinstance(value, str) and re.fullmatch("[0-9]{1,18}", value):
        return int(value)
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    # It must fit into 64 bits.
    return int(value) if whole and not isinstance(value, bool) and abs(value) < 2**63 else None


def mask_decides(area, pixels: int | None = None) -> bool:
    """Return whether an object's size is that of its mask, because the stated area cannot be.

    Args:
        area: as an annotation states it; 0, fractions of the image and text are not pixels.
        pixels: of the mask, once it is known.
    """
    if not isinstance(area, int | float) or not area > 1:
        return True
    return pixels is not None and pixels < area / 4


def read_coco(path: Path) -> tuple[dict, str]:
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
        named = isinstance(category, dict) and isinstance(category.get("name"), str)
        if not named or whole_number(category.get("id")) is None:
            raise ValueError(
                f"{path}: every entry of `categories` needs a name and an id that is a whole "
                f"number; found {shown(category)}"
            )
    return content, hashlib.sha256(data).hexdigest()


def is_file_name(name) -> bool:
    """Return whether it is a relative path that stays inside its folder, on any system."""
    if not isinstance(name, str) or not name or "\0" in name or len(name) > 1000:
        return False
    path = PureWindowsPath(name)  # knows both separators, drives and absolute paths
    return not path.anchor and not any(p == ".." or len(p) > 255 for p in path.parts)


def to_rle(segmentation, height: int, width: int) -> dict:
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


def touches_edge(rle: dict) -> bool:
    height, width = rle["size"]
    x, y, w, h = coco_mask.toBbox(rle)
    return min(x, y) < EDGE_MARGIN or x + w > width - EDGE_MARGIN or y + h > height - EDGE_MARGIN
