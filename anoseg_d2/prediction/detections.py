"""Connected components of a thresholded score map, as records and as COCO json."""

import json
import shutil
import tempfile
from typing import NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from anoseg_d2.utils.files import atomic_path

__all__ = ["CocoWriter", "Detection", "encode_mask", "find_detections"]


class Detection(NamedTuple):
    """One component of anomalous pixels.

    box: (x, y, width, height) in pixels.
    area: pixels.
    score: mean score over the component.
    highest: its highest score.
    mask: (height, width) bool, inside the box.
    """

    box: tuple[int, int, int, int]
    area: int
    score: float
    highest: float
    mask: np.ndarray


def find_detections(score: np.ndarray, threshold: float, min_size: int = 1) -> list[Detection]:
    """Find the 8-connected components of the pixels with score >= threshold.

    Args:
        score: (H, W) floats, higher = more anomalous.
        threshold: one that `PixelMetrics` reports, or any other.
        min_size: components of fewer pixels are left out.
    Returns:
        detections, in descending order of mean score.
    Raises:
        ValueError: the score or the threshold is NaN.
    """
    score = np.asarray(score)
    if np.isnan(threshold) or np.isnan(score).any():
        raise ValueError("components need a score and a threshold without NaN")
    # One pass also gives the boxes and areas.
    _, ids, stats, _ = cv2.connectedComponentsWithStats(
        (score >= threshold).astype(np.uint8), connectivity=8
    )
    large = np.flatnonzero(stats[1:, cv2.CC_STAT_AREA] >= min_size) + 1
    found = [_detection(score, ids, int(index), stats[index]) for index in large]
    return sorted(found, key=lambda detection: (-detection.score, detection.box))


def _detection(score, ids, index: int, stats) -> Detection:
    x, y, width, height, area = (int(value) for value in stats)
    part = slice(y, y + height), slice(x, x + width)
    mask = ids[part] == index
    values = score[part][mask]
    return Detection(
        (x, y, width, height), area, float(values.mean(dtype=np.float64)), float(values.max()), mask
    )


def encode_mask(detection: Detection, size: tuple[int, int]) -> dict:
    """Run-length encode a detection as COCO does.

    Args:
        size: (H, W) of the image.
    Returns:
        `{"size": [H, W], "counts": str}`, compressed.
    """
    (height, width), (x, y, w, h) = size, detection.box
    # COCO's runs go down the columns, so only the columns that the box touches are expanded.
    columns = np.zeros((w, height), np.uint8)
    columns[:, y : y + h] = detection.mask.T
    flat = columns.ravel()
    changes = np.flatnonzero(np.diff(flat, prepend=0, append=0)) + x * height
    ends = [height * width] if changes[-1] < height * width else []
    counts = np.diff(np.concatenate(([0], changes, ends)).astype(np.int64)).tolist()
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


class CocoWriter:
    """Collects detections and writes one COCO json, in constant memory.

    `images`, `annotations` and `categories` are COCO's; an annotation also has `score`, the
    component's mean, and `max_score`. Use it as a context: the file appears, whole, when the
    block ends, with the images added so far, even after an error or Ctrl-C.

    Args:
        path: of the json.
        info: plain values for the `info` field.
    """

    def __init__(self, path, info: dict | None = None):
        self.path, self.info = path, info or {}
        # Records go to disk one by one, so the files stay open until `close`.
        self._parts = {
            name: tempfile.TemporaryFile("w+")  # noqa: SIM115
            for name in ("images", "annotations")
        }
        self._counts = dict.fromkeys(self._parts, 0)

    def __enter__(self) -> "CocoWriter":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def add(self, file_name: str, size: tuple[int, int], detections, **fields) -> int:
        """Add an image (H, W) and its detections.

        Args:
            fields: further plain values for the image, such as a frame number.
        Returns:
            the image's id, from 1.
        """
        image_id = self._counts["images"] + 1
        image = {"id": image_id, "file_name": file_name, "height": size[0], "width": size[1]}
        self._append("images", {**image, **fields})
        for detection in detections:
            self._append("annotations", self._annotation(image_id, size, detection))
        return image_id

    def _annotation(self, image_id: int, size, detection: Detection) -> dict:
        return {
            "id": self._counts["annotations"] + 1,
            "image_id": image_id,
            "category_id": 1,
            "bbox": list(detection.box),
            "area": detection.area,
            "segmentation": encode_mask(detection, size),
            "iscrowd": 0,
            "score": detection.score,
            "max_score": detection.highest,
        }

    def _append(self, part: str, record: dict) -> None:
        separator = ",\n" if self._counts[part] else "\n"
        self._parts[part].write(separator + json.dumps(record, allow_nan=False))
        self._counts[part] += 1

    def close(self) -> None:
        """Write the file."""
        categories = [{"id": 1, "name": "anomaly", "supercategory": "anomaly"}]
        head = {"info": self.info, "categories": categories}
        with atomic_path(self.path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps(head, ensure_ascii=False)[:-1])
            for name, part in self._parts.items():
                file.write(f',\n"{name}": [')
                part.seek(0)
                shutil.copyfileobj(part, file)
                file.write("]")
                part.close()
            file.write("}\n")
