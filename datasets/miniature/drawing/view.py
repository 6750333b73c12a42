"""What a scene is seen with: weather, camera, and the cross-section of the street.

X is metres to the right of the camera, Y metres above the ground, Z metres ahead.
"""

from dataclasses import dataclass

import numpy as np

from miniature.drawing.canvas import jitter

__all__ = ["Camera", "Street", "Weather", "far"]

# name: odds, light on everything, sky above, sky at the horizon, haze distance (m), shadow, noise
_WEATHERS = {
    "clear": (0.28, (1.06, 1.03, 0.97), (96, 140, 196), (188, 206, 220), 260, 0.55, 4),
    "overcast": (0.26, (0.92, 0.94, 0.97), (176, 182, 190), (206, 208, 210), 150, 0.28, 5),
    "hazy": (0.12, (0.98, 0.97, 0.94), (186, 190, 192), (204, 204, 200), 60, 0.22, 5),
    "evening": (0.14, (0.94, 0.78, 0.62), (104, 112, 150), (226, 170, 120), 160, 0.45, 6),
    "dusk": (0.08, (0.52, 0.54, 0.64), (54, 62, 92), (120, 116, 130), 130, 0.2, 8),
    "rain": (0.12, (0.74, 0.77, 0.82), (128, 134, 144), (158, 162, 168), 75, 0.15, 7),
}


def far(rng, near: float, farthest: float) -> float:
    """A distance between two limits; each doubling of it is equally likely."""
    return float(np.exp(rng.uniform(np.log(near), np.log(farthest))))


class Weather:
    """Light of one scene, chosen at random; `light` runs from -1 (from the left) to 1."""

    def __init__(self, rng):
        odds = [row[0] for row in _WEATHERS.values()]
        self.name = str(rng.choice(list(_WEATHERS), p=odds))
        _, gain, top, low, distance, self.shadow, noise = _WEATHERS[self.name]
        self.gain = np.array(gain, np.float32) * np.float32(rng.uniform(0.88, 1.1))
        self.sky_top, self.sky_low = jitter(rng, top, 14), jitter(rng, low, 10)
        self.haze_distance = distance * rng.uniform(0.8, 1.3)
        self.noise = noise * rng.uniform(0.6, 1.3)
        self.light = float(rng.uniform(0.3, 1) * rng.choice([-1, 1]))

    def haze(self, z):
        """Return (colour, amount) that things `z` metres away are mixed with."""
        return self.sky_low, 1 - np.exp(-np.maximum(z - 4, 0) / self.haze_distance)


class Camera:
    """A pinhole on a road that may bend: the sideways offset grows with `bend` times Z squared."""

    def __init__(self, rng, width: int, height: int):
        self.width, self.height = width, height
        self.focal = height * rng.uniform(1.45, 1.85)
        self.x = width * rng.uniform(0.42, 0.58)
        self.horizon = height * rng.uniform(0.36, 0.46)
        self.above = rng.uniform(1.6, 2.3)
        self.bend = rng.normal(0, 0.0016)

    def point(self, x, y, z):
        """Return the pixel (column, row) of a point; x is counted across the road."""
        u = self.x + self.focal * (x / z + self.bend * z)
        return u, self.horizon + self.focal * (self.above - y) / z

    def scale(self, z) -> float:
        """Return pixels to the metre at distance z."""
        return self.focal / z

    def ground(self):
        """Return the first row below the horizon, and x (h, W), z (h, 1) of the ground there."""
        first = int(np.ceil(self.horizon))
        rows = np.arange(first, self.height, dtype=np.float32)[:, None] + 0.5 - self.horizon
        z = self.focal * self.above / np.maximum(rows, 0.5)
        u = (np.arange(self.width, dtype=np.float32)[None] + 0.5 - self.x) / self.focal
        return first, (u * z - self.bend * z**2).astype(np.float32), z.astype(np.float32)


@dataclass(frozen=True)
class Street:
    """Cross-section: road between `left` and `right`, then pavement and verge on either side."""

    left: float
    right: float
    pavement: tuple[float, float]
    verge: tuple[float, float]
    crossing: float  # distance of a zebra crossing, 0 for none

    @classmethod
    def choose(cls, rng) -> "Street":
        """Return a street of random widths."""
        return cls(
            left=-rng.uniform(3.2, 5.5),
            right=rng.uniform(2.3, 3.6),
            pavement=tuple(rng.uniform(1.6, 3.4, 2)),
            verge=tuple(np.where(rng.random(2) < 0.65, rng.uniform(1.5, 3.5, 2), 0.0)),
            crossing=float(rng.uniform(7, 18)) if rng.random() < 0.35 else 0.0,
        )
