"""Small unknown objects of the benchmarks: what falls off lorries, or onto roads."""

import numpy as np

from miniature.drawing.canvas import Pen, jitter, pick

__all__ = [
    "ROCK",
    "STEEL",
    "TARP",
    "TIMBER",
    "barrel",
    "boulder",
    "carton",
    "cone",
    "crate",
    "ladder",
    "log",
    "pallet",
    "pipes",
    "sack",
    "tyre",
]

ROCK = [(122, 116, 108), (146, 134, 116), (94, 92, 92), (128, 106, 88)]
TIMBER = [(168, 132, 88), (128, 100, 72), (188, 160, 118), (110, 96, 80)]
_CARTON = [(176, 138, 92), (160, 122, 80), (196, 164, 120)]
_SIGNAL = [(226, 100, 36), (232, 180, 40), (210, 60, 40)]
TARP = [
    (52, 84, 140),
    (90, 120, 70),
    (196, 110, 50),
    (150, 150, 156),
    (120, 60, 90),
    (206, 196, 160),
]
STEEL = [(134, 138, 142), (100, 86, 76), (150, 96, 64), (84, 90, 96)]


def boulder(rng, light):
    r = rng.uniform(0.35, 1.0)
    pen, stone = Pen(2.6 * r, 1.9 * r), pick(rng, ROCK, 12)
    pen.blob(rng, 0, 0.82 * r, 1.08 * r, 0.86 * r, stone, rough=0.09, corners=10)
    for _ in range(9):
        a = rng.uniform(0, 6.28)
        pen.blob(
            rng,
            0.55 * r * np.cos(a),
            0.85 * r + 0.42 * r * np.sin(a),
            0.32 * r,
            0.24 * r,
            jitter(rng, stone, 12),
            0.2,
            6,
        )
    return pen.sprite(rng, light, rough=0.16, bulge=1.0)


def pallet(rng, light):
    pen, wood = Pen(1.25, 0.62), pick(rng, TIMBER, 12)
    high = rng.uniform(0.2, 0.42)
    pen.poly([(-0.6, 0.14), (0.6, 0.14), (0.46, 0.14 + high), (-0.46, 0.14 + high)], wood * 0.45)
    for t in np.linspace(0, 1, 6):
        y, half = 0.14 + t * high, 0.6 - 0.14 * t
        pen.line([(-half, y), (half, y)], 0.06, jitter(rng, wood, 10))
    for x in (-0.54, 0, 0.54):
        pen.box(x - 0.07, 0.02, x + 0.07, 0.14, wood * 0.75)
    pen.box(-0.61, 0, 0.61, 0.035, wood * 0.9)
    return pen.sprite(rng, light, rough=0.1, bulge=0.2)


def barrel(rng, light):
    color, lying = pick(rng, TARP + STEEL + _SIGNAL, 12), rng.random() < 0.5
    pen = Pen(1.05, 0.72) if lying else Pen(0.72, 1.05)
    if lying:
        pen.box(-0.4, 0.02, 0.42, 0.66, color)
        for x in (-0.22, 0.02, 0.26):
            pen.line([(x, 0.03), (x, 0.65)], 0.04, color * 0.7)
        pen.ellipse(-0.4, 0.34, 0.1, 0.32, color * 0.6)
    else:
        pen.box(-0.31, 0.06, 0.31, 0.92, color)
        for y in (0.1, 0.36, 0.64):
            pen.line([(-0.31, y), (0.31, y)], 0.04, color * 0.7)
        pen.ellipse(0, 0.92, 0.31, 0.09, color * 0.65)
        pen.ellipse(0, 0.06, 0.31, 0.06, color * 0.8)
    return pen.sprite(rng, light, rough=0.12, bulge=0.8)


def cone(rng, light):
    pen, color, turn = Pen(1.0, 0.62), pick(rng, _SIGNAL, 10), rng.choice([-1, 1])
    tip, low, high = (
        np.array((0.44 * turn, 0.16)),
        np.array((-0.26 * turn, 0.06)),
        np.array((-0.3 * turn, 0.5)),
    )
    for a, b, tint in ((0, 1, color), (0.25, 0.45, (228, 226, 220)), (0.62, 0.78, (228, 226, 220))):
        edge = [
            low + (tip - low) * a,
            low + (tip - low) * b,
            high + (tip - high) * b,
            high + (tip - high) * a,
        ]
        pen.poly(edge, tint)
    pen.poly(
        [(-0.28 * turn, 0), (-0.36 * turn, 0.02), (-0.4 * turn, 0.58), (-0.3 * turn, 0.58)],
        color * 0.7,
    )
    return pen.sprite(rng, light, rough=0.08, bulge=0.6)


def crate(rng, light):
    w, h, wood = rng.uniform(0.5, 1.1), rng.uniform(0.4, 0.8), pick(rng, TIMBER, 12)
    pen = Pen(w * 1.5, h * 1.3)
    shift = rng.choice([-1, 1]) * 0.22 * w
    pen.poly(
        [(-w / 2, h), (w / 2, h), (w / 2 + shift, h * 1.24), (-w / 2 + shift, h * 1.24)], wood * 1.1
    )
    edge = np.sign(shift) * w / 2
    pen.poly(
        [(edge, 0.01), (edge, h), (edge + shift, h * 1.24), (edge + shift, h * 0.2)], wood * 0.6
    )
    pen.box(-w / 2, 0.01, w / 2, h, wood * 0.5)
    for y in np.linspace(0.07, h - 0.07, 5):
        pen.line([(-w / 2, y), (w / 2, y)], 0.13 * h, jitter(rng, wood, 9))
    for a, b in (((-w / 2, 0), (w / 2, h)), ((-w / 2, 0), (-w / 2, h)), ((w / 2, 0), (w / 2, h))):
        pen.line([a, b], 0.08, wood * 0.85)
    return pen.sprite(rng, light, rough=0.1, bulge=0.1)


