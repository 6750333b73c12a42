"""Who is on the road: vehicles, cyclists, people."""

from miniature.drawing import vehicles
from miniature.drawing.canvas import pick
from miniature.drawing.placing import along, standing
from miniature.drawing.street import PAINT
from miniature.drawing.view import far

__all__ = ["traffic"]


def traffic(rng, weather, road, extras):
    """Return the painters of road users, none on top of another or hiding an extra object."""
    taken = [(extra.x, extra.z, 0.8 + extra.sprite.width / 2) for extra in extras]

    def free(x, z, half, depth):
        clash = any(abs(x - a) < half + b and abs(z - c) < depth for a, c, b in taken)
        hides = any(
            z < e.z and abs(x / z - e.x / e.z) < half / z + 0.5 * e.sprite.width / e.z
            for e in extras
        )
        if clash or hides:
            return False
        taken.append((x, z, half))
        return True

    items = []
    for make, count in ((_vehicle, (3, 6)), (_cyclist, (1, 3)), (_walker, (2, 6))):
        for _ in range(rng.integers(*count)):
            items += make(rng, weather, road, free)
    return items


def _vehicle(rng, weather, road, free):
    lorry = rng.random() < 0.26
    half, length = (1.25, 7.0) if lorry else (0.95, 4.3)
    lane, z = rng.choice(4, p=[0.2, 0.25, 0.25, 0.3]), far(rng, 7.5, 40)
    parked = half * rng.uniform(-0.3, 1.1)
    ahead, oncoming = rng.uniform(-0.3, 0.8), road.left * 0.55
    x = (ahead, oncoming, road.left + parked, road.right - parked)[lane]
    if not free(x, z, half, length + 1):
        return []
    paint, front = pick(rng, PAINT, 16), bool(lane in (1, 2))
    if lorry:
        end = vehicles.truck_end(rng, weather.light, paint, front)
        side = vehicles.truck_side(rng, weather.light, paint)
    else:
        end = vehicles.car_end(rng, weather.light, paint, front)
        side = vehicles.car_side(rng, weather.light, paint)
    return [_solid(weather, end, side, x, z, half, length, front)]


def _solid(weather, end, side, x, z, half, length, front):
    """A vehicle as two planes: the end that faces the camera and the side it shows."""
    sign = -1 if x < 0 else 1  # left of the camera we see the right flank
    # Sides are drawn nose right. Seen from the camera, the near end of the side is left in the
    # picture when the right flank shows; the nose is near when the vehicle comes towards us.
    side = side.flipped() if front == (sign < 0) else side
    _, paint_side = along(weather, side.lit(0.88), sign, x - sign * half * 0.97, z, z + length)
    _, paint_end = standing(weather, end, x, z)

    def paint(canvas, camera):
        u, v = camera.point(x, 0, z + length * 0.45)
        size = half * camera.scale(z + length * 0.45)
        canvas.darken(u, v, size * 1.5, max(1.0, 0.35 * size), 0.55)
        paint_side(canvas, camera)
        paint_end(canvas, camera)

    return z, paint


def _cyclist(rng, weather, road, free):
    ridden, z, sign = bool(rng.random() < 0.62), far(rng, 5.5, 12), int(rng.choice([-1, 1]))
    curb = road.left if sign < 0 else road.right
    x = curb + sign * (-rng.uniform(0.2, 1.6) if ridden else rng.uniform(0.5, 1.8))
    sprite = vehicles.bicycle(rng, weather.light, ridden)
    return [standing(weather, sprite, x, z)] if free(x, z, 1.0, 1.5) else []


def _walker(rng, weather, road, free):
    z, side = far(rng, 5, 17), int(rng.integers(2))
    off = rng.uniform(0.4, road.pavement[side])
    x = road.right + off if side else road.left - off
    if rng.random() < 0.2:  # on the road
        x, z = rng.uniform(road.left, road.right), max(z, 9)
    sprite = vehicles.person(rng, weather.light)
    return [standing(weather, sprite, x, z)] if free(x, z, 0.4, 1.0) else []
