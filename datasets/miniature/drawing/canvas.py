"""Drawing tools: textures, single objects (`Pen` -> `Sprite`), and the picture (`Canvas`).

Objects are drawn in metres, x to the right of their middle and y up from the ground, and are
scaled when they are put into a picture. Colours are RGB 0..255. Shapes: H, W of the canvas;
h, w of one sprite.
"""

from dataclasses import dataclass

import cv2
import numpy as np

__all__ = ["Canvas", "Pen", "Sprite", "fractal_noise", "jitter", "pick"]

_SHIFT = 4  # fractional bits of OpenCV's drawing coordinates: edges are placed to 1/16 pixel


def jitter(rng: np.random.Generator, color, spread: float = 12) -> np.ndarray:
    """Return a colour near `color`, (3,): a common change of brightness and less per channel."""
    change = rng.normal(0, spread) + rng.normal(0, spread * 0.4, 3)
    return np.clip(np.asarray(color, float) + change, 4, 251)


def pick(rng: np.random.Generator, colors, spread: float = 12) -> np.ndarray:
    """Return one of `colors`, jittered, (3,)."""
    return jitter(rng, colors[rng.integers(len(colors))], spread)


def fractal_noise(rng: np.random.Generator, height: int, width: int, cell: float = 32):
    """Return smooth noise of several octaves, (height, width) float32, mean 0, deviation about 1.

    `cell` is the size of the coarsest blobs in pixels; each octave halves it, down to 2 pixels.
    """
    total = np.zeros((height, width), np.float32)
    weight, power = 1.0, 0.0
    while cell >= 2:
        grid = rng.standard_normal((int(height / cell) + 2, int(width / cell) + 2), np.float32)
        total += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR)
        power += weight**2 * 0.45  # bilinear interpolation halves the variance, roughly
        weight, cell = weight * 0.6, cell / 2
    return total / np.float32(max(power, 1e-6) ** 0.5)


@dataclass(frozen=True)
class Sprite:
    """One drawn object: color (h, w, 3) uint8; ids (h, w) uint8, 0 outside; size in metres."""

    color: np.ndarray
    ids: np.ndarray
    width: float
    height: float

    def flipped(self) -> "Sprite":
        """Return the mirror image."""
        return Sprite(self.color[:, ::-1], self.ids[:, ::-1], self.width, self.height)

    def lit(self, gain) -> "Sprite":
        """Return the same object in other light; `gain` multiplies its colour."""
        color = np.clip(self.color * gain, 0, 255).astype(np.uint8)
        return Sprite(color, self.ids, self.width, self.height)


