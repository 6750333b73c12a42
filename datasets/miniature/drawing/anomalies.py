"""Objects of the benchmarks. None of them is of a kind that `objects` draws.

`ANOMALIES` maps a kind to (draw, size): `draw(rng, light)` gives a `Sprite` in true metres, size is
"small" (lost cargo, up to about 1.3 m) or "large".
"""

import numpy as np

from miniature.drawing import lost_cargo
from miniature.drawing.canvas import Pen, jitter, pick
from miniature.drawing.lost_cargo import ROCK, STEEL, TARP, TIMBER

__all__ = ["ANOMALIES", "LARGE", "SMALL"]

_SLIME = [(110, 140, 90), (140, 96, 140), (170, 110, 90), (90, 120, 136), (176, 160, 90)]


def _debris(rng, light):
    w, h = rng.uniform(1.2, 2.6), rng.uniform(0.4, 1.0)
    pen = Pen(w * 1.15, h * 1.25)
    colors = ROCK + TIMBER + STEEL + TARP[:2]
    for _ in range(46):
        x = rng.uniform(-0.5, 0.5)
        y = rng.uniform(0, 1) * (1 - (2 * x) ** 2) * h
        size = rng.uniform(0.05, 0.14) * w
        if rng.random() < 0.3:
            a = rng.uniform(0, 3.14)
            ends = [
                (x * w - size * np.cos(a), y),
                (x * w + size * np.cos(a), max(0.03, y + size * np.sin(a))),
            ]
            pen.line(ends, 0.07, pick(rng, colors, 14))
        else:
            pen.blob(
                rng, x * w, max(y, size * 0.4), size, size * 0.6, pick(rng, colors, 14), 0.25, 6
            )
    return pen.sprite(rng, light, rough=0.14, bulge=0.4)


def _spool(rng, light):
    pen, wood = Pen(1.7, 1.6), pick(rng, TIMBER, 12)
    pen.ellipse(0.2, 0.76, 0.62, 0.75, wood * 0.6)
    pen.box(-0.2, 0.38, 0.2, 1.16, pick(rng, [(40, 40, 44), (200, 90, 40)], 8))
    pen.ellipse(-0.18, 0.76, 0.62, 0.75, wood)
    pen.arc(-0.18, 0.76, 0.5, 0.6, 0, 360, 0.05, wood * 0.75)
    for a in np.arange(4) * 0.8:
        pen.line(
            [
                (-0.18 - 0.5 * np.cos(a), 0.76 - 0.6 * np.sin(a)),
                (-0.18 + 0.5 * np.cos(a), 0.76 + 0.6 * np.sin(a)),
            ],
            0.03,
            wood * 0.7,
        )
    pen.ellipse(-0.18, 0.76, 0.12, 0.14, wood * 0.3)
    return pen.sprite(rng, light, rough=0.1, bulge=0.3)


def _hay(rng, light):
    pen, straw = Pen(1.7, 1.45), pick(rng, [(206, 176, 100), (180, 156, 96), (190, 150, 84)], 10)
    pen.ellipse(0, 0.7, 0.8, 0.7, straw)
    for r in np.linspace(0.1, 0.95, 8):
        pen.arc(0, 0.7, 0.78 * r, 0.68 * r, 0, 360, 0.035, jitter(rng, straw * 0.8, 8))
    for _ in range(40):
        a, r = rng.uniform(0, 6.28), rng.uniform(0.5, 0.8)
        pen.line(
            [
                (r * np.cos(a), 0.7 + 0.88 * r * np.sin(a)),
                (1.04 * r * np.cos(a + 0.1), 0.7 + 0.9 * r * np.sin(a + 0.1)),
            ],
            0.02,
            jitter(rng, straw, 16),
        )
    return pen.sprite(rng, light, rough=0.2, bulge=0.9)


