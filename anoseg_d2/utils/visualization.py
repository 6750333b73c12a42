"""Colour class maps, anomaly labels and scores, and resize them for display.

Pure functions on numpy arrays. H, W: height and width of an image; h, w: of its thumbnail.
"""

import cv2
import numpy as np

from anoseg_d2.utils.constants import ANOMALY_COLORS, CITYSCAPES_COLORS, VOID_COLOR


def class_palette(num_classes: int, colors=None) -> np.ndarray:
    """Give every class a colour; other values are black.

    Args:
        num_classes: K, at most 255.
        colors: K RGB triples; None takes the Cityscapes palette. Missing ones get distinct hues.
    Returns:
        (256, 3) uint8 RGB, a table to index with a label map.
    """
    if not 0 < num_classes <= 255:
        raise ValueError(f"a palette holds 1 to 255 classes, got {num_classes}")
    chosen = [tuple(color) for color in (CITYSCAPES_COLORS if colors is None else colors)]
    for extra in range(len(chosen), num_classes):
        # Steps of the golden ratio stay away from all earlier hues.
        hue = int((extra * 0.618034 % 1.0) * 180)
        # OpenCV has only 180 hues, so saturation and brightness alternate too.
        saturation, value = (170, 110, 235)[extra % 3], (230, 165, 200)[extra // 3 % 3]
        pixel = np.uint8([[[hue, saturation, value]]])
        chosen.append(tuple(cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].tolist()))
    table = np.full((256, 3), VOID_COLOR, dtype=np.uint8)
    table[:num_classes] = chosen[:num_classes]
    return table


def color_classes(sem_seg: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Colour train ids; (H, W) integers in 0..255 -> (H, W, 3) uint8 RGB."""
    return palette[np.asarray(sem_seg).astype(np.uint8)]


def anomaly_palette() -> np.ndarray:
    """Return the palette of `ANOMALY_COLORS`, (256, 3) uint8 RGB."""
    table = np.full((256, 3), VOID_COLOR, dtype=np.uint8)
    for value, color in ANOMALY_COLORS.items():
        table[value] = color
    return table


def score_range(samples, low: float = 0.5, high: float = 99.5) -> tuple[float, float]:
    """Choose the ends of a colour scale for many maps of the same score.

    Args:
        samples: arrays of any shape; infinities are ignored.
        low, high: percentiles for the ends of the scale.
    Returns:
        (lowest, highest), finite, lowest < highest.
    """
    pooled = [np.asarray(sample, dtype=np.float64).ravel() for sample in samples]
    values = np.concatenate(pooled) if pooled else np.empty(0)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    lowest, highest = (float(v) for v in np.percentile(values, [low, high]))
    if lowest == highest:
        # More than 99 % of the values are equal; the few others should still be visible.
        lowest, highest = float(values.min()), float(values.max())
    return (lowest, highest) if lowest < highest else (lowest - 0.5, lowest + 0.5)


def heat_map(score: np.ndarray, lowest: float, highest: float) -> np.ndarray:
    """Colour a score from dark (`lowest` or less) to bright (`highest` or more).

    Args:
        score: (H, W) floats; infinities get the colours of the ends.
        lowest, highest: ends of the scale, lowest < highest; use the same for maps to compare.
    Returns:
        (H, W, 3) uint8 RGB, in matplotlib's perceptually uniform "inferno".
    Raises:
        ValueError: the ends are not in order, or the score contains NaN.
    """
    if not lowest < highest:
        raise ValueError(f"a colour scale needs lowest < highest, got {lowest} and {highest}")
    score = np.asarray(score, dtype=np.float64)
    if np.isnan(score).any():
        raise ValueError("a score map with NaN cannot be coloured")
    unit = (np.clip(score, lowest, highest) - lowest) / (highest - lowest)
    levels = np.rint(unit * 255).astype(np.uint8)
    return cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1]


def color_bar(width: int = 256, height: int = 12) -> np.ndarray:
    """Draw the scale of `heat_map` from left to right, (height, width, 3) uint8 RGB."""
    return heat_map(np.tile(np.linspace(0.0, 1.0, width), (height, 1)), 0.0, 1.0)


def overlay(image: np.ndarray, colors: np.ndarray, alpha=0.5) -> np.ndarray:
    """Blend colours over a photograph.

    Args:
        image, colors: (H, W, 3) uint8 RGB of the same size.
        alpha: weight of the colours in 0..1, a number or (H, W).
    Returns:
        (H, W, 3) uint8 RGB.
    """
    if image.shape != colors.shape:
        raise ValueError(f"image {image.shape} and colours {colors.shape} differ in size")
    weight = np.asarray(alpha, dtype=np.float32)
    weight = weight[..., None] if weight.ndim == 2 else weight
    mixed = image * (1.0 - weight) + colors * weight
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


def fit_long_side(height: int, width: int, long_side: int) -> tuple[int, int]:
    """Return (h, w) of the same aspect ratio, whose long side is at most `long_side`, never 0."""
    scale = min(1.0, long_side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Shrink a photograph by area means; (H, W, 3) uint8 -> (h, w, 3) uint8."""
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)


def resize_score(score: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Shrink a score map by area means; (H, W) floats -> (h, w) float32.

    Infinities become huge but finite, so that their mean with neighbours is not NaN.
    """
    limit = np.finfo(np.float32).max / 1e6
    finite = np.clip(np.asarray(score, dtype=np.float32), -limit, limit)
    return cv2.resize(finite, size[::-1], interpolation=cv2.INTER_AREA)


def resize_label(label: np.ndarray, size: tuple[int, int], keep: int | None = None) -> np.ndarray:
    """Shrink a label map by nearest neighbour.

    Args:
        label: (H, W) uint8.
        size: (h, w).
        keep: a value that must not vanish, however few its pixels: every thumbnail pixel that
            covers one of them gets it.
    Returns:
        (h, w) uint8.
    """
    small = cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST)
    if keep is not None and (label == keep).any():
        fraction = cv2.resize(
            (label == keep).astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA
        )
        small[fraction > 0] = keep
    return small
