"""Contact sheets: pasted objects and labels drawn over their images."""

from pathlib import Path

import cv2
import numpy as np

from anoseg_d2.data.dataset import Dataset
from anoseg_d2.data.dataset_check import ANOMALY_COLOR, VOID_COLOR
from anoseg_d2.data.image_io import read_image, read_label, write_image

__all__ = ["overlay_sheet", "write_preview"]

COLUMNS = 4
TILE_WIDTH = 480
PASTED_COLOUR = (255, 0, 160)


def write_preview(job, records, number: int) -> Path:
    """Write `preview.jpg`: images with pasted objects, each above itself with the pastes marked.

    Args:
        job: `job.CutPasteJob`.
        records: of its images.
        number: how many images, spread over the set.
    Returns:
        the file.
    Raises:
        ValueError: no image has an object.
    """
    pasted = [r for r in records if any(item["dropped"] is None for item in r["objects"])]
    if not pasted:
        raise ValueError("nothing to preview: no image has a pasted object")
    chosen = np.linspace(0, len(pasted) - 1, min(number, len(pasted))).round().astype(int)
    tiles = [_tile(job, pasted[index]) for index in dict.fromkeys(chosen.tolist())]
    height = max(tile.shape[0] for tile in tiles)
    tiles = [np.pad(tile, ((0, height - len(tile)), (0, 0), (0, 0))) for tile in tiles]
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % COLUMNS)
    rows = [np.hstack(tiles[i : i + COLUMNS]) for i in range(0, len(tiles), COLUMNS)]
    path = job.output / "preview.jpg"
    write_image(path, np.vstack(rows), quality=92)
    return path


def _tile(job, record) -> np.ndarray:
    image_path, label_path = job.paths(job.frames[record["index"]])
    image, label = read_image(image_path), read_label(label_path)
    height = round(image.shape[0] * TILE_WIDTH / image.shape[1])
    image = cv2.resize(image, (TILE_WIDTH, height), interpolation=cv2.INTER_AREA)
    value = 1 if job.benchmark else job.options.anomaly_value
    mask = (label == value).astype(np.uint8)
    mask = cv2.resize(mask, (TILE_WIDTH, height), interpolation=cv2.INTER_NEAREST_EXACT)
    marked = image.copy()
    marked[mask > 0] = marked[mask > 0] // 2 + np.array(PASTED_COLOUR, np.uint8) // 2
    return np.pad(np.vstack([image, marked]), ((2, 2), (2, 2), (0, 0)))


def overlay_sheet(dataset: Dataset, root, count: int = 6, width: int = 640) -> np.ndarray:
    """Draw images beside their labels, to be looked at.

    Args:
        dataset: which.
        root: the datasets folder.
        count: number of images, evenly spread over the set.
        width: of one image on the sheet, pixels.
    Returns:
        (rows, 2 * width, 3) uint8 RGB: photograph on the left, coloured label over it on the
        right; void black, anomaly orange.
    """
    pairs = dataset.find(root).pairs
    chosen = np.unique(np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int))
    palette = np.full((256, 3), VOID_COLOR, dtype=np.uint8)
    if dataset.colors:
        palette[: len(dataset.colors)] = dataset.colors
    else:
        palette[0] = (200, 200, 200)
    anomaly = 1 if dataset.evaluator_type == "anomaly" else dataset.anomaly_id
    if anomaly is not None:
        palette[anomaly] = ANOMALY_COLOR
    return np.concatenate([_overlay_row(pairs[i], dataset, palette, width) for i in chosen])


def _overlay_row(pair, dataset: Dataset, palette: np.ndarray, width: int) -> np.ndarray:
    _, image_path, label_path = pair
    image = read_image(image_path)
    label = dataset.rule.apply(read_label(label_path), str(label_path))
    size = (width, max(1, round(image.shape[0] * width / image.shape[1])))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT)
    return np.concatenate([image, cv2.addWeighted(image, 0.4, palette[label], 0.6, 0)], axis=1)
