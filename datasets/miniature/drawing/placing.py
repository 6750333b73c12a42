"""Setting things into a scene: each function returns (distance, painter); far things go first."""

__all__ = ["along", "plane", "standing"]


def standing(weather, sprite, x, z, label=None, contact=1.0):
    """A thing that faces the camera, with its shadow; `contact` is how much of it is on the ground.

    `label` is written instead of the sprite's own ids.
    """
    sprite = sprite.lit(weather.gain)

    def paint(canvas, camera):
        u, v = camera.point(x, 0, z)
        size = camera.scale(z)
        reach = 0.5 * sprite.width * size * contact
        shift = weather.light * reach * 0.8
        canvas.darken(u - shift, v, reach * 1.5, max(1.0, 0.16 * reach), weather.shadow)
        canvas.darken(u, v, reach * 1.05, max(1.0, 0.1 * reach), 0.5)
        canvas.paste(sprite, u, v, size, label=label, haze=weather.haze(z))

    return z, paint


def plane(weather, sprite, x0, z0, x1, z1):
    """An upright plane from (x0, z0), left in the picture, to (x1, z1)."""
    sprite = sprite.lit(weather.gain)

    def paint(canvas, camera):
        quad = [camera.point(x0, sprite.height, z0), camera.point(x1, sprite.height, z1)]
        quad += [camera.point(x1, 0, z1), camera.point(x0, 0, z0)]
        canvas.warp(sprite, quad, haze=weather.haze(0.7 * min(z0, z1) + 0.3 * max(z0, z1)))

    return max(z0, z1) - 0.01, paint


def along(weather, sprite, sign, x, near, far):
    """A plane along the road, seen from its left side (sign 1) or its right (-1).

    Its near end is at the outer side of the picture.
    """
    ends = ((x, near), (x, far)) if sign < 0 else ((x, far), (x, near))
    return plane(weather, sprite, *ends[0], *ends[1])