class Pen:
    """Draws one object on a transparent sheet of `width` x `height` metres.

    Args:
        width, height: metres; x runs from -width/2 to width/2, y from 0 (ground) to height.
        ident: id written where something is drawn, unless a call names another.
        pixels: length of the sheet's longer side in pixels.
    """

    def __init__(self, width: float, height: float, ident: int = 1, pixels: int = 208):
        self.width, self.height, self.ident = width, height, ident
        self.scale = pixels / max(width, height)
        size = (max(4, round(height * self.scale)), max(4, round(width * self.scale)))
        self.color = np.zeros((*size, 3), np.uint8)
        self.ids = np.zeros(size, np.uint8)

    def _pixels(self, points) -> np.ndarray:
        grid = self.scale * (1 << _SHIFT)
        turned = np.asarray(points, float) * (grid, -grid)
        return np.rint(turned + (self.width / 2 * grid, self.height * grid)).astype(np.int32)

    def poly(self, points, color, ident: int | None = None) -> None:
        """Fill the polygon through `points` (n, 2)."""
        pixels = self._pixels(points)
        cv2.fillPoly(self.color, [pixels], tuple(map(float, color)), shift=_SHIFT)
        cv2.fillPoly(self.ids, [pixels], ident or self.ident, shift=_SHIFT)

    def box(self, x0, y0, x1, y1, color, ident: int | None = None) -> None:
        """Fill the upright rectangle between two corners."""
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color, ident)

    def ellipse(self, x, y, rx, ry, color, angle=0, ident: int | None = None) -> None:
        """Fill an ellipse about (x, y), turned by `angle` degrees anticlockwise."""
        turn, t = np.deg2rad(angle), np.linspace(0, 2 * np.pi, 32, endpoint=False)
        u, v = rx * np.cos(t), ry * np.sin(t)
        xs = x + u * np.cos(turn) - v * np.sin(turn)
        self.poly(np.stack([xs, y + u * np.sin(turn) + v * np.cos(turn)], 1), color, ident)

    def blob(self, rng, x, y, rx, ry, color, rough=0.15, corners=11) -> None:
        """Fill an irregular, angular outline about (x, y)."""
        t = rng.uniform(0, 2 * np.pi) + np.arange(corners) * (2 * np.pi / corners)
        r = 1 + rng.normal(0, rough, corners)
        self.poly(np.array([x + rx * r * np.cos(t), y + ry * r * np.sin(t)]).T, color)

    def line(self, points, width, color, ident: int | None = None) -> None:
        """Draw a thick line through `points` with round ends."""
        pixels, thick = [self._pixels(points)], max(1, round(width * self.scale))
        cv2.polylines(self.color, pixels, False, tuple(map(float, color)), thick, shift=_SHIFT)
        cv2.polylines(self.ids, pixels, False, ident or self.ident, thick, shift=_SHIFT)

    def arc(self, x, y, rx, ry, start, end, width, color) -> None:
        """Draw a thick arc from angle `start` to `end` (degrees, anticlockwise)."""
        t = np.deg2rad(np.linspace(start, end, 24))
        self.line(np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], 1), width, color)

    def wheel(self, x, y, radius) -> None:
        """Draw a tyre with its rim."""
        for part, grey in ((1, 28), (0.55, 150), (0.18, 70)):
            self.ellipse(x, y, radius * part, radius * part, (grey, grey, grey + 2))

    def sprite(self, rng, light=-0.5, rough=0.06, bulge=0.5) -> Sprite:
        """Shade what was drawn as a rounded solid, roughen it, and return it.

        Args:
            rng: source of the roughness.
            light: where light comes from, -1 left to 1 right.
            rough: strength of the surface noise, as a fraction of the brightness.
            bulge: 0 flat to 1 round.
        """
        mask = self.ids > 0
        # The distance to the outline serves as height: its slope towards the light is the shade.
        depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
        reach = max(3.0, 0.75 * float(depth.max()))
        dome = cv2.GaussianBlur(np.sqrt(np.minimum(depth / reach, 1)), (0, 0), reach * 0.12 + 1)
        slope_x = cv2.Sobel(dome, cv2.CV_32F, 1, 0, ksize=3) * reach
        slope_y = cv2.Sobel(dome, cv2.CV_32F, 0, 1, ksize=3) * reach
        shade = 1 + bulge * 0.16 * np.clip(-(light * slope_x - 0.8 * slope_y), -2.4, 2.4)
        grain = fractal_noise(rng, *self.ids.shape, cell=24)
        color = np.clip(self.color * (shade * (1 + rough * grain))[..., None], 0, 255)
        return Sprite(color.astype(np.uint8), self.ids, self.width, self.height)


