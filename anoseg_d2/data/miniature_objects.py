"""Objects of the miniature's COCO part: animals, furniture, vessels, fruit, things people carry.

`OBJECTS` maps a COCO category id to (name, supercategory, draw); `draw(rng, light)` gives a
`Sprite` whose size in metres is only a proportion here.
"""

from functools import partial

import numpy as np

from . import miniature_street as street
from .miniature_canvas import Pen, Sprite, jitter, pick

__all__ = ["OBJECTS"]

_VIVID = [
    (206, 60, 52), (46, 104, 190), (240, 190, 60), (70, 150, 84), (150, 70, 160), (236, 128, 48),
    (230, 226, 216), (60, 60, 66), (120, 190, 200), (222, 140, 160), (130, 92, 62),
]  # fmt: skip
_WOOD = [(150, 108, 68), (110, 76, 50), (186, 146, 100), (84, 60, 44)]
_FUR = {
    "cat": [(196, 130, 70), (60, 58, 58), (170, 164, 156), (226, 216, 200)],
    "dog": [(160, 116, 70), (52, 44, 40), (222, 206, 176), (120, 92, 70)],
    "horse": [(120, 74, 46), (72, 50, 40), (206, 196, 180), (150, 100, 60)],
    "sheep": [(226, 220, 204), (206, 198, 182), (90, 84, 78)],
    "cow": [(226, 220, 210), (150, 92, 60), (70, 60, 56)],
    "elephant": [(128, 124, 122), (150, 142, 134), (108, 102, 98)],
    "bear": [(94, 66, 46), (58, 48, 42), (150, 112, 74)],
    "zebra": [(232, 228, 220)],
    "giraffe": [(226, 190, 124), (214, 170, 100)],
}
# body length and depth, leg length and width, neck length and angle (degrees), head, ear, tail
_BUILD = {
    "cat": (0.75, 0.32, 0.3, 0.09, 0.12, 50, 0.17, 0.12, 0.5),
    "dog": (0.85, 0.36, 0.4, 0.1, 0.24, 50, 0.19, 0.12, 0.35),
    "horse": (1.5, 0.62, 0.85, 0.15, 0.75, 55, 0.26, 0.1, 0.6),
    "sheep": (1.1, 0.66, 0.4, 0.1, 0.22, 35, 0.2, 0.1, 0.08),
    "cow": (1.7, 0.78, 0.62, 0.16, 0.35, 25, 0.28, 0.14, 0.6),
    "elephant": (2.1, 1.3, 0.95, 0.36, 0.3, 20, 0.5, 0.5, 0.5),
    "bear": (1.5, 0.84, 0.5, 0.26, 0.25, 25, 0.32, 0.1, 0.06),
    "zebra": (1.35, 0.6, 0.75, 0.13, 0.55, 52, 0.25, 0.11, 0.45),
    "giraffe": (1.3, 0.7, 1.35, 0.13, 1.7, 66, 0.24, 0.1, 0.5),
}


def _quadruped(rng, light, kind: str) -> Sprite:
    length, depth, leg, thick, neck, angle, head, ear, tail = np.array(_BUILD[kind]) * rng.uniform(
        0.92, 1.1, 9
    )
    angle = np.deg2rad(angle)
    middle, fur = leg + depth / 2, pick(rng, _FUR[kind], 12)
    top = middle + 0.3 * depth + neck * np.sin(angle) + head * 1.8
    pen = Pen(
        length + 2 * (neck * np.cos(angle) + 2.2 * head) + tail * 0.6, max(top, leg + depth) + 0.05
    )
    x0, x1 = -length / 2, length / 2
    for x, near in ((x0 + thick, 0), (x1 - thick, 0), (x0 + thick * 1.6, 1), (x1 - thick * 1.7, 1)):
        foot = x + rng.normal(0, 0.12) * leg
        pen.line(
            [(x, middle), ((x + foot) / 2 + 0.03, leg * 0.55), (foot, thick / 2)],
            thick,
            fur * (0.72 + 0.2 * near),
        )
        pen.line([(foot, thick * 0.4), (foot + thick * 0.3, thick * 0.4)], thick * 0.8, fur * 0.45)
    pen.line(
        [
            (x0, middle + 0.15 * depth),
            (x0 - tail * 0.3, middle),
            (x0 - tail * 0.4, middle - tail * rng.uniform(-0.5, 0.9)),
        ],
        0.25 * thick + 0.04,
        fur * 0.8,
    )
    pen.ellipse(0, middle, length / 2 + thick * 0.3, depth / 2, fur)
    base, tip = (x1 - 0.15 * length, middle + 0.1 * depth), None
    tip = (
        base[0] + (neck + 0.2 * length) * np.cos(angle),
        base[1] + (neck + 0.2 * length) * np.sin(angle),
    )
    pen.line([base, tip], max(depth * 0.34, head * 0.6), fur)
    _coat(rng, pen, kind, fur, (length, depth, middle), (base, tip))
    _animal_head(rng, pen, kind, fur, tip, head, ear)
    sprite = pen.sprite(rng, light, rough=0.2 if kind in ("sheep", "bear") else 0.1, bulge=0.9)
    return sprite.flipped() if rng.random() < 0.5 else sprite


