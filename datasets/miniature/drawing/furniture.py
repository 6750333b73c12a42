"""Furniture and appliances of the COCO part."""

import numpy as np

from miniature.drawing import street
from miniature.drawing.canvas import Pen, jitter, pick
from miniature.drawing.things import VIVID, WOOD

__all__ = ["bench", "box_thing", "chair", "couch", "table"]


def chair(rng, light):
    pen, wood = Pen(0.6, 1.05), pick(rng, WOOD + VIVID, 12)
    for x in (-0.22, 0.22, -0.14, 0.16):
        pen.line([(x, 0.45), (x * 1.08, 0.02)], 0.05, wood * 0.8)
    pen.poly([(-0.25, 0.42), (0.25, 0.42), (0.2, 0.53), (-0.2, 0.53)], wood)
    for x in (-0.2, 0.2):
        pen.line([(x, 0.5), (x * 1.05, 1.0)], 0.05, wood * 0.9)
    for y in (0.66, 0.8, 0.95):
        pen.line([(-0.2, y), (0.2, y)], 0.07, wood * 1.05)
    return pen.sprite(rng, light, rough=0.08, bulge=0.5)


def couch(rng, light):
    pen, cloth = Pen(2.1, 0.95), pick(rng, VIVID + street.CLOTH, 12)
    pen.box(-0.9, 0.3, 0.9, 0.92, cloth * 0.85)
    for x in (-0.45, 0.45):
        pen.box(x - 0.43, 0.32, x + 0.43, 0.52, cloth * 1.08)
        pen.box(x - 0.42, 0.5, x + 0.42, 0.84, cloth * 0.96)
    pen.box(-0.95, 0.08, 0.95, 0.33, cloth * 0.8)
    for side in (-1, 1):
        pen.box(side * 0.92 - 0.12, 0.08, side * 0.92 + 0.12, 0.62, cloth)
        pen.box(side * 0.88 - 0.05, 0, side * 0.88 + 0.05, 0.09, (60, 44, 34))
    return pen.sprite(rng, light, rough=0.1, bulge=0.4)


def bench(rng, light):
    pen, wood = Pen(1.7, 0.9), pick(rng, WOOD, 12)
    for x in (-0.65, 0.65):
        pen.line([(x, 0), (x, 0.85)], 0.08, (60, 62, 64))
        pen.line([(x, 0.42), (x + 0.12, 0)], 0.07, (50, 52, 54))
    for y in (0.42, 0.5, 0.64, 0.78):
        pen.line([(-0.8, y), (0.8, y)], 0.085, jitter(rng, wood, 8))
    return pen.sprite(rng, light, rough=0.1, bulge=0.3)


def table(rng, light):
    pen, wood = Pen(1.6, 0.8), pick(rng, WOOD, 12)
    for x in (-0.66, 0.66, -0.5, 0.5):
        pen.line([(x, 0.72), (x, 0.04)], 0.07, wood * 0.7)
    pen.poly([(-0.78, 0.66), (0.78, 0.66), (0.6, 0.79), (-0.6, 0.79)], wood)
    pen.box(-0.76, 0.6, 0.76, 0.67, wood * 0.75)
    return pen.sprite(rng, light, rough=0.1, bulge=0.2)


def box_thing(rng, light, kind: str):
    w, h = {
        "refrigerator": (0.75, 1.7),
        "tv": (1.2, 0.85),
        "laptop": (0.8, 0.55),
        "book": (0.4, 0.55),
        "microwave": (0.9, 0.5),
    }[kind]
    w, h = np.array((w, h)) * rng.uniform(0.9, 1.12, 2)
    pen, color = (
        Pen(w, h),
        pick(
            rng,
            {"refrigerator": [(216, 216, 214), (150, 152, 154)], "book": VIVID}.get(
                kind, [(40, 42, 46), (170, 172, 176)]
            ),
            10,
        ),
    )
    pen.box(-w / 2, 0.04, w / 2, h, color)
    if kind == "refrigerator":
        pen.line([(-w / 2, h * 0.64), (w / 2, h * 0.64)], 0.03, color * 0.6)
        for y in (0.45, 0.75):
            pen.line([(-w * 0.38, h * y), (-w * 0.38, h * (y + 0.12))], 0.04, color * 0.5)
    elif kind == "book":
        pen.box(-w * 0.3, h * 0.6, w * 0.3, h * 0.8, pick(rng, VIVID, 8))
        pen.box(-w / 2, 0.04, -w * 0.42, h, color * 0.6)
    else:
        pen.box(
            -w * 0.45,
            h * 0.3 if kind == "laptop" else 0.12,
            w * 0.45,
            h - 0.06,
            pick(rng, VIVID + street.GLASS, 14),
        )
        pen.box(-w * 0.3, 0, w * 0.3, 0.06, color * 0.6)
    return pen.sprite(rng, light, rough=0.05, bulge=0.15)