def _tent(rng, light):
    pen, cloth = Pen(3.0, 1.9), pick(rng, TARP, 12)
    pen.poly([(-1.4, 0.02), (-0.35, 1.8), (0.95, 1.75), (1.4, 0.02)], cloth * 0.8)
    pen.poly([(-1.4, 0.02), (-0.35, 1.8), (0.55, 0.02)], cloth * 1.08)
    pen.poly([(-0.75, 0.02), (-0.35, 1.45), (0.1, 0.02)], cloth * 0.3)
    pen.line([(-0.35, 1.8), (0.95, 1.75)], 0.05, cloth * 0.6)
    return pen.sprite(rng, light, rough=0.09, bulge=0.3)


def _excavator(rng, light):
    pen, paint = Pen(6.0, 3.6), pick(rng, [(226, 170, 36), (220, 120, 40), (130, 136, 130)], 10)
    dark, flip = np.array((44, 44, 46)), rng.random() < 0.5
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
    sprite = pen.sprite(rng, light, rough=0.07, bulge=0.4)
    return sprite.flipped() if flip else sprite


def _creature(rng, light):
    """A thing with six or eight jointed legs, a segmented body and eyes on stalks."""
    pen, skin, legs = Pen(3.2, 2.3), pick(rng, _SLIME, 14), int(rng.integers(3, 5))
    segments = int(rng.integers(2, 5))
    for k in range(legs):
        x = -0.8 + 1.6 * k / (legs - 1)
        for side in (-1, 1):
            knee = (x + side * rng.uniform(0.35, 0.7), rng.uniform(1.2, 1.7))
            pen.line(
                [(x, 0.95), knee, (knee[0] + side * 0.12, 0.04)],
                0.13,
                skin * rng.uniform(0.5, 0.75),
            )
    for k in range(segments):
        x = -0.75 + 1.5 * k / (segments - 1)
        pen.ellipse(
            x,
            1.0 + 0.08 * (k % 2),
            0.95 / segments + 0.14,
            rng.uniform(0.34, 0.5),
            jitter(rng, skin, 10),
        )
    for _ in range(12):
        pen.ellipse(
            rng.uniform(-0.9, 0.9),
            rng.uniform(0.8, 1.3),
            0.07,
            0.06,
            skin * rng.choice([0.6, 1.35]),
        )
    for dx in (0.0, 0.25):
        pen.line([(0.9, 1.2), (1.0 + dx, 1.85)], 0.07, skin * 0.9)
        pen.ellipse(1.0 + dx, 1.9, 0.12, 0.12, (226, 220, 150))
        pen.ellipse(1.03 + dx, 1.9, 0.05, 0.06, (20, 16, 20))
    sprite = pen.sprite(rng, light, rough=0.15, bulge=1.0)
    return sprite.flipped() if rng.random() < 0.5 else sprite


def _squid(rng, light):
    """A dome on a skirt of tentacles."""
    pen, skin = Pen(2.4, 2.4), pick(rng, _SLIME, 14)
    for k in np.linspace(-0.8, 0.8, int(rng.integers(6, 10))):
        sway = rng.normal(0, 0.16, 3)
        pen.line(
            [
                (k * 0.7, 1.2),
                (k + sway[0], 0.75),
                (k * 1.15 + sway[1], 0.35),
                (k * 1.2 + sway[2], 0.06),
            ],
            0.13,
            jitter(rng, skin * 0.8, 8),
        )
    pen.ellipse(0, 1.5, 0.85, 0.82, skin)
    pen.ellipse(0, 1.14, 0.92, 0.2, skin * 0.8)
    for _ in range(9):
        a = rng.uniform(0, 3.14)
        pen.ellipse(0.5 * np.cos(a), 1.45 + 0.5 * np.sin(a), 0.11, 0.1, skin * 1.3)
    for x in (-0.28, 0.28):
        pen.ellipse(x, 1.36, 0.13, 0.16, (20, 18, 26))
    return pen.sprite(rng, light, rough=0.12, bulge=1.0)