def carton(rng, light):
    w, h, card = rng.uniform(0.4, 0.8), rng.uniform(0.3, 0.6), pick(rng, _CARTON, 12)
    pen = Pen(w * 1.6, h * 1.5)
    shift = rng.choice([-1, 1]) * 0.25 * w
    edge = np.sign(shift) * w / 2
    pen.poly(
        [(edge, 0.01), (edge, h), (edge + shift, h * 1.2), (edge + shift, h * 0.22)], card * 0.66
    )
    pen.poly(
        [(-w / 2, h), (w / 2, h), (w / 2 + shift, h * 1.2), (-w / 2 + shift, h * 1.2)], card * 0.5
    )
    pen.box(-w / 2, 0.01, w / 2, h, card)
    pen.poly([(-w / 2, h), (w / 2, h), (w * 0.42, h * 0.72), (-w * 0.55, h * 0.7)], card * 1.12)
    pen.line([(0, 0.02), (0, h * 0.7)], 0.06, card * 1.25)
    return pen.sprite(rng, light, rough=0.07, bulge=0.1)


def tyre(rng, light):
    dark = pick(rng, [(40, 40, 42), (58, 56, 54)], 8)
    if rng.random() < 0.5:
        pen = Pen(0.95, 0.5)
        for k in range(2):
            pen.ellipse(0, 0.15 + 0.18 * k, 0.44, 0.15, dark * (0.8 + 0.4 * k))
        pen.ellipse(0, 0.35, 0.22, 0.07, dark * 0.35)
    else:
        pen = Pen(0.8, 0.8)
        pen.ellipse(0, 0.39, 0.38, 0.39, dark)
        pen.ellipse(0.03, 0.39, 0.21, 0.23, pick(rng, ROCK, 10) * 0.8)
        pen.arc(0, 0.39, 0.31, 0.32, 0, 360, 0.035, dark * 1.6)
    return pen.sprite(rng, light, rough=0.12, bulge=0.7)


def log(rng, light):
    w = rng.uniform(1.0, 2.2)
    pen, bark = Pen(w, 0.62), pick(rng, [(96, 78, 60), (120, 104, 86), (80, 70, 62)], 10)
    pen.line([(-w / 2 + 0.24, 0.22), (w / 2 - 0.24, 0.26)], 0.4, bark)
    for _ in range(7):
        x = rng.uniform(-0.4, 0.3) * w
        pen.line([(x, rng.uniform(0.1, 0.38)), (x + 0.2, rng.uniform(0.1, 0.38))], 0.03, bark * 0.6)
    pen.line([(0.1 * w, 0.35), (0.1 * w + rng.normal(0, 0.15), 0.58)], 0.09, bark * 0.9)
    pen.ellipse(w / 2 - 0.24, 0.26, 0.14, 0.2, (196, 164, 118))
    pen.arc(w / 2 - 0.24, 0.26, 0.08, 0.12, 0, 360, 0.03, (150, 116, 78))
    return pen.sprite(rng, light, rough=0.16, bulge=0.9)


def ladder(rng, light):
    pen, metal = Pen(2.0, 0.55), pick(rng, STEEL + _SIGNAL[1:2], 12)
    for a in (0.06, 0.42):
        pen.line([(-0.9 + a * 0.4, a), (0.7 + a * 0.4, a)], 0.08, metal)
    for x in np.linspace(-0.8, 0.65, 7):
        pen.line([(x, 0.06), (x + 0.15, 0.42)], 0.06, metal * 0.85)
    return pen.sprite(rng, light, rough=0.06, bulge=0.3)


def sack(rng, light):
    pen, cloth = Pen(1.0, 0.8), pick(rng, TARP + [(40, 42, 46), (210, 206, 198)], 10)
    pen.blob(rng, 0, 0.3, 0.42, 0.31, cloth, 0.07, 13)
    pen.poly([(-0.12, 0.52), (0.14, 0.52), (0.24, 0.76), (0.02, 0.66), (-0.2, 0.78)], cloth * 0.9)
    for _ in range(6):
        x = rng.uniform(-0.3, 0.3)
        pen.line([(x, rng.uniform(0.1, 0.3)), (x * 0.4, 0.52)], 0.03, cloth * 0.7)
    return pen.sprite(rng, light, rough=0.1, bulge=0.9)


def pipes(rng, light):
    pen, color = Pen(1.5, 1.1), pick(rng, STEEL + TARP[2:3], 12)
    for row, count in enumerate((4, 3, 2)):
        for k in range(count):
            x, y = (k - (count - 1) / 2) * 0.34, 0.17 + row * 0.3
            pen.ellipse(x, y, 0.17, 0.17, jitter(rng, color, 8))
            pen.ellipse(x, y, 0.115, 0.115, color * 0.25)
    return pen.sprite(rng, light, rough=0.08, bulge=0.3)
