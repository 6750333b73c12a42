"""Read COCO annotation files, those of exporters that write numbers as text included.

COCO's own files have whole numbers as ids, areas in pixels, and names in lower case. Exporters and
other data sets (LVIS, Open Images) differ in all of these; here they are read alike.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath

import numpy as np
from pycocotools import mask as coco_mask

from anoseg_d2.utils.files import read_bytes
from anoseg_d2.utils.ranges import shown

__all__ = [
    "fold_name",
    "is_file_name",
    "looks_like",
    "mask_decides",
    "read_coco",
    "to_rle",
    "touches_edge",
    "whole_number",
]

EDGE_MARGIN = 3  # polygons of objects that the border cuts off end a pixel or two before it


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
