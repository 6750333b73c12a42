"""What lines the road: houses, walls, fences, trees, posts."""

from miniature.drawing import street
from miniature.drawing.canvas import Sprite
from miniature.drawing.placing import along, plane, standing
from miniature.drawing.view import far

__all__ = ["roadside"]

# Odds of each kind. The nearest stretch fills most of the picture's side, and houses show behind
# anyway, so walls and fences are more frequent there.
_KINDS = ("house", "wall", "fence", "gap")
_NEAR_ODDS, _ODDS = (0.22, 0.35, 0.37, 0.06), (0.39, 0.23, 0.27, 0.11)
_HEADS, _HEAD_ODDS = ("lamp", "sign", "light", ""), (0.18, 0.4, 0.34, 0.08)


def roadside(rng, weather, road):
    """Return the painters of both sides of the road."""
    items = []
    for side, sign, curb in ((0, -1, road.left), (1, 1, road.right)):
        edge = curb + sign * road.pavement[side]
        line = edge + sign * (road.verge[side] + rng.uniform(0.2, 0.9))
        items += _frontage(rng, weather, sign, line)
        for _ in range(rng.integers(1, 4) if road.verge[side] else rng.integers(0, 2)):
            x, z = rng.uniform(min(edge, line), max(edge, line)), rng.uniform(6, 40)
            tall = rng.uniform(4, 7.5) if rng.random() < 0.6 else rng.uniform(0.7, 1.6)
            items.append(standing(weather, street.tree(rng, tall, weather.light), x, z))
        for _ in range(rng.integers(2, 4)):
            head = str(rng.choice(_HEADS, p=_HEAD_ODDS))
            tall = rng.uniform(4.5, 6) if head == "lamp" else rng.uniform(2.9, 3.8)
            sprite = street.post(rng, tall, weather.light, head)
            x, z = curb + sign * rng.uniform(0.4, 1.0), far(rng, 6.5, 22)
            sprite = sprite.flipped() if sign > 0 else sprite
            items.append(standing(weather, sprite, x, z, contact=0.12))
    return items


def _frontage(rng, weather, sign, line):
    """Houses, walls, fences and gaps along one side, from near to far."""
    items, z, odds = [], rng.uniform(2.2, 4.0), _NEAR_ODDS
    while z < 62:
        kind, end = str(rng.choice(_KINDS, p=odds)), z + rng.uniform(8, 16)
        if kind == "house":
            items += _house(rng, weather, sign, line, z, end)
        else:
            if kind != "gap":
                draw = street.wall if kind == "wall" else street.fence
                sprite = draw(rng, end - z, rng.uniform(1.7, 2.9), weather.light)
                items.append(along(weather, sprite, sign, line, z, end))
            items += _behind(rng, weather, sign, line, z, end)
        odds = _ODDS
        z = end + (rng.uniform(0, 2) if rng.random() < 0.3 else 0)
    return items


def _house(rng, weather, sign, line, near, end):
    front = street.facade(rng, end - near, rng.uniform(4.5, 13), weather.light)
    half = front.ids.shape[1] // 2
    side = Sprite(front.color[:, :half], front.ids[:, :half], 6.0, front.height)
    outer = line + sign * 9
    ends = (outer, line) if sign < 0 else (line, outer)
    return [
        along(weather, front, sign, line, near, end),
        plane(weather, side.lit(rng.uniform(0.7, 0.9)), ends[0], near, ends[1], near),
    ]


def _behind(rng, weather, sign, line, near, end):
    """Trees or a house that look over a wall or a fence."""
    if rng.random() < 0.2:
        return _house(rng, weather, sign, line + sign * rng.uniform(3, 6), near + 0.5, end)
    items = []
    for z in rng.uniform(near + 0.5, end, rng.integers(1, 4)):
        sprite = street.tree(rng, rng.uniform(3.5, 8), weather.light)
        items.append(standing(weather, sprite, line + sign * rng.uniform(2, 6), z))
    return items
