"""Average the score maps of a video along its motion."""

import cv2
import numpy as np

from anoseg_d2.utils.visualization import fit_long_side

_FLOW_SIDE = 640  # long side at which flow is computed; a finer flow costs more than it gains
_GRAY_TOLERANCE = 24.0  # of 255, between a pixel and the one it came from
_ROUND_TRIP = 1.0  # pixels, between a point and itself after flow back and forward
_LEAST_VISIBLE = 0.5  # fraction of the frame; below it the scene has changed and matches are chance


class Motion:
    """Say where the pixels of each frame of a video were in the frame before, by optical flow."""

    def __init__(self):
        self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._gray: np.ndarray | None = None

    def __call__(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Take the next frame.

        Args:
            frame: (H, W, 3) uint8 BGR.
        Returns:
            where each pixel was, (H, W, 2) float32 x and y, and whether it was visible there,
            (H, W) bool; None for the first frame, and for one of another size.
        """
        height, width = frame.shape[:2]
        size = fit_long_side(height, width, _FLOW_SIDE)
        gray = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        gray = cv2.resize(gray, size[::-1], interpolation=cv2.INTER_AREA)
        before, self._gray = self._gray, gray
        if before is None or before.shape != gray.shape:
            return None
        back = self._flow.calc(gray, before, None)
        forth = self._flow.calc(before, gray, None)
        visible = visible_before(gray, before, back, forth)
        scale = np.float32((width / gray.shape[1], height / gray.shape[0]))
        back = cv2.resize(back, (width, height), interpolation=cv2.INTER_LINEAR) * scale
        nearest = cv2.INTER_NEAREST
        visible = cv2.resize(visible.astype(np.uint8), (width, height), interpolation=nearest) > 0
        return _grid(height, width) + back, visible


class TemporalFilter:
    """Exponential average of scores along dense optical flow.

    For every pixel the flow says where it was in the previous frame; the filtered score of that
    place is carried over and averaged with the current one:

        filtered = alpha * current + (1 - alpha) * carried.

    A pixel that was not visible before keeps its current score: it was outside the frame, flow
    forward and back do not meet (occlusion), or the brightness differs (wrong flow). If that holds
    for most of the frame, it is a cut, and nothing is carried over. A sequence without change stays
    exactly as it is.

    Args:
        alpha: weight of the current frame, 0 < alpha <= 1; 1 changes nothing.
    """

    def __init__(self, alpha: float):
        if not 0 < alpha <= 1:
            raise ValueError(
                f"the weight of the current frame must be above 0 and at most 1, not {alpha}"
            )
        self.alpha = alpha
        self._motion = Motion()
        self._scores: dict[str, np.ndarray] = {}

    def __call__(self, frame: np.ndarray, scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Filter the scores of the next frame.

        Args:
            frame: (H, W, 3) uint8 BGR.
            scores: {name: (H, W) float32}; a name that is new starts unfiltered.
        Returns:
            {name: (H, W) float32}.
        """
        moved = self._motion(frame)
        if moved is not None and moved[1].mean() >= _LEAST_VISIBLE:
            scores = {name: self._blend(name, s, *moved) for name, s in scores.items()}
        self._scores = scores
        return scores

    def _blend(self, name: str, score, places, visible) -> np.ndarray:
        before = self._scores.get(name)
        if before is None or before.shape != score.shape:
            return score
        carried = _look_up(before, places)
        # Written this way, equal scores stay equal to the last bit.
        weight = np.float32(1 - self.alpha) * visible
        return score + weight * (carried - score)


def visible_before(gray, before, back, forth) -> np.ndarray:
    """Return which pixels of a frame were visible in the previous one.

    Args:
        gray, before: (h, w) uint8, the frame and the previous one.
        back: (h, w, 2) float32, from `gray` to `before`, pixels.
        forth: (h, w, 2) float32, from `before` to `gray`.
    Returns:
        (h, w) bool.
    """
    height, width = gray.shape
    places = _grid(height, width) + back
    inside = (places >= 0).all(axis=-1) & (places <= (width - 1, height - 1)).all(axis=-1)
    miss = np.linalg.norm(back + _look_up(forth, places), axis=-1)
    # The faster the motion, the less exact its estimate.
    meets = miss <= _ROUND_TRIP + 0.05 * np.linalg.norm(back, axis=-1)
    # Blurred, so that noise in single pixels is not mistaken for another object.
    present, past = (cv2.GaussianBlur(g.astype(np.float32), (5, 5), 0) for g in (gray, before))
    alike = np.abs(present - _look_up(past, places)) <= _GRAY_TOLERANCE
    return inside & meets & alike


def _grid(height: int, width: int) -> np.ndarray:
    """Return x and y of every pixel, (H, W, 2) float32."""
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.stack((x, y), axis=-1)


def _look_up(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Read values bilinearly at (x, y) places; edges are repeated."""
    return cv2.remap(
        values, places, None, interpolation=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
