"""Paste objects of a COCO annotation file."""

import contextlib
import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from anoseg_d2.data.cut_paste.paste import PasteObject
from anoseg_d2.data.cut_paste.sources import ObjectSource
from anoseg_d2.data.image_io import read_image
from anoseg_d2.utils.files import file_hash, read_json

# COCO categories that have the same name in Cityscapes; the paper drops them.
CONTROL_CLASSES = ("person", "bicycle", "car", "motorcycle", "bus", "train", "truck")
# Cityscapes knows the three others too.
DROPPED = (*CONTROL_CLASSES, "traffic light", "stop sign", "potted plant")
EDGE_MARGIN = 3  # polygons of objects that the border cuts off end a pixel or two before it
_MALFORMED = (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError)


class CocoObjects(ObjectSource):
    """Instances of a COCO annotation file (polygons, RLE); photographs are read when needed.

    Args:
        json_file: `instances_*.json`.
        images: folder of its photographs.
        drop: category names left out, compared by `fold_name`.
        labels: category name -> label value; if given, only these categories are used, and
            pasted under that label (objects of known classes).
        min_area: smallest area, pixels, as stated in the annotation, or of its mask where none is.
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
        drop=DROPPED,
        labels: Mapping[str, int] | None = None,
        min_area: float = 1000,
        keep_cut: bool = False,
    ):
        super().__init__()
        self.images = Path(images)
        if not self.images.is_dir():
            raise FileNotFoundError(f"no folder of COCO photographs: {self.images}")
        self.labels = dict(labels) if labels is not None else None
        self._left_out = frozenset(map(fold_name, drop))
        self._label_of = {fold_name(name): value for name, value in (labels or {}).items()}
        self.min_area = min_area
        self.keep_cut = keep_cut
        self._index(_read_coco(json_file))
        # The default names what Cityscapes knows, of which a file may have none.
        there = set(map(fold_name, self.names.values()))
        if drop != DROPPED and (unknown := [n for n in drop if fold_name(n) not in there]):
            raise ValueError(
                f"--drop-categories (INPUT.CUT_PASTE.DROP_CATEGORIES): {', '.join(unknown)} not in "
                f"{json_file}; its categories: {', '.join(self.names.values())}"
            )
        self.settings = {
            "json_sha256": file_hash(json_file),
            "drop": sorted(set(drop)) if labels is None else None,
            "labels": self.labels,
            "min_area": float(min_area),
            "keep_cut": keep_cut,
        }
        self.refuse_if_empty(f"{json_file} (min_area {min_area}, keep_cut {keep_cut})")
        paths = {Path(json_file).name: Path(json_file)}
        paths |= {name: self.images / name for name in self.photo_names}
        self.files = {n: p.stat().st_size if p.is_file() else -1 for n, p in paths.items()}
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

    def __len__(self) -> int:
        return len(self.annotation_ids)

    def category(self, index: int) -> str:
        """Return the name of an object's category."""
        return self.names[int(self.category_ids[index])]

    def load(self, index, generator=None) -> PasteObject:
        photo = int(self.photo_of[index])
        name, shape = self.photo_names[photo], self.photo_shapes[photo]
        image = read_image(self.images / name)
        # Resized copies of COCO are around, and a mask would cut something else out of them.
        if image.shape[:2] != shape:
            height, width = image.shape[:2]
            raise ValueError(f"photograph {name} is {width}x{height}, unlike its annotation says")
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
        return PasteObject(image, mask, label, source)

    def _index(self, coco: COCO) -> None:
        """Keep eligible annotations in flat arrays, which are cheap to send to worker processes."""
        self.names = {number: entry["name"] for number, entry in coco.cats.items()}
        rows, blobs, numbers = [], [], {}
        self.photo_names, self.photo_shapes = [], []
        for annotation in coco.dataset["annotations"]:
            try:
                rule, rle = self._left_out_by(annotation, coco)
                if rule:
                    self.skipped[rule] += 1
                    continue
                photo = coco.imgs[annotation["image_id"]]
                if photo["id"] not in numbers:
                    name = photo["file_name"]
                    # An annotation file may not read from other folders.
                    if Path(name).is_absolute() or ".." in Path(name).parts:
                        raise ValueError(f"its photograph {name} is outside of its folder")
                    self.photo_names.append(name)
                    self.photo_shapes.append((photo["height"], photo["width"]))
                    numbers[photo["id"]] = len(numbers)
                number = numbers[photo["id"]]
                rows.append((int(annotation["id"]), int(annotation["category_id"]), number))
                counts = rle["counts"]
                blobs.append(counts.encode() if isinstance(counts, str) else counts)
            except _MALFORMED as error:
                self.problems["unusable annotations"].append(f"{annotation['id']} ({error!r})")
        # One array each, not an object per annotation: COCO has 860,000 of them.
        table = np.array(rows, np.int64).reshape(-1, 3)
        self.annotation_ids, self.category_ids, self.photo_of = table.T.copy()
        self._counts = np.frombuffer(b"".join(blobs), np.uint8)
        self._starts = np.cumsum([0, *map(len, blobs)])

    def _left_out_by(self, annotation: dict, coco: COCO) -> tuple[str, dict | None]:
        """Return the rule that leaves an annotation out, or "" and its mask as RLE."""
        name = fold_name(self.names[annotation["category_id"]])
        area, small = annotation.get("area"), f"under {self.min_area:g} px"
        # Cheap rules come first: decoding the masks of all small objects would take far longer.
        if name in self._left_out if self.labels is None else name not in self._label_of:
            return "of categories left out", None
        if annotation.get("iscrowd"):
            return "crowds", None
        if area and area < self.min_area:
            return small, None
        rle, photo = coco.annToRLE(annotation), coco.imgs[annotation["image_id"]]
        height, width = photo["height"], photo["width"]
        if list(rle["size"]) != [height, width]:
            raise ValueError(f"its mask has the size {rle['size']}, unlike its photograph")
        pixels = int(coco_mask.area(rle))
        if pixels == 0:
            raise ValueError("its mask is empty")
        if not area and pixels < self.min_area:
            return small, None
        x, y, w, h = coco_mask.toBbox(rle)
        touches = min(x, y) < EDGE_MARGIN or x + w > width - EDGE_MARGIN
        if not self.keep_cut and (touches or y + h > height - EDGE_MARGIN):
            return "cut off by their photograph's border", None
        return "", rle


def _read_coco(path) -> COCO:
    coco = COCO()
    coco.dataset = read_json(path)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
            coco.createIndex()
        masks = any("segmentation" in annotation for annotation in coco.dataset["annotations"])
    except _MALFORMED as error:
        raise ValueError(f"{path} is not a COCO instances file: {error!r}") from error
    if not masks:
        raise ValueError(f"{path} has no masks (`segmentation`); take COCO's instances_*.json")
    return coco


def fold_name(name: str) -> str:
    """Return a category's name as it is compared: `Traffic_Light` is `traffic light`.

    LVIS adds what a word means, as in `car_(automobile)`; other sets write upper case, underscores
    and hyphens.
    """
    plain = re.sub(r"\(.*?\)", " ", name.casefold())
    return " ".join(re.findall(r"\w+", plain.replace("_", " ")))
