"""People and vehicles of the streets; each function draws one, in Cityscapes label ids."""

import numpy as np

from miniature.drawing.canvas import Pen, Sprite, jitter, pick
from miniature.drawing.street import CLOTH, GLASS, IDS, PAINT

__all__ = ["bicycle", "car_end", "car_side", "person", "truck_end", "truck_side"]

SKIN = [(226, 184, 156), (190, 140, 108), (132, 92, 68), (92, 62, 48)]


def person(rng, light: float) -> Sprite:
    """Somebody standing or walking, 1.5 to 1.95 m tall, sometimes with a bag or a coat."""
    height = rng.uniform(1.5, 1.95)
    pen, hip, shoulder = Pen(1.1, height, IDS["person"]), 0.5 * height, 0.82 * height
    stride, cloth, trousers = rng.uniform(0, 0.3), pick(rng, CLOTH, 14), pick(rng, CLOTH[:5], 12)
    skin, shoe = pick(rng, SKIN, 8), pick(rng, CLOTH, 6) * 0.6
    for side in (-1, 1):
        foot = side * (0.07 + stride * 0.7)
        leg = [(side * 0.08, hip), (0.6 * foot + 0.04, hip * 0.5), (foot, 0.09)]
        pen.line(leg, 0.16, trousers * (1 + 0.1 * side))
        pen.line([(foot - 0.04, 0.04), (foot + 0.08, 0.04)], 0.09, shoe)
    coat = hip * rng.choice([0.62, 0.95, 1.0])
    pen.poly([(-0.21, shoulder), (0.21, shoulder), (0.23, coat), (-0.23, coat)], cloth)
    for side in (-1, 1):
        swing = side * rng.uniform(0.0, 0.22)
        hand = (side * 0.26 + swing, hip * 0.96)
        elbow = (side * 0.3 + swing * 0.3, 0.66 * height)
        pen.line([(side * 0.22, shoulder - 0.04), elbow, hand], 0.11, cloth * 0.88)
        pen.ellipse(*hand, 0.05, 0.06, skin)
    pen.line([(0, shoulder), (0, shoulder + 0.08)], 0.12, skin)
    pen.ellipse(0, height - 0.14, 0.11, 0.14, skin)
    hair = [(-0.12, -0.13), (-0.1, 0), (0.1, 0), (0.12, -0.11), (0, -0.07)]
    pen.poly(np.array(hair) + (0, height), pick(rng, CLOTH, 10) * 0.7)
    if rng.random() < 0.35:
        x = rng.choice([-1, 1]) * 0.3
        pen.box(x - 0.13, hip * 0.62, x + 0.13, hip * 0.98, pick(rng, CLOTH, 16))
    return pen.sprite(rng, light, rough=0.07, bulge=0.6)


def bicycle(rng, light: float, ridden: bool) -> Sprite:
    """A bicycle from the side, alone or with its rider; gaps of wheels and frame belong to it."""
    pen = Pen(2.0, 1.85 if ridden else 1.15, IDS["bicycle"])
    paint, r = pick(rng, PAINT, 14), 0.36
    for x in (-0.55, 0.55):
        pen.ellipse(x, r, r, r, jitter(rng, (96, 96, 94), 14))
        pen.arc(x, r, r - 0.03, r - 0.03, 0, 360, 0.08, (26, 26, 28))
        pen.line([(x - r * 0.8, r), (x + r * 0.8, r)], 0.02, (170, 170, 170))
        pen.line([(x, r * 0.2), (x, r * 1.8)], 0.02, (170, 170, 170))
    pen.line([(-0.55, r), (-0.2, 0.85), (0.38, 0.88), (0.0, 0.34), (-0.2, 0.85)], 0.09, paint)
    pen.line([(-0.55, r), (0.0, 0.34)], 0.08, paint)
    pen.line([(0.55, r), (0.36, 1.0), (0.2, 1.05)], 0.08, paint)
    pen.line([(-0.34, 0.93), (-0.1, 0.93)], 0.1, (34, 32, 30))
    if ridden:
        _rider(rng, pen)
    sprite = pen.sprite(rng, light, rough=0.05, bulge=0.4)
    return sprite.flipped() if rng.random() < 0.5 else sprite


def _rider(rng, pen):
    ident, cloth, trousers = IDS["rider"], pick(rng, CLOTH, 14), pick(rng, CLOTH[:5], 10)
    for knee, foot in (((0.14, 0.62), (0.06, 0.26)), ((0.2, 0.78), (-0.04, 0.42))):
        pen.line([(-0.2, 0.98), knee, foot], 0.17, trousers, ident)
    pen.poly([(-0.36, 0.92), (-0.06, 0.92), (0.16, 1.5), (-0.14, 1.54)], cloth, ident)
    pen.line([(0.04, 1.44), (0.2, 1.18), (0.3, 1.06)], 0.12, cloth * 0.85, ident)
    pen.ellipse(0.1, 1.68, 0.12, 0.14, pick(rng, SKIN, 8), ident=ident)
    helmet = [(-0.05, 1.7), (-0.03, 1.84), (0.18, 1.85), (0.25, 1.72)]
    pen.poly(helmet, pick(rng, PAINT, 10), ident)


