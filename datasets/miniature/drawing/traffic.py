"""Who is on the road: vehicles, cyclists, people."""

import numpy as np

from miniature.drawing import street, vehicles
from miniature.drawing.canvas import Sprite, pick
from miniature.drawing.placing import plane, standing

__all__ = ["traffic"]


def traffic(rng, weather, road, extras):
    """Vehicles, cyclists and people, none on top of another or hiding an extra object."""
    taken = [(extra.x, extra.z, 0.8 + extra.sprite.width / 2) for extra in extras]
    items = []

    def free(x, z, half, depth):
        clash = any(abs(x - a) < half + b and abs(z - c) < depth for a, c, b in taken)
        hides = any(
            z < e.z and abs(x / z - e.x / e.z) < half / z + 0.5 * e.sprite.width / e.z
            for e in extras
        )
        if not (clash or hides):
            taken.append((x, z, half))
        return not (clash or hides)

    for make, count in (
        (_vehicle, rng.integers(3, 6)),
        (_cyclist, rng.integers(1, 3)),
        (_walker, rng.integers(2, 6)),
    ):
        for _ in range(count):
            items += make(rng, weather, road, free)
    return items


def _vehicle(rng, weather, road, free):
    lorry = rng.random() < 0.26
    half, length = (1.25, 7.0) if lorry else (0.95, 4.3)
    z = float(np.exp(rng.uniform(np.log(7.5), np.log(40))))
    lane = rng.choice(["own", "oncoming", "parked left", "parked right"], p=[0.2, 0.25, 0.25, 0.3])
    x = {
        "own": rng.uniform(-0.3, 0.8),
        "oncoming": road.left * 0.55,
        "parked left": road.left + half * rng.uniform(-0.3, 1.1),
        "parked right": road.right - half * rng.uniform(-0.3, 1.1),
    }[str(lane)]
    if not free(x, z, half, length + 1):
        return []
    paint = pick(rng, street.PAINT, 16)
    front = "left" in lane or lane == "oncoming"
    draw_end, draw_side = (
        (vehicles.truck_rear, vehicles.truck_side)
        if lorry
        else (vehicles.car_rear, vehicles.car_side)
    )
    end, side = (
        draw_end(rng, weather.light, paint, bool(front)),
        draw_side(rng, weather.light, paint),
    )
    return [_solid(weather, end, side, x, z, half, length, front)]


def _solid(weather, end, side, x, z, half, length, front):
    """A vehicle as two planes: the end that faces the camera and the side it shows."""
    side = Sprite((side.color * 0.88).astype(np.uint8), side.ids, side.width, side.height)
    right = x < 0  # the side that the camera sees
    # Sides are drawn nose right. Seen from the camera, the near end of the side is left in the
    # picture when the right flank shows; the nose is near when the vehicle comes towards us.
    mirrored = side.flipped() if front == right else side
    flank = x + (half if right else -half) * 0.97
    ends = ((flank, z), (flank, z + length)) if right else ((flank, z + length), (flank, z))
    _, paint_side = plane(weather, mirrored, *ends[0], *ends[1])
    _, paint_end = standing(weather, end, x, z)

    def paint(canvas, camera):
        u, v = camera.point(x, 0, z + length * 0.45)
        size = camera.scale(z + length * 0.45)
        canvas.darken(u, v, half * size * 1.5, max(1.0, 0.35 * half * size), 0.55)
        paint_side(canvas, camera)
        paint_end(canvas, camera)

    return z, paint


def _cyclist(rng, weather, road, free):
    z, ridden = float(np.exp(rng.uniform(np.log(5.5), np.log(12)))), bool(rng.random() < 0.62)
    side = rng.choice([-1, 1])
    curb = road.left if side < 0 else road.right
    x = curb - side * rng.uniform(0.2, 1.6) if ridden else curb + side * rng.uniform(0.5, 1.8)
    if not free(x, z, 1.0, 1.5):
        return []
    return [standing(weather, vehicles.bicycle(rng, weather.light, ridden), x, z)]


def _walker(rng, weather, road, free):
    z = float(np.exp(rng.uniform(np.log(5), np.log(17))))
    side = int(rng.integers(2))
    x = (
        road.left - rng.uniform(0.4, road.pavement[0]),
        road.right + rng.uniform(0.4, road.pavement[1]),
    )[side]
    if rng.random() < 0.2:
        x, z = rng.uniform(road.left, road.right), max(z, 9)
    if not free(x, z, 0.4, 1.0):
        return []
    return [standing(weather, vehicles.person(rng, weather.light), x, z)]