def _animal_head(rng, pen, kind, fur, tip, head, ear):
    x, y = tip
    pen.ellipse(x + head * 0.5, y - head * 0.1, head * 0.95, head * 0.58, fur * 1.05, angle=-25)
    pen.ellipse(x + head * 1.2, y - head * 0.42, head * 0.3, head * 0.3, fur * 0.6)
    for side in (-0.1, 0.3):
        if kind == "elephant":
            continue
        pen.poly(
            [
                (x + side * head - ear / 2, y + head * 0.3),
                (x + side * head + ear / 2, y + head * 0.3),
                (x + side * head, y + head * 0.4 + ear * 1.3),
            ],
            fur * 0.8,
        )
    if kind == "elephant":
        pen.ellipse(x - head * 0.2, y, ear * 0.6, ear * 0.85, fur * 0.8)
        pen.line(
            [(x + head, y - 0.1), (x + head * 1.5, y - head), (x + head * 1.4, 0.35 * y)],
            0.24,
            fur * 0.95,
        )
        pen.line([(x + head * 0.8, y - 0.35), (x + head * 1.7, y - 0.6)], 0.08, (236, 230, 210))
    pen.ellipse(x + head * 0.55, y + head * 0.1, head * 0.09, head * 0.09, (20, 18, 18))


def _coat(rng, pen, kind, fur, body, neck):
    length, depth, middle = body
    kept = pen.ids.copy()
    if kind == "zebra":
        for x in np.arange(-length / 2, length / 2 + 0.4, 0.13):
            pen.line(
                [(x, middle - depth), (x + rng.normal(0, 0.04) + 0.06, middle + depth)],
                0.055,
                (34, 32, 34),
            )
        for t in np.linspace(0, 1, 7):
            x, y = np.array(neck[0]) * (1 - t) + np.array(neck[1]) * t
            pen.line([(x - 0.25, y + 0.12), (x + 0.25, y - 0.12)], 0.05, (34, 32, 34))
    spots = {"giraffe": 60, "cow": 6, "dog": 2, "cat": 3}.get(kind, 0)
    for _ in range(spots):
        t, along = rng.random(), kind == "giraffe" and rng.random() < 0.5
        x, y = (
            np.array(neck[0]) * (1 - t) + np.array(neck[1]) * t
            if along
            else (rng.uniform(-0.5, 0.5) * length, middle + rng.uniform(-0.5, 0.5) * depth)
        )
        size = 0.08 if kind == "giraffe" else 0.22 * depth + 0.03
        pen.blob(
            rng,
            x,
            y,
            size * rng.uniform(0.7, 1.4),
            size,
            (128, 76, 40) if kind == "giraffe" else fur * rng.choice([0.35, 0.55]),
            corners=7,
        )
    if kind == "sheep":
        for _ in range(60):
            t = rng.uniform(0, 2 * np.pi)
            r = rng.uniform(0, 0.52) ** 0.7
            pen.ellipse(
                r * length * np.cos(t),
                middle + r * depth * np.sin(t),
                0.11,
                0.1,
                jitter(rng, fur, 10),
            )
        return
    pen.ids[:] = kept
    pen.color[kept == 0] = 0


