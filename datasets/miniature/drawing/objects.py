"""Objects to cut out of the COCO images.

`OBJECTS` maps a COCO category id to (name, supercategory, draw); `draw(rng, light)` returns a
`Sprite` whose size in metres only matters as a proportion.
"""

from functools import partial

import numpy as np

from miniature.drawing import vehicles
from miniature.drawing.canvas import Pen, Sprite, jitter, pick
from miniature.drawing.street import CLOTH, GLASS, LEAF, PAINT

__all__ = ["OBJECTS"]

VIVID = [
    (206, 60, 52), (46, 104, 190), (240, 190, 60), (70, 150, 84), (150, 70, 160), (236, 128, 48),
    (230, 226, 216), (60, 60, 66), (120, 190, 200), (222, 140, 160), (130, 92, 62),
]  # fmt: skip
_WOOD = [(150, 108, 68), (110, 76, 50), (186, 146, 100), (84, 60, 44)]

# Fur; length and depth of the body, length and width of a leg, length and angle (degrees) of the
# neck, size of head, ear and tail.
_BREEDS = {
    "dog": ([(160, 116, 70), (52, 44, 40), (222, 206, 176), (120, 92, 70)],
            (0.85, 0.36, 0.4, 0.1, 0.24, 50, 0.19, 0.12, 0.35)),
    "horse": ([(120, 74, 46), (72, 50, 40), (206, 196, 180), (150, 100, 60)],
              (1.5, 0.62, 0.85, 0.15, 0.75, 55, 0.26, 0.1, 0.6)),
    "zebra": ([(232, 228, 220)], (1.35, 0.6, 0.75, 0.13, 0.55, 52, 0.25, 0.11, 0.45)),
}  # fmt: skip


def _quadruped(rng, light, kind: str) -> Sprite:
    furs, build = _BREEDS[kind]
    length, depth, leg, thick, neck, angle, head, ear, tail = build * rng.uniform(0.92, 1.1, 9)
    middle, fur, dark = leg + depth / 2, pick(rng, furs, 12), (34, 32, 34)
    slope = np.array((np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))))
    tall = middle + 0.3 * depth + neck * slope[1] + head * 1.8
    pen = Pen(length + 2 * (neck * slope[0] + 2.2 * head) + tail * 0.6, tall)
    x0, x1 = -length / 2, length / 2
    for x, near in ((x0 + thick, 0), (x1 - thick, 0), (x0 + thick * 1.6, 1), (x1 - thick * 1.7, 1)):
        foot, tint = x + rng.normal(0, 0.12) * leg, fur * (0.72 + 0.2 * near)
        knee = ((x + foot) / 2 + 0.03, leg * 0.55)
        pen.line([(x, middle), knee, (foot, thick / 2)], thick, tint)
        pen.line([(foot, thick * 0.4), (foot + thick * 0.3, thick * 0.4)], thick * 0.8, fur * 0.45)
    end = (x0 - tail * 0.4, middle - tail * rng.uniform(-0.5, 0.9))
    pen.line([(x0, middle), (x0 - tail * 0.3, middle), end], 0.25 * thick + 0.04, fur * 0.8)
    pen.ellipse(0, middle, length / 2 + thick * 0.3, depth / 2, fur)
    base = np.array((x1 - 0.15 * length, middle + 0.1 * depth))
    tip = base + (neck + 0.2 * length) * slope
    pen.line([base, tip], max(depth * 0.34, head * 0.6), fur)
    body = pen.ids.copy()
    for x in np.arange(x0, x1 + 0.4, 0.13) if kind == "zebra" else ():
        pen.line([(x, middle - depth), (x + rng.normal(0.06, 0.04), middle + depth)], 0.055, dark)
    for _ in range(3 if kind == "dog" else 0):
        x, y = rng.uniform(-0.5, 0.5, 2) * (length, depth) + (0, middle)
        size = 0.22 * depth + 0.03
        pen.blob(rng, x, y, size * rng.uniform(0.7, 1.4), size, fur * rng.choice([0.35, 0.55]))
    pen.ids[:] = body  # the coat ends where the body does
    x, y = tip
    pen.ellipse(x + head * 0.5, y - head * 0.1, head * 0.95, head * 0.58, fur * 1.05, angle=-25)
    pen.ellipse(x + head * 1.2, y - head * 0.42, head * 0.3, head * 0.3, fur * 0.6)
    for side in (-0.1, 0.3):
        outline = [(-ear / 2, head * 0.3), (ear / 2, head * 0.3), (0, head * 0.4 + ear * 1.3)]
        pen.poly(np.array(outline) + (x + side * head, y), fur * 0.8)
    pen.ellipse(x + head * 0.55, y + head * 0.1, head * 0.09, head * 0.09, (20, 18, 18))
    return pen.sprite(rng, light, rough=0.1, bulge=0.9)


