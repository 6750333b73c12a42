"""What lines the road: houses, walls, fences, trees, posts."""

import numpy as np

from miniature.drawing import street
from miniature.drawing.canvas import Sprite
from miniature.drawing.placing import plane, standing

__all__ = ["roadside"]

# Odds of house, wall, fence, hedge, gap. The nearest stretch fills most of the picture's side, and
# houses show behind anyway, so that walls and fences come first there.
_NEAR_ODDS = [0.22, 0.34, 0.36, 0.03, 0.05]
_ODDS = [0.38, 0.22, 0.26, 0.05, 0.09]


def roadside(rng, weather, road):
    items = []
    for side in (0, 1):
        sign = (-1, 1)[side]
        edge = (road.left, road.right)[side] + sign * road.pavement[side]
        line = edge + sign * (road.verge[side] + rng.uniform(0.2, 0.9))
        items += _frontage(rng, weather, sign, line)
        items += _greenery(rng, weather, sign, edge, line, road.verge[side])
        items += _posts(rng, weather, sign, (road.left, road.right)[side], edge)
    return items


def _frontage(rng, weather, sign, line):
    """Houses, walls, fences, hedges and gaps along one side, from near to far."""
    items, z = [], rng.uniform(2.2, 4.0)
    kinds, odds = ["house", "wall", "fence", "hedge", "gap"], _NEAR_ODDS
    while z < 62:
        kind = str(rng.choice(kinds, p=odds))
        odds = _ODDS
        length = rng.uniform(8, 16) if kind == "house" else rng.uniform(8, 16)
        end = z + length
        if kind == "house":
            items += _house(rng, weather, sign, line, z, end)
        elif kind != "gap":
            draw, tall = {
                "wall": (street.wall, rng.uniform(2.0, 3.2)),
                "fence": (street.fence, rng.uniform(1.6, 2.6)),
                "hedge": (street.hedge, rng.uniform(1.2, 2.2)),
            }[kind]
            items.append(
                _facing(weather, draw(rng, length, tall, weather.light), sign, line, z, end)
            )
            items += _behind(rng, weather, sign, line, z, end)
        else:
            items += _behind(rng, weather, sign, line, z, end)
        z = end + (rng.uniform(0, 2) if rng.random() < 0.3 else 0)
    return items


def _facing(weather, sprite, sign, line, near, far):
    """A plane along the road; its near end is at the outer side of the picture."""
    ends = ((line, near), (line, far)) if sign < 0 else ((line, far), (line, near))
    return plane(weather, sprite, *ends[0], *ends[1])


def _house(rng, weather, sign, line, near, far):
    tall = rng.uniform(4.5, 13)
    front = street.facade(rng, far - near, tall, weather.light)
    shaded = front.color * rng.uniform(0.7, 0.9)
    side = Sprite(
        shaded.astype(np.uint8)[:, : front.color.shape[1] // 2],
        front.ids[:, : front.ids.shape[1] // 2],
        6.0,
        tall,
    )
    outer = line + sign * 9
    ends = (outer, line) if sign < 0 else (line, outer)
    return [
        _facing(weather, front, sign, line, near, far),
        plane(weather, side, ends[0], near, ends[1], near),
    ]


def _behind(rng, weather, sign, line, near, far):
    """Trees or a house that look over a wall or a fence."""
    if rng.random() < 0.2:
        return _house(rng, weather, sign, line + sign * rng.uniform(3, 6), near + 0.5, far)
    spots = rng.uniform(near + 0.5, far, rng.integers(1, 4))
    return [
        standing(
            weather,
            street.tree(rng, rng.uniform(3.5, 8), weather.light),
            line + sign * rng.uniform(2, 6),
            z,
        )
        for z in spots
    ]


def _greenery(rng, weather, sign, edge, line, verge):
    items = []
    for _ in range(rng.integers(1, 4) if verge else rng.integers(0, 2)):
        x, z = rng.uniform(min(edge, line), max(edge, line)), rng.uniform(6, 40)
        tall = rng.uniform(4, 7.5) if rng.random() < 0.6 else rng.uniform(0.7, 1.6)
        items.append(standing(weather, street.tree(rng, tall, weather.light), x, z))
    return items


def _posts(rng, weather, sign, curb, edge):
    items = []
    for _ in range(rng.integers(2, 4)):
        head = str(rng.choice(["lamp", "sign", "light", ""], p=[0.18, 0.4, 0.34, 0.08]))
        tall = {"lamp": rng.uniform(4.5, 6), "": rng.uniform(2.5, 5)}.get(
            head, rng.uniform(2.9, 3.8)
        )
        x, z = (
            curb + sign * rng.uniform(0.4, 1.0),
            float(np.exp(rng.uniform(np.log(6.5), np.log(22)))),
        )
        sprite = street.post(rng, tall, weather.light, head)
        items.append(
            standing(weather, sprite.flipped() if sign > 0 else sprite, x, z, contact=0.12)
        )
    return items
