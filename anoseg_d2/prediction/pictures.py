"""Draw a score over its photograph, as a heat map with a scale, or as components."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from anoseg_d2.prediction.detections import Detection
from anoseg_d2.utils.visualization import color_bar, heat_map, overlay, score_range

# Scores with a natural scale, from certainly known to certainly anomalous.
SCORE_RANGES = {
    "msp": (0.0, 1.0),
    "entropy": (0.0, 1.0),
    "rba": (-math.tanh(1.0), 0.0),
    "rba_sum": (0.0, 1.0),
    "anomaly": (0.0, 1.0),
    "uno": (-1.0, 1.0),
}
MARK_COLOR = (255, 225, 40)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_SAMPLES = 10**6  # at most this many scores decide on a range


def display_range(name: str, score: np.ndarray) -> tuple[float, float]:
    """Choose the ends of a score's colour scale.

    Args:
        name: name of the score; those in `SCORE_RANGES` have one scale for all images.
        score: (H, W) floats; for any other score its 0.5 and 99.5 percentiles are the ends.
    Returns:
        (lowest, highest).
    """
    if name in SCORE_RANGES:
        return SCORE_RANGES[name]
    values = np.asarray(score).ravel()
    return score_range([values[:: max(1, values.size // _SAMPLES)]])


def glow(image: np.ndarray, score: np.ndarray, lowest: float, highest: float) -> np.ndarray:
    """Lay heat colours over a photograph; the higher the score, the more opaque they are.

    Args:
        image: (H, W, 3) uint8 RGB.
        score: (H, W) floats.
        lowest, highest: ends of the colour scale; at the lowest the photograph is untouched.
    Returns:
        (H, W, 3) uint8 RGB.
    """
    unit = (np.clip(score, lowest, highest) - lowest) / (highest - lowest)
    return overlay(image, heat_map(score, lowest, highest), 0.8 * unit)


def add_color_bar(
    score: np.ndarray, lowest: float, highest: float, name: str, threshold: float | None = None
) -> np.ndarray:
    """Draw a heat map with its scale below it.

    Args:
        score: (H, W) floats.
        lowest, highest: ends of the scale.
        name: name of the score, written in the middle if there is room.
        threshold: value to mark on the bar; None for no mark.
    Returns:
        (H + bar, W, 3) uint8 RGB; the bar's height depends only on the width.
    """
    height, width = score.shape
    unit = max(8, round(min(width, 2400) / 40))
    picture = np.zeros((height + 3 * unit, width, 3), np.uint8)
    picture[:height] = heat_map(score, lowest, highest)
    # An image may be a single pixel wide, and OpenCV fails on an empty bar.
    margin = min(unit // 2, (width - 1) // 2)
    top = height + margin
    picture[top : top + unit, margin : width - margin] = color_bar(width - 2 * margin, unit)
    if threshold is not None:
        place = np.clip((threshold - lowest) / (highest - lowest), 0, 1)
        x = margin + round(float(place) * (width - 2 * margin - 1))
        cv2.line(picture, (x, top - margin // 2), (x, top + unit), (255, 255, 255), 1 + unit // 24)
    _write_scale(picture, top + unit, unit, lowest, highest, name)
    return picture


def _write_scale(picture, top: int, unit: int, lowest: float, highest: float, name: str) -> None:
    """Write both ends of the scale, and the score's name between them where there is room."""
    width, scale = picture.shape[1], max(0.25, unit / 36)
    taken = 0
    for place, text in ((0.0, f"{lowest:.3g}"), (1.0, f"{highest:.3g}"), (0.5, name)):
        (w, h), _ = cv2.getTextSize(text, _FONT, scale, 1)
        if place == 0.5 and w + 2 * taken + 8 > width:
            return
        taken = max(taken, w)
        corner = (max(1, round(place * (width - w - 2))), top + h + max(2, unit // 4))
        thickness = 1 + unit // 30
        cv2.putText(picture, text, corner, _FONT, scale, (255, 255, 255), thickness, cv2.LINE_AA)


def draw_detections(
    image: np.ndarray, detections: Sequence[Detection], labels: Sequence[str] | None = None
) -> np.ndarray:
    """Draw the contours of components, their boxes and a label for each.

    Args:
        image: (H, W, 3) uint8 RGB; it is copied.
        detections: from `find_detections`.
        labels: of each; None for their mean scores.
    Returns:
        (H, W, 3) uint8 RGB.
    """
    drawn = np.ascontiguousarray(image).copy()
    side = min(drawn.shape[:2])
    thickness = max(1, round(side / 300))
    for detection in reversed(detections):  # the highest score is drawn last, on top
        x, y, width, height = detection.box
        contours, _ = cv2.findContours(
            detection.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x, y)
        )
        cv2.drawContours(drawn, contours, -1, (0, 0, 0), thickness + 2)
        cv2.drawContours(drawn, contours, -1, MARK_COLOR, thickness)
        corners = (x, y), (x + width - 1, y + height - 1)
        cv2.rectangle(drawn, *corners, MARK_COLOR, max(1, thickness // 2))
    if labels is None:
        labels = [f"{detection.score:.2f}" for detection in detections]
    for detection, label in reversed(list(zip(detections, labels, strict=True))):
        _write_label(drawn, detection, label, max(0.3, side / 900))
    return drawn


def _write_label(drawn, detection: Detection, text: str, scale: float) -> None:
    """Write dark text on a patch above the box, or inside it where there is no room above."""
    weight = max(1, round(2 * scale))
    (w, h), base = cv2.getTextSize(text, _FONT, scale, weight)
    pad = max(2, h // 4)
    x = max(0, min(detection.box[0], drawn.shape[1] - w - 2 * pad))
    bottom = max(detection.box[1], h + 2 * pad)
    cv2.rectangle(drawn, (x, bottom - h - 2 * pad), (x + w + 2 * pad, bottom), MARK_COLOR, -1)
    cv2.putText(drawn, text, (x + pad, bottom - pad), _FONT, scale, (0, 0, 0), weight, cv2.LINE_AA)