def _teddy(rng, light):
    pen = Pen(0.6, 0.75)
    fur = pick(rng, [(170, 120, 70), (206, 170, 120), (110, 80, 60), (220, 180, 180)], 10)
    for side in (-1, 1):
        pen.ellipse(side * 0.15, 0.1, 0.11, 0.1, fur * 0.95)
        pen.ellipse(side * 0.22, 0.33, 0.07, 0.14, fur * 0.9, angle=-side * 25)
        pen.ellipse(side * 0.13, 0.66, 0.07, 0.07, fur * 0.85)
    pen.ellipse(0, 0.26, 0.18, 0.22, fur)
    pen.ellipse(0, 0.55, 0.17, 0.15, fur * 1.05)
    pen.ellipse(0, 0.51, 0.07, 0.055, fur * 1.3)
    for x, y in ((-0.06, 0.58), (0.06, 0.58), (0, 0.53)):
        pen.ellipse(x, y, 0.018, 0.018, (20, 18, 18))
    return pen.sprite(rng, light, rough=0.16, bulge=0.9)


def _luggage(rng, light, kind: str):
    wheeled = kind == "suitcase"
    w, h = np.array((0.5, 0.72) if wheeled else (0.42, 0.5)) * rng.uniform(0.9, 1.15, 2)
    pen, color = Pen(w + 0.1, h + 0.26), pick(rng, VIVID + CLOTH, 12)
    if wheeled:
        handle = [(-0.12, h), (-0.12, h + 0.22), (0.12, h + 0.22), (0.12, h)]
        pen.line(handle, 0.035, (110, 112, 114))
    else:
        pen.arc(0, h - 0.03, w * 0.28, 0.19, 0, 180, 0.05, color * 0.7)
    pen.poly([(-w / 2, 0.05), (-w * 0.42, h), (w * 0.42, h), (w / 2, 0.05)], color)
    if wheeled:
        for x in np.linspace(-0.36, 0.36, 5) * w:
            pen.line([(x, 0.08), (x, h - 0.05)], 0.025, color * 0.75)
        for x in (-0.18, 0.18):
            pen.ellipse(x, 0.035, 0.035, 0.035, (30, 30, 30))
    else:
        pen.box(-w * 0.32, 0.1, w * 0.32, 0.48 * h, color * 0.8)
        pen.line([(-w * 0.32, 0.5 * h), (w * 0.32, 0.5 * h)], 0.025, (196, 180, 120))
    return pen.sprite(rng, light, rough=0.08, bulge=0.6)


def _umbrella(rng, light):
    pen, colors = Pen(1.2, 1.15), [pick(rng, VIVID, 12), pick(rng, VIVID, 12)]
    pen.line([(0, 0.12), (0, 0.9)], 0.035, (70, 60, 54))
    pen.arc(0.07, 0.12, 0.07, 0.09, 180, 360, 0.035, (110, 76, 50))
    edges, t = np.linspace(-0.58, 0.58, 7), np.linspace(0, 1, 6)
    crown = 0.6 + 0.42 * np.sqrt(1 - (0.75 * edges / 0.58) ** 2)
    for k in range(6):
        a, b = edges[k : k + 2]
        rim = np.stack([a + (b - a) * t, 0.6 + 0.07 * np.sin(np.pi * t)], 1)
        top = [(0.75 * b, crown[k + 1]), (0, 1.08), (0.75 * a, crown[k])]
        pen.poly(np.concatenate([rim, top]), colors[k % 2])
    return pen.sprite(rng, light, rough=0.05, bulge=0.6)


def _ball(rng, light):
    pen = Pen(0.6, 0.6)
    color = pick(rng, [(236, 232, 226), (220, 120, 50), (206, 220, 70), (60, 110, 190)], 12)
    pen.ellipse(0, 0.28, 0.27, 0.27, color)
    for a in rng.uniform(0, 6.28) + np.arange(5) * 1.256:
        x, y = 0.17 * np.cos(a), 0.28 + 0.17 * np.sin(a)
        pen.blob(rng, x, y, 0.06, 0.06, color * 0.3, 0.05, 6)
    return pen.sprite(rng, light, rough=0.07, bulge=1.0)


