"""Animals of the COCO part, live and stuffed."""

import numpy as np

from miniature.drawing.canvas import Pen, Sprite, jitter, pick
from miniature.drawing.things import VIVID

__all__ = ["bird", "quadruped", "teddy"]

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


def quadruped(rng, light, kind: str) -> Sprite:
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


def bird(rng, light):
    pen, feather = Pen(0.7, 0.55), pick(rng, VIVID + _FUR["dog"], 14)
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


def teddy(rng, light):
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