def _bird(rng, light):
    pen, feather = Pen(0.7, 0.55), pick(rng, _VIVID + _FUR["dog"], 14)
    for x in (-0.03, 0.06):
        pen.line([(x, 0.25), (x + 0.02, 0.02), (x + 0.09, 0.02)], 0.025, (200, 140, 60))
    pen.poly(
        [(-0.1, 0.33), (-0.34, 0.22 + rng.uniform(0, 0.14)), (-0.3, 0.14), (0, 0.2)], feather * 0.7
    )
    pen.ellipse(0, 0.29, 0.2, 0.13, feather, angle=20)
    pen.ellipse(-0.04, 0.3, 0.16, 0.075, feather * 0.65, angle=8)
    pen.ellipse(0.18, 0.43, 0.085, 0.08, feather * 1.1)
    pen.poly([(0.25, 0.45), (0.34, 0.41), (0.25, 0.39)], (222, 160, 50))
    pen.ellipse(0.2, 0.45, 0.014, 0.014, (15, 15, 15))
    sprite = pen.sprite(rng, light, rough=0.1, bulge=0.8)
    return sprite.flipped() if rng.random() < 0.5 else sprite


def _teddy(rng, light):
    pen, fur = (
        Pen(0.6, 0.75),
        pick(rng, [(170, 120, 70), (206, 170, 120), (110, 80, 60), (220, 180, 180)], 10),
    )
    for side in (-1, 1):
        pen.ellipse(side * 0.15, 0.1, 0.11, 0.1, fur * 0.95)
        pen.ellipse(side * 0.22, 0.33, 0.07, 0.14, fur * 0.9, angle=-side * 25)
        pen.ellipse(side * 0.13, 0.66, 0.07, 0.07, fur * 0.85)
    pen.ellipse(0, 0.26, 0.18, 0.22, fur)
    pen.ellipse(0, 0.55, 0.17, 0.15, fur * 1.05)
    pen.ellipse(0, 0.51, 0.07, 0.055, fur * 1.3)
    for x in (-0.06, 0.06, 0.0):
        pen.ellipse(x, 0.58 if x else 0.53, 0.018, 0.018, (20, 18, 18))
    return pen.sprite(rng, light, rough=0.16, bulge=0.9)


def _chair(rng, light):
    pen, wood = Pen(0.6, 1.05), pick(rng, _WOOD + _VIVID, 12)
    for x in (-0.22, 0.22, -0.14, 0.16):
        pen.line([(x, 0.45), (x * 1.08, 0.02)], 0.05, wood * 0.8)
    pen.poly([(-0.25, 0.42), (0.25, 0.42), (0.2, 0.53), (-0.2, 0.53)], wood)
    for x in (-0.2, 0.2):
        pen.line([(x, 0.5), (x * 1.05, 1.0)], 0.05, wood * 0.9)
    for y in (0.66, 0.8, 0.95):
        pen.line([(-0.2, y), (0.2, y)], 0.07, wood * 1.05)
    return pen.sprite(rng, light, rough=0.08, bulge=0.5)


def _couch(rng, light):
    pen, cloth = Pen(2.1, 0.95), pick(rng, _VIVID + street.CLOTH, 12)
    pen.box(-0.9, 0.3, 0.9, 0.92, cloth * 0.85)
    for x in (-0.45, 0.45):
        pen.box(x - 0.43, 0.32, x + 0.43, 0.52, cloth * 1.08)
        pen.box(x - 0.42, 0.5, x + 0.42, 0.84, cloth * 0.96)
    pen.box(-0.95, 0.08, 0.95, 0.33, cloth * 0.8)
    for side in (-1, 1):
        pen.box(side * 0.92 - 0.12, 0.08, side * 0.92 + 0.12, 0.62, cloth)
        pen.box(side * 0.88 - 0.05, 0, side * 0.88 + 0.05, 0.09, (60, 44, 34))
    return pen.sprite(rng, light, rough=0.1, bulge=0.4)


def _bench(rng, light):
    pen, wood = Pen(1.7, 0.9), pick(rng, _WOOD, 12)
    for x in (-0.65, 0.65):
        pen.line([(x, 0), (x, 0.85)], 0.08, (60, 62, 64))
        pen.line([(x, 0.42), (x + 0.12, 0)], 0.07, (50, 52, 54))
    for y in (0.42, 0.5, 0.64, 0.78):
        pen.line([(-0.8, y), (0.8, y)], 0.085, jitter(rng, wood, 8))
    return pen.sprite(rng, light, rough=0.1, bulge=0.3)


