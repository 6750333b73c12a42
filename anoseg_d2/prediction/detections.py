"""Connected components of a thresholded score map, as records and as COCO json."""

import json
from typing import NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from anoseg_d2.utils.files import write_atomic


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
    found = []
    for index in range(1, len(stats)):
        x, y, width, height, area = (int(value) for value in stats[index])
        if area >= min_size:
            part = slice(y, y + height), slice(x, x + width)
            mask = ids[part] == index
            # Within the box only: the mask of the whole image would be read for each component.
            values = score[part][mask]
            mean = float(values.mean(dtype=np.float64))
            box = x, y, width, height
            found.append(Detection(box, area, mean, float(values.max()), mask))
    return sorted(found, key=lambda detection: (-detection.score, detection.box))


def encode_mask(detection: Detection, size: tuple[int, int]) -> dict:
    """Run-length encode a detection as COCO does.

    Args:
        size: (H, W) of the image.
    Returns:
        `{"size": [H, W], "counts": str}`, compressed.
    """
    x, y, width, height = detection.box
    whole = np.zeros(size, np.uint8, order="F")  # COCO's runs go down the columns
    whole[y : y + height, x : x + width] = detection.mask
    return {"size": list(size), "counts": coco_mask.encode(whole)["counts"].decode("ascii")}


class CocoWriter:
    """Collects detections and writes one COCO json.

    `images`, `annotations` and `categories` are COCO's; an annotation also has `score`, the
    component's mean, and `max_score`. Use it as a context: the file appears, whole, when the
    block ends, with the images added so far, even after an error or Ctrl-C.

    Args:
        path: of the json.
        info: plain values for the `info` field.
    """

    def __init__(self, path, info: dict | None = None):
        self.path, self.images, self.annotations = path, [], []
        categories = [{"id": 1, "name": "anomaly", "supercategory": "anomaly"}]
        self.head = {"info": info or {}, "categories": categories}

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
        image = {"id": len(self.images) + 1, "file_name": file_name}
        self.images.append({**image, "height": size[0], "width": size[1], **fields})
        for detection in detections:
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": image["id"],
                    "category_id": 1,
                    "bbox": list(detection.box),
                    "area": detection.area,
                    "segmentation": encode_mask(detection, size),
                    "iscrowd": 0,  # COCO's tools leave out annotations without it
                    "score": detection.score,
                    "max_score": detection.highest,
                }
            )
        return image["id"]

    def close(self) -> None:
        """Write the file."""
        content = {**self.head, "images": self.images, "annotations": self.annotations}
        write_atomic(self.path, json.dumps(content, allow_nan=False).encode())
