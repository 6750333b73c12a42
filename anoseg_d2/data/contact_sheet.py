"""Draw contact sheets: photographs with their labels in colour below them."""

from collections.abc import Iterable, Mapping

import cv2
import numpy as np

from anoseg_d2.data.dataset import Dataset
from anoseg_d2.utils.constants import ANOMALY, ANOMALY_COLOR, VOID, VOID_COLOR

__all__ = ["contact_sheet", "evenly_spread", "label_colors"]

GAP = 2  # black pixels around each tile
LABEL_WEIGHT = 0.6  # opacity of the colours over the photograph


def contact_sheet(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
    colors: Mapping[int, tuple[int, int, int]],
    columns: int = 4,
    width: int = 480,
) -> np.ndarray:
    """Arrange photographs in a grid, each above a copy with its label drawn over it.

    Args:
        pairs: (image (H, W, 3) uint8 RGB, label (H, W) uint8), of any sizes; read one at a time.
        colors: label value -> RGB; elsewhere the photograph stays visible.
        columns: tiles in a row.
        width: of one tile, pixels.
    Returns:
        (rows, columns, 3) uint8 RGB.
    Raises:
        ValueError: there is no pair.
    """
    tiles = [_tile(image, label, colors, width) for image, label in pairs]
    if not tiles:
        raise ValueError("a contact sheet needs at least one image")
    height = max(len(tile) for tile in tiles)
    tiles = [np.pad(tile, ((0, height - len(tile)), (0, 0), (0, 0))) for tile in tiles]
    columns = min(columns, len(tiles))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[start : start + columns]) for start in range(0, len(tiles), columns)]
    return np.vstack(rows)


def _tile(image, label, colors, width: int) -> np.ndarray:
    # A tall and narrow image would become a tile of any height.
    scale = min(width / image.shape[1], 2 * width / image.shape[0])
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT)
    marked = image.copy()
    for value, color in colors.items():
        there = label == value
        mixed = (1 - LABEL_WEIGHT) * image[there] + LABEL_WEIGHT * np.array(color)
        marked[there] = np.rint(mixed).astype(np.uint8)
    free = width - size[0]
    return np.pad(np.vstack([image, marked]), ((GAP, GAP), (GAP, GAP + free), (0, 0)))


def label_colors(dataset: Dataset) -> dict[int, tuple[int, int, int]]:
    """Return the colours of a dataset's train ids: its classes, the anomaly and void."""
    colors = dict(enumerate(dataset.colors)) or {0: (200, 200, 200)}
    anomaly = ANOMALY if dataset.evaluator_type == "anomaly" else dataset.anomaly_id
    if anomaly is not None:
        colors[anomaly] = ANOMALY_COLOR
    return {**colors, VOID: VOID_COLOR}


def evenly_spread(total: int, count: int) -> list[int]:
    """Return `count` evenly spread indices of 0..total-1, or all if there are fewer."""
    chosen = np.linspace(0, total - 1, min(count, total)).round().astype(int)
    return list(dict.fromkeys(chosen.tolist()))