def _table(rng, light):
    pen, wood = Pen(1.6, 0.8), pick(rng, _WOOD, 12)
    for x in (-0.66, 0.66, -0.5, 0.5):
        pen.line([(x, 0.72), (x, 0.04)], 0.07, wood * 0.7)
    pen.poly([(-0.78, 0.66), (0.78, 0.66), (0.6, 0.79), (-0.6, 0.79)], wood)
    pen.box(-0.76, 0.6, 0.76, 0.67, wood * 0.75)
    return pen.sprite(rng, light, rough=0.1, bulge=0.2)


def _vessel(rng, light, kind: str):
    outline = {
        "bottle": [(0.16, 0), (0.17, 0.55), (0.06, 0.78), (0.06, 1.0)],
        "vase": [(0.12, 0), (0.26, 0.35), (0.22, 0.6), (0.1, 0.78), (0.16, 0.95)],
        "cup": [(0.2, 0), (0.27, 0.62)],
        "wine glass": [
            (0.2, 0),
            (0.2, 0.03),
            (0.03, 0.06),
            (0.03, 0.45),
            (0.18, 0.6),
            (0.16, 0.98),
        ],
    }[kind]
    half = np.array(outline) * (rng.uniform(0.85, 1.15), 1)
    pen, color = Pen(0.85, float(half[-1, 1]) + 0.06), pick(rng, _VIVID + street.GLASS, 14)
    if kind == "cup":
        pen.arc(0.28, 0.32, 0.15, 0.18, -90, 90, 0.06, color * 0.85)
    pen.poly(np.concatenate([half, half[::-1] * (-1, 1)]), color)
    label = rng.uniform(0.1, 0.3)
    if kind == "bottle":
        pen.box(-0.16, label, 0.16, label + 0.22, pick(rng, _VIVID, 10))
        pen.box(-0.065, 0.93, 0.065, 1.03, pick(rng, _VIVID, 10))
    if kind == "vase" and rng.random() < 0.5:
        for y in (0.25, 0.4, 0.5):
            pen.line([(-0.2, y), (0.2, y)], 0.04, color * 0.6)
    return pen.sprite(rng, light, rough=0.04, bulge=1.0)


def _luggage(rng, light, kind: str):
    w, h = {"suitcase": (0.5, 0.72), "backpack": (0.42, 0.56), "handbag": (0.44, 0.3)}[kind]
    w, h = np.array((w, h)) * rng.uniform(0.9, 1.15, 2)
    pen, color = Pen(w + 0.1, h + 0.26), pick(rng, _VIVID + street.CLOTH, 12)
    if kind == "suitcase":
        for x in (-0.12, 0.12):
            pen.line([(x, h), (x, h + 0.22)], 0.025, (130, 132, 134))
        pen.line([(-0.13, h + 0.22), (0.13, h + 0.22)], 0.045, (50, 50, 52))
    else:
        pen.arc(0, h - 0.03, w * 0.28, 0.19, 0, 180, 0.05, color * 0.7)
    pen.poly([(-w / 2, 0.05), (-w * 0.42, h), (w * 0.42, h), (w / 2, 0.05)], color)
    if kind == "suitcase":
        for x in np.linspace(-0.36, 0.36, 5) * w:
            pen.line([(x, 0.08), (x, h - 0.05)], 0.025, color * 0.75)
        for x in (-0.18, 0.18):
            pen.ellipse(x, 0.035, 0.035, 0.035, (30, 30, 30))
    else:
        pen.box(-w * 0.32, 0.1, w * 0.32, 0.48 * h, color * 0.8)
        pen.line([(-w * 0.32, 0.5 * h), (w * 0.32, 0.5 * h)], 0.025, (196, 180, 120))
    return pen.sprite(rng, light, rough=0.08, bulge=0.6)


