"""Objects of the COCO part, by category; here also those that roads know as well.

`OBJECTS` maps a COCO category id to (name, supercategory, draw); `draw(rng, light)` gives a
`Sprite` whose size in metres is only a proportion here.
"""

from functools import partial

import numpy as np

from miniature.drawing import animals, furniture, street, things, vehicles
from miniature.drawing.canvas import Pen, Sprite, jitter, pick

__all__ = ["OBJECTS"]


def _hydrant(rng, light):
    pen, color = Pen(0.5, 0.8), pick(rng, [(190, 40, 34), (220, 180, 40), (60, 100, 170)], 10)
    pen.box(-0.16, 0, 0.16, 0.08, color * 0.8)
    pen.box(-0.11, 0.05, 0.11, 0.6, color)
    pen.box(-0.22, 0.38, 0.22, 0.5, color * 0.85)
    pen.ellipse(0, 0.6, 0.14, 0.14, color * 1.05)
    return pen.sprite(rng, light, rough=0.07, bulge=0.9)


def _plant(rng, light):
    pen, leaf = Pen(0.9, 1.1), pick(rng, street.LEAF, 12)
    for _ in range(26):
        a = rng.uniform(0.15, np.pi - 0.15)
        r = rng.uniform(0.2, 0.62)
        pen.line(
            [(0, 0.4), (r * np.cos(a) * 0.6, 0.4 + r * np.sin(a))], 0.08, jitter(rng, leaf, 12)
        )
    pen.poly(
        [(-0.17, 0), (-0.24, 0.42), (0.24, 0.42), (0.17, 0)],
        pick(rng, [(170, 96, 62), (210, 204, 196), (70, 80, 96)], 10),
    )
    return pen.sprite(rng, light, rough=0.08, bulge=0.6)


def _stop_sign(rng, light):
    pen = Pen(0.9, 2.0)
    pen.line([(0, 0), (0, 1.3)], 0.08, (130, 130, 130))
    t = np.deg2rad(22.5 + 45 * np.arange(8))
    for r, color in ((0.42, (232, 230, 226)), (0.38, jitter(rng, (184, 28, 32), 8))):
        pen.poly(np.stack([r * np.cos(t), 1.55 + r * np.sin(t)], 1), color)
    pen.line([(-0.22, 1.55), (0.22, 1.55)], 0.13, (236, 234, 230))
    return pen.sprite(rng, light, rough=0.04, bulge=0.1)


def _signal(rng, light):
    return _as_one(street.post(rng, 3.0, light, "light"))


def _vehicle(rng, light, kind: str):
    paint = pick(rng, street.PAINT, 14)
    if kind in ("car", "truck"):
        draw = {"car": vehicles.car_side, "truck": vehicles.truck_side}[kind]
        return _as_one(draw(rng, light, paint))
    length, tall = (8.0, 3.0) if kind == "bus" else (11.0, 3.4)
    pen = Pen(length, tall)
    pen.box(-length / 2, 0.4, length / 2, tall - 0.02, paint)
    pen.box(-length / 2, 1.5, length / 2, 2.5, pick(rng, street.GLASS, 10))
    for x in np.arange(-length / 2 + 0.1, length / 2, 1.25):
        pen.box(x, 1.45, x + 0.14, 2.55, paint * 0.9)
    for x in np.linspace(-0.36, 0.36, 2 if kind == "bus" else 4) * length:
        pen.wheel(x, 0.45, 0.45)
    return pen.sprite(rng, light, rough=0.04, bulge=0.3)


def _motorcycle(rng, light):
    pen, paint = Pen(2.1, 1.2), pick(rng, street.PAINT, 14)
    pen.wheel(-0.68, 0.32, 0.32)
    pen.wheel(0.68, 0.32, 0.32)
    pen.poly(
        [(-0.7, 0.75), (-0.1, 0.8), (0.4, 0.98), (0.45, 0.5), (0.1, 0.28), (-0.4, 0.35)], paint
    )
    pen.line([(0.68, 0.32), (0.42, 1.0), (0.25, 1.08)], 0.09, (120, 122, 124))
    pen.line([(-0.75, 0.8), (-0.1, 0.84)], 0.14, (30, 30, 32))
    pen.ellipse(0.0, 0.45, 0.22, 0.16, (96, 98, 100))
    return pen.sprite(rng, light, rough=0.05, bulge=0.6)