def _bottle(rng, light):
    half = np.array([(0.16, 0), (0.17, 0.55), (0.06, 0.78), (0.06, 1.0)])
    half = half * (rng.uniform(0.85, 1.15), 1)
    pen, color, label = Pen(0.5, 1.06), pick(rng, VIVID + GLASS, 14), rng.uniform(0.1, 0.3)
    pen.poly(np.concatenate([half, half[::-1] * (-1, 1)]), color)
    pen.box(-0.16, label, 0.16, label + 0.22, pick(rng, VIVID, 10))
    pen.box(-0.065, 0.93, 0.065, 1.03, pick(rng, VIVID, 10))
    return pen.sprite(rng, light, rough=0.04, bulge=1.0)


def _chair(rng, light):
    pen, wood = Pen(0.6, 1.05), pick(rng, _WOOD + VIVID, 12)
    for x in (-0.22, 0.22, -0.14, 0.16):
        pen.line([(x, 0.45), (x * 1.08, 0.02)], 0.05, wood * 0.8)
    pen.poly([(-0.25, 0.42), (0.25, 0.42), (0.2, 0.53), (-0.2, 0.53)], wood)
    for x in (-0.2, 0.2):
        pen.line([(x, 0.5), (x * 1.05, 1.0)], 0.05, wood * 0.9)
    for y in (0.66, 0.8, 0.95):
        pen.line([(-0.2, y), (0.2, y)], 0.07, wood * 1.05)
    return pen.sprite(rng, light, rough=0.08, bulge=0.5)


def _couch(rng, light):
    pen, cloth = Pen(2.1, 0.95), pick(rng, VIVID + CLOTH, 12)
    pen.box(-0.9, 0.3, 0.9, 0.92, cloth * 0.85)
    for x in (-0.45, 0.45):
        pen.box(x - 0.43, 0.32, x + 0.43, 0.52, cloth * 1.08)
        pen.box(x - 0.42, 0.5, x + 0.42, 0.84, cloth * 0.96)
    pen.box(-0.95, 0.08, 0.95, 0.33, cloth * 0.8)
    for side in (-1, 1):
        pen.box(side * 0.92 - 0.12, 0.08, side * 0.92 + 0.12, 0.62, cloth)
        pen.box(side * 0.88 - 0.05, 0, side * 0.88 + 0.05, 0.09, (60, 44, 34))
    return pen.sprite(rng, light, rough=0.1, bulge=0.4)


def _plant(rng, light):
    pen, leaf = Pen(0.9, 1.1), pick(rng, LEAF, 12)
    for _ in range(26):
        a, r = rng.uniform(0.15, np.pi - 0.15), rng.uniform(0.2, 0.62)
        end = (r * np.cos(a) * 0.6, 0.4 + r * np.sin(a))
        pen.line([(0, 0.4), end], 0.08, jitter(rng, leaf, 12))
    pot = pick(rng, [(170, 96, 62), (210, 204, 196), (70, 80, 96)], 10)
    pen.poly([(-0.17, 0), (-0.24, 0.42), (0.24, 0.42), (0.17, 0)], pot)
    return pen.sprite(rng, light, rough=0.08, bulge=0.6)


def _screen(rng, light):
    w, h = np.array((1.2, 0.85)) * rng.uniform(0.9, 1.12, 2)
    pen, color = Pen(w, h), pick(rng, [(40, 42, 46), (170, 172, 176)], 10)
    pen.box(-w / 2, 0.1, w / 2, h, color)
    pen.box(-w * 0.45, 0.16, w * 0.45, h - 0.06, pick(rng, VIVID + GLASS, 14))
    pen.box(-w * 0.3, 0, w * 0.3, 0.06, color * 0.6)
    pen.box(-0.06, 0, 0.06, 0.12, color * 0.6)
    return pen.sprite(rng, light, rough=0.05, bulge=0.15)


# People and cars are known to the closed set, so that the filter of known categories has work.
OBJECTS = {
    1: ("person", "person", vehicles.person),
    3: ("car", "vehicle", lambda rng, light: vehicles.car_side(rng, light, pick(rng, PAINT, 14))),
    18: ("dog", "animal", partial(_quadruped, kind="dog")),
    19: ("horse", "animal", partial(_quadruped, kind="horse")),
    24: ("zebra", "animal", partial(_quadruped, kind="zebra")),
    27: ("backpack", "accessory", partial(_luggage, kind="backpack")),
    28: ("umbrella", "accessory", _umbrella),
    33: ("suitcase", "accessory", partial(_luggage, kind="suitcase")),
    37: ("sports ball", "sports", _ball),
    44: ("bottle", "kitchen", _bottle),
    62: ("chair", "furniture", _chair),
    63: ("couch", "furniture", _couch),
    64: ("potted plant", "furniture", _plant),
    72: ("tv", "electronic", _screen),
    88: ("teddy bear", "indoor", _teddy),
}