def _umbrella(rng, light):
    pen, color, other = Pen(1.2, 1.15), pick(rng, _VIVID, 12), pick(rng, _VIVID, 12)
    pen.line([(0, 0.12), (0, 0.9)], 0.035, (70, 60, 54))
    pen.arc(0.07, 0.12, 0.07, 0.09, 180, 360, 0.035, (110, 76, 50))
    edges = np.linspace(-0.58, 0.58, 7)
    for k, (a, b) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        t = np.linspace(0, 1, 6)
        rim = np.stack([a + (b - a) * t, 0.6 + 0.07 * np.sin(np.pi * t)], 1)
        top = [
            (0.75 * b, 0.6 + 0.42 * np.sqrt(max(0, 1 - (0.75 * b / 0.58) ** 2))),
            (0, 1.08),
            (0.75 * a, 0.6 + 0.42 * np.sqrt(max(0, 1 - (0.75 * a / 0.58) ** 2))),
        ]
        pen.poly(np.concatenate([rim, top]), color if k % 2 else other)
    return pen.sprite(rng, light, rough=0.05, bulge=0.6)


def _round(rng, light, kind: str):
    pen = Pen(0.6, 0.6)
    base = {
        "sports ball": [(236, 232, 226), (220, 120, 50), (206, 220, 70), (60, 110, 190)],
        "apple": [(190, 40, 36), (120, 160, 60), (216, 190, 80)],
        "orange": [(236, 140, 34)],
        "pizza": [(222, 170, 90)],
        "donut": [(190, 130, 80)],
        "frisbee": _VIVID,
        "clock": [(226, 222, 212)],
    }[kind]
    color = pick(rng, base, 12)
    pen.ellipse(0, 0.28, 0.27, 0.11 if kind == "frisbee" else 0.27, color)
    _face(rng, pen, kind, color)
    return pen.sprite(
        rng, light, rough=0.07, bulge=0.4 if kind in ("pizza", "clock", "frisbee") else 1.0
    )


def _face(rng, pen, kind, color):
    if kind == "sports ball":
        for a in rng.uniform(0, 6.28) + np.arange(5) * 1.256:
            pen.blob(
                rng, 0.17 * np.cos(a), 0.28 + 0.17 * np.sin(a), 0.06, 0.06, color * 0.3, 0.05, 6
            )
    elif kind == "apple":
        pen.line([(0, 0.5), (0.03, 0.59)], 0.03, (80, 60, 40))
    elif kind == "pizza":
        pen.ellipse(0, 0.28, 0.23, 0.23, (226, 190, 90))
        for _ in range(14):
            a, r = rng.uniform(0, 6.28), rng.uniform(0, 0.19)
            pen.ellipse(
                r * np.cos(a),
                0.28 + r * np.sin(a),
                0.035,
                0.035,
                pick(rng, [(170, 40, 30), (80, 120, 50), (236, 220, 190)], 8),
            )
    elif kind == "donut":
        pen.ellipse(0, 0.28, 0.23, 0.23, pick(rng, _VIVID, 10))
        pen.ellipse(0, 0.28, 0.09, 0.09, color * 0.35)
    elif kind == "clock":
        pen.arc(0, 0.28, 0.25, 0.25, 0, 360, 0.05, pick(rng, _WOOD, 10))
        for a, r in ((rng.uniform(0, 6.28), 0.12), (rng.uniform(0, 6.28), 0.19)):
            pen.line([(0, 0.28), (r * np.cos(a), 0.28 + r * np.sin(a))], 0.025, (30, 30, 30))


def _banana(rng, light):
    pen = Pen(0.9, 0.6)
    for turn in (0, 14, -12)[: rng.integers(1, 4)]:
        pen.arc(
            0,
            0.62 + turn * 0.004,
            0.36,
            0.42,
            195 + turn,
            335 + turn,
            0.14,
            jitter(rng, (228, 196, 60), 10),
        )
    return pen.sprite(rng, light, rough=0.07, bulge=0.8)