class Canvas:
    """A picture in the making: color (H, W, 3) float32 0..255 and label (H, W) uint8."""

    def __init__(self, height: int, width: int):
        self.color = np.zeros((height, width, 3), np.float32)
        self.label = np.zeros((height, width), np.uint8)

    def paste(self, sprite: Sprite, x, y, scale, *, label=None, haze=None, soft=0.0) -> None:
        """Put a sprite with the middle of its foot at (x, y), `scale` pixels to the metre.

        Args:
            label: written instead of the sprite's own ids.
            haze: (colour, amount 0..1) that the sprite is mixed with.
            soft: sigma of an extra blur of the outline, in pixels.
        """
        w, h = round(sprite.width * scale), round(sprite.height * scale)
        box, cut = _overlap(self.label.shape, round(x - w / 2), round(y - h), w, h)
        if w >= 3 and h >= 3 and self.label[box].size:
            color, alpha, ids = _resized(sprite, w, h, soft)
            self._blend(box, color[cut], alpha[cut], ids[cut], label, haze)

    def warp(self, sprite: Sprite, quad, *, haze=None) -> None:
        """Stretch a sprite over `quad` (4, 2): pixels of its corners, clockwise from top left."""
        h, w = sprite.ids.shape
        quad = np.asarray(quad, np.float32)
        low = np.floor(np.maximum(quad.min(0), 0)).astype(int)
        high = np.ceil(np.minimum(quad.max(0), self.label.shape[::-1])).astype(int)
        if (high - low).min() < 2:
            return
        corners = np.array([(0, 0), (w, 0), (w, h), (0, h)], np.float32)
        matrix = cv2.getPerspectiveTransform(corners, quad - low.astype(np.float32))
        size = tuple(int(n) for n in high - low)
        color = cv2.warpPerspective(sprite.color, matrix, size, borderMode=cv2.BORDER_REPLICATE)
        ids = cv2.warpPerspective(sprite.ids, matrix, size, flags=cv2.INTER_NEAREST)
        box = (slice(low[1], high[1]), slice(low[0], high[0]))
        self._blend(box, color.astype(np.float32), (ids > 0).astype(np.float32), ids, None, haze)

    def darken(self, x, y, rx, ry, amount) -> None:
        """Lay a soft round shadow; labels stay."""
        corner, size = (
            (round(x - 2 * rx), round(y - 2 * ry)),
            (round(4 * rx) + 1, round(4 * ry) + 1),
        )
        box, _ = _overlap(self.label.shape, *corner, *size)
        if self.label[box].size and rx >= 1 and ry >= 0.5:
            ys = (np.arange(box[0].start, box[0].stop) - y)[:, None] / ry
            xs = (np.arange(box[1].start, box[1].stop) - x)[None] / rx
            dark = 1 - amount * np.exp(-1.2 * (xs**2 + ys**2) ** 1.5)
            self.color[box] *= dark[..., None].astype(np.float32)

    def _blend(self, box, color, alpha, ids, label, haze) -> None:
        if haze is not None:
            color = color * (1 - haze[1]) + np.asarray(haze[0], np.float32) * haze[1]
        solid = (alpha > 0.5) & (ids > 0)
        alpha = alpha[..., None]
        self.color[box] = self.color[box] * (1 - alpha) + color * alpha
        self.label[box][solid] = ids[solid] if label is None else label


def _resized(sprite, w, h, soft):
    """Sprite at w x h pixels: color float32, alpha 0..1 float32, ids."""
    mask = (sprite.ids > 0).astype(np.float32)
    way = cv2.INTER_AREA if w < mask.shape[1] else cv2.INTER_LINEAR
    alpha = cv2.resize(mask, (w, h), interpolation=way)
    # Colour is averaged over the object only; otherwise the empty sheet would give a dark rim.
    color = cv2.resize(sprite.color * mask[..., None], (w, h), interpolation=way)
    color = color / np.maximum(alpha, 1e-3)[..., None]
    ids = cv2.resize(sprite.ids, (w, h), interpolation=cv2.INTER_NEAREST)
    # Nearest resampling may miss ids at the rim where the area average says "inside".
    ids = np.where((ids == 0) & (alpha > 0.5), cv2.dilate(ids, np.ones((3, 3), np.uint8)), ids)
    if soft > 0:
        alpha = alpha * cv2.GaussianBlur(alpha, (0, 0), soft)
    return color, alpha, ids


def _overlap(shape, x0, y0, w, h):
    """Slices of the canvas that a box covers, and of the part of the box on the canvas."""
    left, top = max(0, x0), max(0, y0)
    right, bottom = max(left, min(shape[1], x0 + w)), max(top, min(shape[0], y0 + h))
    box = (slice(top, bottom), slice(left, right))
    return box, (slice(top - y0, bottom - y0), slice(left - x0, right - x0))