def _as_one(sprite: Sprite) -> Sprite:
    return Sprite(sprite.color, (sprite.ids > 0).astype(np.uint8), sprite.width, sprite.height)


def _person(rng, light):
    return _as_one(vehicles.person(rng, light))


def _bicycle(rng, light):
    return _as_one(vehicles.bicycle(rng, light, ridden=False))


def _of(draw, kind):
    return partial(draw, kind=kind)


OBJECTS = {
    1: ("person", "person", _person),
    2: ("bicycle", "vehicle", _bicycle),
    3: ("car", "vehicle", _of(_vehicle, "car")),
    4: ("motorcycle", "vehicle", _motorcycle),
    6: ("bus", "vehicle", _of(_vehicle, "bus")),
    7: ("train", "vehicle", _of(_vehicle, "train")),
    8: ("truck", "vehicle", _of(_vehicle, "truck")),
    10: ("traffic light", "outdoor", _signal),
    11: ("fire hydrant", "outdoor", _hydrant),
    13: ("stop sign", "outdoor", _stop_sign),
    15: ("bench", "outdoor", furniture.bench),
    16: ("bird", "animal", animals.bird),
    17: ("cat", "animal", _of(animals.quadruped, "cat")),
    18: ("dog", "animal", _of(animals.quadruped, "dog")),
    19: ("horse", "animal", _of(animals.quadruped, "horse")),
    20: ("sheep", "animal", _of(animals.quadruped, "sheep")),
    21: ("cow", "animal", _of(animals.quadruped, "cow")),
    22: ("elephant", "animal", _of(animals.quadruped, "elephant")),
    23: ("bear", "animal", _of(animals.quadruped, "bear")),
    24: ("zebra", "animal", _of(animals.quadruped, "zebra")),
    25: ("giraffe", "animal", _of(animals.quadruped, "giraffe")),
    27: ("backpack", "accessory", _of(things.luggage, "backpack")),
    28: ("umbrella", "accessory", things.umbrella),
    31: ("handbag", "accessory", _of(things.luggage, "handbag")),
    33: ("suitcase", "accessory", _of(things.luggage, "suitcase")),
    34: ("frisbee", "sports", _of(things.round_thing, "frisbee")),
    37: ("sports ball", "sports", _of(things.round_thing, "sports ball")),
    38: ("kite", "sports", things.kite),
    41: ("skateboard", "sports", _of(things.board, "skateboard")),
    42: ("surfboard", "sports", _of(things.board, "surfboard")),
    44: ("bottle", "kitchen", _of(things.vessel, "bottle")),
    46: ("wine glass", "kitchen", _of(things.vessel, "wine glass")),
    47: ("cup", "kitchen", _of(things.vessel, "cup")),
    52: ("banana", "food", things.banana),
    53: ("apple", "food", _of(things.round_thing, "apple")),
    55: ("orange", "food", _of(things.round_thing, "orange")),
    59: ("pizza", "food", _of(things.round_thing, "pizza")),
    60: ("donut", "food", _of(things.round_thing, "donut")),
    62: ("chair", "furniture", furniture.chair),
    63: ("couch", "furniture", furniture.couch),
    64: ("potted plant", "furniture", _plant),
    67: ("dining table", "furniture", furniture.table),
    72: ("tv", "electronic", _of(furniture.box_thing, "tv")),
    73: ("laptop", "electronic", _of(furniture.box_thing, "laptop")),
    78: ("microwave", "appliance", _of(furniture.box_thing, "microwave")),
    82: ("refrigerator", "appliance", _of(furniture.box_thing, "refrigerator")),
    84: ("book", "indoor", _of(furniture.box_thing, "book")),
    85: ("clock", "indoor", _of(things.round_thing, "clock")),
    86: ("vase", "indoor", _of(things.vessel, "vase")),
    88: ("teddy bear", "indoor", animals.teddy),
}
