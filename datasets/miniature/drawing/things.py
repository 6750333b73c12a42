"""Small things of the COCO part: vessels, luggage, round things, boards, umbrellas."""

import numpy as np

from miniature.drawing import street
from miniature.drawing.canvas import Pen, jitter, pick

__all__ = [
    "VIVID",
    "WOOD",
    "banana",
    "board",
    "kite",
    "luggage",
    "round_thing",
    "umbrella",
    "vessel",
]

VIVID = [
    (206, 60, 52), (46, 104, 190), (240, 190, 60), (70, 150, 84), (150, 70, 160), (236, 128, 48),
    (230, 226, 216), (60, 60, 66), (120, 190, 200), (222, 140, 160), (130, 92, 62),
]  # fmt: skip
WOOD = [(150, 108, 68), (110, 76, 50), (186, 146, 100), (84, 60, 44)]


def vessel(rng, light, kind: str):
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
    pen, color = Pen(0.85, float(half[-1, 1]) + 0.06), pick(rng, VIVID + street.GLASS, 14)
    if kind == "cup":
        pen.arc(0.28, 0.32, 0.15, 0.18, -90, 90, 0.06, color * 0.85)
    pen.poly(np.concatenate([half, half[::-1] * (-1, 1)]), color)
    label = rng.uniform(0.1, 0.3)
    if kind == "bottle":
        pen.box(-0.16, label, 0.16, label + 0.22, pick(rng, VIVID, 10))
        pen.box(-0.065, 0.93, 0.065, 1.03, pick(rng, VIVID, 10))
    if kind == "vase" and rng.random() < 0.5:
        for y in (0.25, 0.4, 0.5):
            pen.line([(-0.2, y), (0.2, y)], 0.04, color * 0.6)
    return pen.sprite(rng, light, rough=0.04, bulge=1.0)


def luggage(rng, light, kind: str):
    w, h = {"suitcase": (0.5, 0.72), "backpack": (0.42, 0.56), "handbag": (0.44, 0.3)}[kind]
    w, h = np.array((w, h)) * rng.uniform(0.9, 1.15, 2)
    pen, color = Pen(w + 0.1, h + 0.26), pick(rng, VIVID + street.CLOTH, 12)
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


def umbrella(rng, light):
    pen, color, other = Pen(1.2, 1.15), pick(rng, VIVID, 12), pick(rng, VIVID, 12)
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


def round_thing(rng, light, kind: str):
    pen = Pen(0.6, 0.6)
    base = {
        "sports ball": [(236, 232, 226), (220, 120, 50), (206, 220, 70), (60, 110, 190)],
        "apple": [(190, 40, 36), (120, 160, 60), (216, 190, 80)],
        "orange": [(236, 140, 34)],
        "pizza": [(222, 170, 90)],
        "donut": [(190, 130, 80)],
        "frisbee": VIVID,
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
        pen.ellipse(0, 0.28, 0.23, 0.23, pick(rng, VIVID, 10))
        pen.ellipse(0, 0.28, 0.09, 0.09, color * 0.35)
    elif kind == "clock":
        pen.arc(0, 0.28, 0.25, 0.25, 0, 360, 0.05, pick(rng, WOOD, 10))
        for a, r in ((rng.uniform(0, 6.28), 0.12), (rng.uniform(0, 6.28), 0.19)):
            pen.line([(0, 0.28), (r * np.cos(a), 0.28 + r * np.sin(a))], 0.025, (30, 30, 30))


def banana(rng, light):
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


def board(rng, light, kind: str):
    pen, color = Pen(1.6, 0.45), pick(rng, VIVID, 12)
    y = 0.24
    pen.ellipse(0, y, 0.76, 0.15 if kind == "surfboard" else 0.07, color, angle=rng.uniform(-6, 6))
    if kind == "surfboard":
        pen.ellipse(0, y, 0.6, 0.035, pick(rng, VIVID, 10))
    else:
        for x in (-0.48, 0.48):
            pen.wheel(x, 0.1, 0.08, rim=(230, 226, 210))
    return pen.sprite(rng, light, rough=0.05, bulge=0.4)


def kite(rng, light):
    pen, a, b = Pen(0.9, 1.4), pick(rng, VIVID, 10), pick(rng, VIVID, 10)
    pen.poly([(0, 1.38), (0.4, 0.95), (0, 0.4)], a)
    pen.poly([(0, 1.38), (-0.4, 0.95), (0, 0.4)], b)
    pen.line(
        np.stack([0.1 * np.sin(np.arange(8) * 1.4), 0.4 - np.arange(8) * 0.05], 1), 0.03, a * 0.7
    )
    return pen.sprite(rng, light, rough=0.05, bulge=0.1)