def _box_thing(rng, light, kind: str):
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
            {"refrigerator": [(216, 216, 214), (150, 152, 154)], "book": _VIVID}.get(
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
        pen.box(-w * 0.3, h * 0.6, w * 0.3, h * 0.8, pick(rng, _VIVID, 8))
        pen.box(-w / 2, 0.04, -w * 0.42, h, color * 0.6)
    else:
        pen.box(
            -w * 0.45,
            h * 0.3 if kind == "laptop" else 0.12,
            w * 0.45,
            h - 0.06,
            pick(rng, _VIVID + street.GLASS, 14),
        )
        pen.box(-w * 0.3, 0, w * 0.3, 0.06, color * 0.6)
    return pen.sprite(rng, light, rough=0.05, bulge=0.15)


def _board(rng, light, kind: str):
    pen, color = Pen(1.6, 0.45), pick(rng, _VIVID, 12)
    y = 0.24
    pen.ellipse(0, y, 0.76, 0.15 if kind == "surfboard" else 0.07, color, angle=rng.uniform(-6, 6))
    if kind == "surfboard":
        pen.ellipse(0, y, 0.6, 0.035, pick(rng, _VIVID, 10))
    else:
        for x in (-0.48, 0.48):
            pen.wheel(x, 0.1, 0.08, rim=(230, 226, 210))
    return pen.sprite(rng, light, rough=0.05, bulge=0.4)


def _kite(rng, light):
    pen, a, b = Pen(0.9, 1.4), pick(rng, _VIVID, 10), pick(rng, _VIVID, 10)
    pen.poly([(0, 1.38), (0.4, 0.95), (0, 0.4)], a)
    pen.poly([(0, 1.38), (-0.4, 0.95), (0, 0.4)], b)
    pen.line(
        np.stack([0.1 * np.sin(np.arange(8) * 1.4), 0.4 - np.arange(8) * 0.05], 1), 0.03, a * 0.7
    )
    return pen.sprite(rng, light, rough=0.05, bulge=0.1)


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
        draw = {"car": street.car_side, "truck": street.truck_side}[kind]
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
    return _as_one(street.person(rng, light))


def _bicycle(rng, light):
    return _as_one(street.bicycle(rng, light, ridden=False))


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
    15: ("bench", "outdoor", _bench),
    16: ("bird", "animal", _bird),
    17: ("cat", "animal", _of(_quadruped, "cat")),
    18: ("dog", "animal", _of(_quadruped, "dog")),
    19: ("horse", "animal", _of(_quadruped, "horse")),
    20: ("sheep", "animal", _of(_quadruped, "sheep")),
    21: ("cow", "animal", _of(_quadruped, "cow")),
    22: ("elephant", "animal", _of(_quadruped, "elephant")),
    23: ("bear", "animal", _of(_quadruped, "bear")),
    24: ("zebra", "animal", _of(_quadruped, "zebra")),
    25: ("giraffe", "animal", _of(_quadruped, "giraffe")),
    27: ("backpack", "accessory", _of(_luggage, "backpack")),
    28: ("umbrella", "accessory", _umbrella),
    31: ("handbag", "accessory", _of(_luggage, "handbag")),
    33: ("suitcase", "accessory", _of(_luggage, "suitcase")),
    34: ("frisbee", "sports", _of(_round, "frisbee")),
    37: ("sports ball", "sports", _of(_round, "sports ball")),
    38: ("kite", "sports", _kite),
    41: ("skateboard", "sports", _of(_board, "skateboard")),
    42: ("surfboard", "sports", _of(_board, "surfboard")),
    44: ("bottle", "kitchen", _of(_vessel, "bottle")),
    46: ("wine glass", "kitchen", _of(_vessel, "wine glass")),
    47: ("cup", "kitchen", _of(_vessel, "cup")),
    52: ("banana", "food", _banana),
    53: ("apple", "food", _of(_round, "apple")),
    55: ("orange", "food", _of(_round, "orange")),
    59: ("pizza", "food", _of(_round, "pizza")),
    60: ("donut", "food", _of(_round, "donut")),
    62: ("chair", "furniture", _chair),
    63: ("couch", "furniture", _couch),
    64: ("potted plant", "furniture", _plant),
    67: ("dining table", "furniture", _table),
    72: ("tv", "electronic", _of(_box_thing, "tv")),
    73: ("laptop", "electronic", _of(_box_thing, "laptop")),
    78: ("microwave", "appliance", _of(_box_thing, "microwave")),
    82: ("refrigerator", "appliance", _of(_box_thing, "refrigerator")),
    84: ("book", "indoor", _of(_box_thing, "book")),
    85: ("clock", "indoor", _of(_round, "clock")),
    86: ("vase", "indoor", _of(_vessel, "vase")),
    88: ("teddy bear", "indoor", _teddy),
}