def car_end(rng, light: float, paint, front: bool) -> Sprite:
    """A car from behind or from the front, 1.8 x 1.5 m, in the given paint."""
    pen = Pen(1.9, 1.55, IDS["car"])
    glass, dark = pick(rng, GLASS, 10), np.array((30, 30, 32))
    for side in (-1, 1):
        pen.box(side * 0.68 - 0.14, 0, side * 0.68 + 0.14, 0.5, (24, 24, 26))
    pen.poly([(-0.66, 0.9), (-0.52, 1.5), (0.52, 1.5), (0.66, 0.9)], paint * 0.94)
    pen.poly([(-0.58, 0.94), (-0.47, 1.42), (0.47, 1.42), (0.58, 0.94)], glass)
    body = [(-0.88, 0.3), (-0.9, 0.8), (-0.74, 0.97), (0.74, 0.97), (0.9, 0.8), (0.88, 0.3)]
    pen.poly(body, paint)
    pen.box(-0.86, 0.22, 0.86, 0.44, dark if rng.random() < 0.5 else paint * 0.75)
    lamp = jitter(rng, (240, 236, 214) if front else (176, 26, 24), 8)
    for side in (-1, 1):
        pen.box(side * 0.72 - 0.15, 0.66, side * 0.72 + 0.13, 0.82, lamp)
        pen.ellipse(side * 0.94, 1.0, 0.08, 0.07, paint * 0.8)
    if front:
        pen.box(-0.45, 0.5, 0.45, 0.7, dark)
    pen.box(-0.26, 0.46, 0.26, 0.58, (226, 224, 210))
    return pen.sprite(rng, light, rough=0.03, bulge=0.6)


def car_side(rng, light: float, paint) -> Sprite:
    """The same from the side, 4.3 x 1.5 m, nose to the right."""
    pen = Pen(4.3, 1.55, IDS["car"])
    glass, nose = pick(rng, GLASS, 10), rng.uniform(0.5, 1.15)
    body = [(-2.15, 0.3), (-2.15, 0.9), (-2.0, 1.0), (1.8, 0.95), (2.15, 0.84), (2.15, 0.3)]
    pen.poly(body, paint)
    roof = [(-2.1, 0.95), (-1.75, 1.48), (0.35, 1.5), (2.0 - nose, 0.94)]
    pen.poly(roof, paint * 0.95)
    pen.poly([(-1.9, 0.98), (-1.62, 1.4), (-0.5, 1.42), (-0.5, 0.98)], glass)
    pen.poly([(-0.4, 0.98), (-0.4, 1.42), (0.28, 1.42), (1.75 - nose, 0.98)], glass)
    pen.box(-2.1, 0.2, 2.1, 0.34, paint * 0.5)
    for x in (-0.45, 0.85):
        pen.line([(x, 0.36), (x, 0.94)], 0.025, paint * 0.7)
    pen.box(1.9, 0.62, 2.1, 0.74, (238, 232, 208))
    pen.box(-2.1, 0.66, -1.95, 0.84, (170, 26, 24))
    for x in (-1.3, 1.3):
        pen.wheel(x, 0.33, 0.33)
    return pen.sprite(rng, light, rough=0.03, bulge=0.5)


def truck_end(rng, light: float, paint, front: bool) -> Sprite:
    """A lorry from behind (doors) or from the front (cab), 2.5 x 3.3 m."""
    pen = Pen(2.5, 3.3, IDS["truck"])
    for side in (-1, 1):
        pen.box(side * 0.9 - 0.26, 0, side * 0.9 + 0.26, 0.9, (24, 24, 26))
    pen.box(-1.2, 0.75, 1.2, 3.28, paint)
    pen.box(-1.15, 0.45, 1.15, 0.75, (44, 44, 46))
    if front:
        cab = pick(rng, PAINT, 12)
        pen.box(-1.15, 0.55, 1.15, 2.5, cab)
        pen.poly([(-1.0, 1.5), (-0.95, 2.3), (0.95, 2.3), (1.0, 1.5)], pick(rng, GLASS, 10))
        pen.box(-0.7, 0.8, 0.7, 1.3, cab * 0.55)
    else:
        pen.line([(0, 0.85), (0, 3.2)], 0.05, paint * 0.6)
        for x in (-0.55, 0.55):
            pen.line([(x, 0.9), (x, 3.15)], 0.05, paint * 0.75)
    for side in (-1, 1):
        lamp = (238, 230, 200) if front else (178, 28, 24)
        pen.box(side * 0.98 - 0.16, 0.62, side * 0.98 + 0.16, 0.78, lamp)
    return pen.sprite(rng, light, rough=0.04, bulge=0.3)


def truck_side(rng, light: float, paint) -> Sprite:
    """The same from the side, 7 x 3.3 m, cab to the right."""
    pen = Pen(7.0, 3.3, IDS["truck"])
    cab, x = pick(rng, PAINT, 12), 1.9
    pen.box(-3.5, 0.75, x - 0.05, 3.28, paint)
    pen.box(-3.5, 0.45, 3.3, 0.85, (48, 48, 50))
    pen.poly([(x, 0.6), (x, 2.6), (3.4, 2.6), (3.5, 1.6), (3.5, 0.5)], cab)
    pen.poly([(2.2, 1.5), (2.2, 2.35), (3.0, 2.35), (3.25, 1.5)], pick(rng, GLASS, 10))
    for k in np.linspace(-3.3, x - 0.3, 7):
        pen.line([(k, 0.9), (k, 3.2)], 0.04, paint * 0.82)
    if rng.random() < 0.6:
        pen.box(-2.6, 1.6, 0.9, 2.5, pick(rng, PAINT, 14))
    for k in (-2.6, -1.6, 2.6):
        pen.wheel(k, 0.48, 0.48)
    return pen.sprite(rng, light, rough=0.04, bulge=0.3)
