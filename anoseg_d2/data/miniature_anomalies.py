"""Objects of the miniature's benchmarks. None of them is of a kind that `miniature_objects` draws.

`ANOMALIES` maps a kind to (draw, size): `draw(rng, light)` gives a `Sprite` in true metres, size is
"small" (lost cargo, up to about 1.3 m) or "large".
"""

import numpy as np

from .miniature_canvas import Pen, jitter, pick
from .miniature_objects import OBJECTS

__all__ = ["ANOMALIES", "LARGE", "SMALL"]

_ROCK = [(122, 116, 108), (146, 134, 116), (94, 92, 92), (128, 106, 88)]
_TIMBER = [(168, 132, 88), (128, 100, 72), (188, 160, 118), (110, 96, 80)]
_CARTON = [(176, 138, 92), (160, 122, 80), (196, 164, 120)]
_SIGNAL = [(226, 100, 36), (232, 180, 40), (210, 60, 40)]
_TARP = [
    (52, 84, 140),
    (90, 120, 70),
    (196, 110, 50),
    (150, 150, 156),
    (120, 60, 90),
    (206, 196, 160),
]
_STEEL = [(134, 138, 142), (100, 86, 76), (150, 96, 64), (84, 90, 96)]
_SLIME = [(110, 140, 90), (140, 96, 140), (170, 110, 90), (90, 120, 136), (176, 160, 90)]


def _boulder(rng, light):
    r = rng.uniform(0.35, 1.0)
    pen, stone = Pen(2.6 * r, 1.9 * r), pick(rng, _ROCK, 12)
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


def _pallet(rng, light):
    pen, wood = Pen(1.25, 0.62), pick(rng, _TIMBER, 12)
    high = rng.uniform(0.2, 0.42)
    pen.poly([(-0.6, 0.14), (0.6, 0.14), (0.46, 0.14 + high), (-0.46, 0.14 + high)], wood * 0.45)
    for t in np.linspace(0, 1, 6):
        y, half = 0.14 + t * high, 0.6 - 0.14 * t
        pen.line([(-half, y), (half, y)], 0.06, jitter(rng, wood, 10))
    for x in (-0.54, 0, 0.54):
        pen.box(x - 0.07, 0.02, x + 0.07, 0.14, wood * 0.75)
    pen.box(-0.61, 0, 0.61, 0.035, wood * 0.9)
    return pen.sprite(rng, light, rough=0.1, bulge=0.2)


def _barrel(rng, light):
    color, lying = pick(rng, _TARP + _STEEL + _SIGNAL, 12), rng.random() < 0.5
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


def _cone(rng, light):
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


def _crate(rng, light):
    w, h, wood = rng.uniform(0.5, 1.1), rng.uniform(0.4, 0.8), pick(rng, _TIMBER, 12)
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


def _carton(rng, light):
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


def _tyre(rng, light):
    dark = pick(rng, [(40, 40, 42), (58, 56, 54)], 8)
    if rng.random() < 0.5:
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


def _debris(rng, light):
    w, h = rng.uniform(1.2, 2.6), rng.uniform(0.4, 1.0)
    pen = Pen(w * 1.15, h * 1.25)
    colors = _ROCK + _TIMBER + _STEEL + _TARP[:2]
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


def _log(rng, light):
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


def _ladder(rng, light):
    pen, metal = Pen(2.0, 0.55), pick(rng, _STEEL + _SIGNAL[1:2], 12)
    for a in (0.06, 0.42):
        pen.line([(-0.9 + a * 0.4, a), (0.7 + a * 0.4, a)], 0.08, metal)
    for x in np.linspace(-0.8, 0.65, 7):
        pen.line([(x, 0.06), (x + 0.15, 0.42)], 0.06, metal * 0.85)
    return pen.sprite(rng, light, rough=0.06, bulge=0.3)


def _sack(rng, light):
    pen, cloth = Pen(1.0, 0.8), pick(rng, _TARP + [(40, 42, 46), (210, 206, 198)], 10)
    pen.blob(rng, 0, 0.3, 0.42, 0.31, cloth, 0.07, 13)
    pen.poly([(-0.12, 0.52), (0.14, 0.52), (0.24, 0.76), (0.02, 0.66), (-0.2, 0.78)], cloth * 0.9)
    for _ in range(6):
        x = rng.uniform(-0.3, 0.3)
        pen.line([(x, rng.uniform(0.1, 0.3)), (x * 0.4, 0.52)], 0.03, cloth * 0.7)
    return pen.sprite(rng, light, rough=0.1, bulge=0.9)


def _pipes(rng, light):
    pen, color = Pen(1.5, 1.1), pick(rng, _STEEL + _TARP[2:3], 12)
    for row, count in enumerate((4, 3, 2)):
        for k in range(count):
            x, y = (k - (count - 1) / 2) * 0.34, 0.17 + row * 0.3
            pen.ellipse(x, y, 0.17, 0.17, jitter(rng, color, 8))
            pen.ellipse(x, y, 0.115, 0.115, color * 0.25)
    return pen.sprite(rng, light, rough=0.08, bulge=0.3)


def _spool(rng, light):
    pen, wood = Pen(1.7, 1.6), pick(rng, _TIMBER, 12)
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
    pen, cloth = Pen(3.0, 1.9), pick(rng, _TARP, 12)
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
    pen, steel = Pen(4.0, 1.7), pick(rng, _STEEL[:1] + [(170, 174, 180)], 12)
    for x in (-0.9, 0, 0.9):
        pen.line([(x * 0.6, 0.6), (x, 0.04)], 0.1, steel * 0.6)
    pen.ellipse(0, 1.05, 0.75, 0.55, (110, 160, 150))
    pen.ellipse(0, 0.75, 1.9, 0.4, steel)
    pen.ellipse(0, 0.62, 1.4, 0.24, steel * 0.6)
    for x in np.linspace(-1.4, 1.4, 7):
        pen.ellipse(x, 0.82 - 0.06 * abs(x), 0.1, 0.07, (236, 206, 110))
    return pen.sprite(rng, light, rough=0.06, bulge=0.9)


def _statue(rng, light):
    pen, stone = Pen(1.4, 3.0), pick(rng, _ROCK + [(196, 192, 184)], 10)
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
    "boulder": (_boulder, "small"),
    "pallet": (_pallet, "small"),
    "barrel": (_barrel, "small"),
    "fallen cone": (_cone, "small"),
    "crate": (_crate, "small"),
    "carton": (_carton, "small"),
    "tyre": (_tyre, "small"),
    "log": (_log, "small"),
    "ladder": (_ladder, "small"),
    "sack": (_sack, "small"),
    "pipes": (_pipes, "small"),
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
assert not set(ANOMALIES) & {name for name, _, _ in OBJECTS.values()}, "kinds must be disjoint"
