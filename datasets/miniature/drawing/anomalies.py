"""Objects of the benchmarks, none of a kind that `objects` draws.

`SMALL` (lost cargo, up to about 1.3 m) and `LARGE` map a name to `draw(rng, light)`, which returns
a `Sprite` in true metres.
"""

import numpy as np

from miniature.drawing.canvas import Pen, jitter, pick

__all__ = ["LARGE", "SMALL"]

_ROCK = [(122, 116, 108), (146, 134, 116), (94, 92, 92), (128, 106, 88)]
_TIMBER = [(168, 132, 88), (128, 100, 72), (188, 160, 118), (110, 96, 80)]
_TARP = [(52, 84, 140), (90, 120, 70), (196, 110, 50), (150, 150, 156), (206, 196, 160)]
_STEEL = [(134, 138, 142), (100, 86, 76), (150, 96, 64), (84, 90, 96), (232, 180, 40)]
_SLIME = [(110, 140, 90), (140, 96, 140), (170, 110, 90), (90, 120, 136), (176, 160, 90)]


def _boulder(rng, light):
    r, stone = rng.uniform(0.35, 1.0), pick(rng, _ROCK, 12)
    pen = Pen(2.6 * r, 1.9 * r)
    pen.blob(rng, 0, 0.82 * r, 1.08 * r, 0.86 * r, stone, rough=0.09, corners=10)
    for a in rng.uniform(0, 6.28, 9):
        x, y = 0.55 * r * np.cos(a), 0.85 * r + 0.42 * r * np.sin(a)
        pen.blob(rng, x, y, 0.32 * r, 0.24 * r, jitter(rng, stone, 12), 0.2, 6)
    return pen.sprite(rng, light, rough=0.16, bulge=1.0)


def _pallet(rng, light):
    pen, wood, high = Pen(1.25, 0.62), pick(rng, _TIMBER, 12), rng.uniform(0.2, 0.42)
    pen.poly([(-0.6, 0.14), (0.6, 0.14), (0.46, 0.14 + high), (-0.46, 0.14 + high)], wood * 0.45)
    for t in np.linspace(0, 1, 6):
        y, half = 0.14 + t * high, 0.6 - 0.14 * t
        pen.line([(-half, y), (half, y)], 0.06, jitter(rng, wood, 10))
    for x in (-0.54, 0, 0.54):
        pen.box(x - 0.07, 0.02, x + 0.07, 0.14, wood * 0.75)
    pen.box(-0.61, 0, 0.61, 0.035, wood * 0.9)
    return pen.sprite(rng, light, rough=0.1, bulge=0.2)


def _barrel(rng, light):
    color = pick(rng, _TARP + _STEEL, 12)
    if rng.random() < 0.5:  # lying
        pen = Pen(1.05, 0.72)
        pen.box(-0.4, 0.02, 0.42, 0.66, color)
        for x in (-0.22, 0.02, 0.26):
            pen.line([(x, 0.03), (x, 0.65)], 0.04, color * 0.7)
        pen.ellipse(-0.4, 0.34, 0.1, 0.32, color * 0.6)
    else:
        pen = Pen(0.72, 1.05)
        pen.box(-0.31, 0.06, 0.31, 0.92, color)
        for y in (0.1, 0.36, 0.64):
            pen.line([(-0.31, y), (0.31, y)], 0.04, color * 0.7)
        pen.ellipse(0, 0.92, 0.31, 0.09, color * 0.65)
        pen.ellipse(0, 0.06, 0.31, 0.06, color * 0.8)
    return pen.sprite(rng, light, rough=0.12, bulge=0.8)


def _tyre(rng, light):
    dark = pick(rng, [(40, 40, 42), (58, 56, 54)], 8)
    if rng.random() < 0.5:  # lying
        pen = Pen(0.95, 0.5)
        for k in range(2):
            pen.ellipse(0, 0.15 + 0.18 * k, 0.44, 0.15, dark * (0.8 + 0.4 * k))
        pen.ellipse(0, 0.35, 0.22, 0.07, dark * 0.35)
    else:
        pen = Pen(0.8, 0.8)
        pen.ellipse(0, 0.39, 0.38, 0.39, dark)
        pen.ellipse(0.03, 0.39, 0.21, 0.23, pick(rng, _ROCK, 10) * 0.8)
        pen.arc(0, 0.39, 0.31, 0.32, 0, 360, 0.035, dark * 1.6)
    return pen.sprite(rng, light, rough=0.12, bulge=0.7)


