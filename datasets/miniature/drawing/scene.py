"""One road scene: view, ground, roadside and traffic put together.

A scene is painted at twice its size, far things first, and reduced at the end.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from anoseg_d2.utils.constants import PASTED_ID
from miniature.drawing.canvas import Canvas, Sprite, pick
from miniature.drawing.ground import paint_ground, paint_sky
from miniature.drawing.placing import standing
from miniature.drawing.roadside import roadside
from miniature.drawing.street import IDS, PAINT
from miniature.drawing.traffic import traffic
from miniature.drawing.view import Camera, Street, Weather, far

__all__ = ["Extra", "Scene", "draw_scene"]

_OVERSAMPLE = 2


@dataclass(frozen=True)
class Extra:
    """An object that stands on the road at (x, z) metres, labelled as an anomaly."""

    sprite: Sprite
    x: float
    z: float


@dataclass(frozen=True)
class Scene:
    """A finished scene: image (H, W, 3) uint8, labels (H, W) uint8 Cityscapes ids (and 254)."""

    image: np.ndarray
    labels: np.ndarray
    weather: Weather


def draw_scene(rng, width: int, height: int, extras: Callable | None = None) -> Scene:
    """Draw a road scene.

    Args:
        rng: source of all randomness.
        width, height: size in pixels of the result.
        extras: called as `extras(rng, weather, on_road)` with `on_road(rng, z_near, z_far)` ->
            (x, z) a spot on the road; returns a list of `Extra` to set into the scene.
    """
    weather = Weather(rng)
    camera = Camera(rng, width * _OVERSAMPLE, height * _OVERSAMPLE)
    road = Street.choose(rng)
    canvas = Canvas(camera.height, camera.width)
    paint_sky(rng, canvas, camera, weather)
    paint_ground(rng, canvas, camera, weather, road)

    def on_road(rng, near, farthest):
        return float(rng.uniform(road.left * 0.6, road.right * 0.75)), far(rng, near, farthest)

    added = extras(rng, weather, on_road) if extras else []
    items = roadside(rng, weather, road) + traffic(rng, weather, road, added)
    items += [standing(weather, e.sprite, e.x, e.z, PASTED_ID, contact=0.9) for e in added]
    for _, paint in sorted(items, key=lambda item: -item[0]):
        paint(canvas, camera)
    image = _expose(rng, canvas, (width, height), weather)
    labels = canvas.label[::_OVERSAMPLE, ::_OVERSAMPLE].copy()
    _add_void(rng, image, labels)
    return Scene(image, labels, weather)


def _expose(rng, canvas, size, weather) -> np.ndarray:
    """Reduce to the final size and add what a camera adds: vignette, softness, tone, noise."""
    image = cv2.resize(np.clip(canvas.color, 0, 255), size, interpolation=cv2.INTER_AREA)
    ys, xs = np.mgrid[-1 : 1 : size[1] * 1j, -1 : 1 : size[0] * 1j].astype(np.float32)
    image *= (1 - rng.uniform(0.04, 0.2) * (xs**2 + ys**2) / 2)[..., None]
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.75))
    image = 255 * (np.clip(image, 0, 255) / 255) ** np.float32(rng.uniform(0.85, 1.15))
    image += rng.standard_normal(image.shape, np.float32) * np.float32(weather.noise)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def _add_void(rng, image, labels):
    """Paint the bonnet of the own car and mark a blind frame."""
    h, w = labels.shape
    if rng.random() < 0.75:
        x = np.linspace(-1, 1, w)
        top = h * (1 - rng.uniform(0.05, 0.1) * np.sqrt(np.clip(1 - (x / 0.96) ** 2, 0, 1)))
        mask = np.arange(h)[:, None] > top[None]
        sheen = (1 - 0.4 * np.abs(x))[None, :, None] * pick(rng, PAINT, 8)
        bonnet = 0.55 * np.broadcast_to(sheen, image.shape) + 0.25 * image.mean((0, 1))
        image[mask] = np.clip(bonnet, 0, 255)[mask]
        labels[mask] = IDS["ego vehicle"]
    border = max(1, round(h / 128))
    for part in (np.s_[:border], np.s_[-border:], np.s_[:, :border], np.s_[:, -border:]):
        labels[part] = IDS["out of roi"]