def _saucer(rng, light):
    pen, steel = Pen(4.0, 1.7), pick(rng, STEEL[:1] + [(170, 174, 180)], 12)
    for x in (-0.9, 0, 0.9):
        pen.line([(x * 0.6, 0.6), (x, 0.04)], 0.1, steel * 0.6)
    pen.ellipse(0, 1.05, 0.75, 0.55, (110, 160, 150))
    pen.ellipse(0, 0.75, 1.9, 0.4, steel)
    pen.ellipse(0, 0.62, 1.4, 0.24, steel * 0.6)
    for x in np.linspace(-1.4, 1.4, 7):
        pen.ellipse(x, 0.82 - 0.06 * abs(x), 0.1, 0.07, (236, 206, 110))
    return pen.sprite(rng, light, rough=0.06, bulge=0.9)


def _statue(rng, light):
    pen, stone = Pen(1.4, 3.0), pick(rng, ROCK + [(196, 192, 184)], 10)
    pen.box(-0.6, 0, 0.6, 0.3, stone * 0.8)
    pen.box(-0.48, 0.28, 0.48, 1.0, stone * 0.95)
    pen.box(-0.55, 0.95, 0.55, 1.1, stone * 0.85)
    pen.poly([(-0.26, 1.1), (-0.15, 2.75), (0, 2.98), (0.15, 2.75), (0.26, 1.1)], stone)
    for y in np.arange(1.35, 2.6, 0.28):
        pen.line([(-0.14, y), (0.14, y)], 0.05, stone * 0.7)
    return pen.sprite(rng, light, rough=0.12, bulge=0.6)


def _wreck(rng, light):
    """A light aircraft, nose down."""
    pen, skin = Pen(5.0, 2.2), pick(rng, [(214, 212, 206), (190, 60, 50), (70, 110, 160)], 10)
    pen.poly([(-2.3, 1.9), (-2.0, 2.15), (-1.4, 1.35), (-2.1, 1.3)], skin * 0.8)
    pen.line([(-2.1, 1.4), (1.5, 0.55)], 0.42, skin)
    pen.ellipse(1.0, 0.68, 0.85, 0.42, skin, angle=-14)
    pen.ellipse(0.85, 0.95, 0.38, 0.2, (70, 90, 104), angle=-14)
    pen.poly([(-0.4, 0.9), (0.5, 0.75), (-0.6, 0.03), (-1.1, 0.06)], skin * 0.7)
    pen.poly([(-0.1, 1.25), (0.6, 1.05), (0.3, 1.9), (-0.1, 1.95)], skin * 0.9)
    pen.line([(1.75, 0.05), (1.9, 1.05)], 0.08, (50, 50, 52))
    sprite = pen.sprite(rng, light, rough=0.07, bulge=0.7)
    return sprite.flipped() if rng.random() < 0.5 else sprite


ANOMALIES = {
    "boulder": (lost_cargo.boulder, "small"),
    "pallet": (lost_cargo.pallet, "small"),
    "barrel": (lost_cargo.barrel, "small"),
    "fallen cone": (lost_cargo.cone, "small"),
    "crate": (lost_cargo.crate, "small"),
    "carton": (lost_cargo.carton, "small"),
    "tyre": (lost_cargo.tyre, "small"),
    "log": (lost_cargo.log, "small"),
    "ladder": (lost_cargo.ladder, "small"),
    "sack": (lost_cargo.sack, "small"),
    "pipes": (lost_cargo.pipes, "small"),
    "debris": (_debris, "large"),
    "cable drum": (_spool, "large"),
    "hay bale": (_hay, "large"),
    "tent": (_tent, "large"),
    "excavator": (_excavator, "large"),
    "six-legged creature": (_creature, "large"),
    "tentacle creature": (_squid, "large"),
    "saucer": (_saucer, "large"),
    "obelisk": (_statue, "large"),
    "aircraft wreck": (_wreck, "large"),
}
SMALL = tuple(name for name, (_, size) in ANOMALIES.items() if size == "small")
LARGE = tuple(name for name, (_, size) in ANOMALIES.items() if size == "large")