def _hay(rng, light):
    pen, straw = Pen(1.7, 1.45), pick(rng, [(206, 176, 100), (180, 156, 96), (190, 150, 84)], 10)
    pen.ellipse(0, 0.7, 0.8, 0.7, straw)
    for r in np.linspace(0.1, 0.95, 8):
        pen.arc(0, 0.7, 0.78 * r, 0.68 * r, 0, 360, 0.035, jitter(rng, straw * 0.8, 8))
    for _ in range(40):
        a, r = rng.uniform(0, 6.28), rng.uniform(0.5, 0.8)
        start = (r * np.cos(a), 0.7 + 0.88 * r * np.sin(a))
        end = (1.04 * r * np.cos(a + 0.1), 0.7 + 0.9 * r * np.sin(a + 0.1))
        pen.line([start, end], 0.02, jitter(rng, straw, 16))
    return pen.sprite(rng, light, rough=0.2, bulge=0.9)


def _tent(rng, light):
    pen, cloth = Pen(3.0, 1.9), pick(rng, _TARP, 12)
    pen.poly([(-1.4, 0.02), (-0.35, 1.8), (0.95, 1.75), (1.4, 0.02)], cloth * 0.8)
    pen.poly([(-1.4, 0.02), (-0.35, 1.8), (0.55, 0.02)], cloth * 1.08)
    pen.poly([(-0.75, 0.02), (-0.35, 1.45), (0.1, 0.02)], cloth * 0.3)
    pen.line([(-0.35, 1.8), (0.95, 1.75)], 0.05, cloth * 0.6)
    return pen.sprite(rng, light, rough=0.09, bulge=0.3)


def _excavator(rng, light):
    pen, paint = Pen(6.0, 3.6), pick(rng, [(226, 170, 36), (220, 120, 40), (130, 136, 130)], 10)
    dark = (44, 44, 46)
    pen.box(-2.2, 0.02, 0.6, 0.75, dark)
    for x in np.linspace(-1.9, 0.3, 6):
        pen.ellipse(x, 0.38, 0.24, 0.28, (96, 92, 88))
    pen.box(-2.3, 0.85, 0.3, 1.75, paint)
    pen.box(-2.2, 1.2, -1.2, 1.9, paint * 0.8)
    pen.poly([(-0.9, 1.75), (-0.9, 2.8), (0.0, 2.8), (0.3, 1.75)], paint * 0.9)
    pen.poly([(-0.72, 1.8), (-0.72, 2.62), (-0.08, 2.62), (0.12, 1.8)], (70, 90, 104))
    pen.line([(0.2, 1.5), (1.5, 3.4), (2.6, 2.2)], 0.34, paint)
    pen.line([(2.6, 2.3), (2.3, 0.75)], 0.24, paint * 0.85)
    pen.line([(0.6, 1.6), (1.6, 2.9)], 0.1, (170, 172, 172))
    pen.poly([(1.7, 0.9), (2.6, 0.9), (2.5, 0.25), (1.9, 0.02), (1.6, 0.3)], dark)
    return pen.sprite(rng, light, rough=0.07, bulge=0.4)


def _squid(rng, light):
    """A dome on a skirt of tentacles."""
    pen, skin = Pen(2.4, 2.4), pick(rng, _SLIME, 14)
    for k in np.linspace(-0.8, 0.8, int(rng.integers(6, 10))):
        sway = rng.normal(0, 0.16, 3)
        arm = [(k * 0.7, 1.2), (k + sway[0], 0.75), (k * 1.15 + sway[1], 0.35)]
        pen.line([*arm, (k * 1.2 + sway[2], 0.06)], 0.13, jitter(rng, skin * 0.8, 8))
    pen.ellipse(0, 1.5, 0.85, 0.82, skin)
    pen.ellipse(0, 1.14, 0.92, 0.2, skin * 0.8)
    for a in rng.uniform(0, 3.14, 9):
        pen.ellipse(0.5 * np.cos(a), 1.45 + 0.5 * np.sin(a), 0.11, 0.1, skin * 1.3)
    for x in (-0.28, 0.28):
        pen.ellipse(x, 1.36, 0.13, 0.16, (20, 18, 26))
    return pen.sprite(rng, light, rough=0.12, bulge=1.0)


SMALL = {"boulder": _boulder, "pallet": _pallet, "barrel": _barrel, "tyre": _tyre}
LARGE = {"hay bale": _hay, "tent": _tent, "excavator": _excavator, "creature": _squid}
