"""Setting things into a scene: each gives (distance, painter), to be painted far things first."""

import numpy as np

from miniature.drawing.canvas import Sprite

__all__ = ["plane", "standing"]


def _lit(weather, sprite: Sprite) -> Sprite:
    color = np.clip(sprite.color * weather.gain, 0, 255).astype(np.uint8)
    return Sprite(color, sprite.ids, sprite.width, sprite.height)


def standing(weather, sprite, x, z, label=None, contact=1.0):
    """(distance, painter) of a thing that faces the camera, with its shadow."""
    sprite = _lit(weather, sprite)

    def paint(canvas, camera):
        u, v = camera.point(x, 0, z)
        size = camera.scale(z)
        reach = 0.5 * sprite.width * size * contact
        canvas.darken(
            u - weather.light * reach * 0.8, v, reach * 1.5, max(1.0, 0.16 * reach), weather.shadow
        )
        canvas.darken(u, v, reach * 1.05, max(1.0, 0.1 * reach), 0.5)
        canvas.paste(sprite, u, v, size, label=label, haze=weather.haze(z))

    return z, paint


def plane(weather, sprite, x0, z0, x1, z1):
    """(distance, painter) of an upright plane from (x0, z0), left in the picture, to (x1, z1)."""
    sprite = _lit(weather, sprite)

    def paint(canvas, camera):
        quad = [camera.point(x0, sprite.height, z0), camera.point(x1, sprite.height, z1)]
        quad += [camera.point(x1, 0, z1), camera.point(x0, 0, z0)]
        canvas.warp(sprite, quad, haze=weather.haze(0.7 * min(z0, z1) + 0.3 * max(z0, z1)))

    return max(z0, z1) - 0.01, paint
