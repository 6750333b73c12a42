"""What stands along the streets: houses, walls, fences, trees, posts.

Each function draws one thing as a `Sprite` whose ids are Cityscapes label ids.
"""

import numpy as np

from miniature.drawing.canvas import Pen, Sprite, fractal_noise, jitter, pick

__all__ = ["CLOTH", "GLASS", "IDS", "LEAF", "PAINT", "PLASTER", "facade", "fence", "post", "tree",
           "wall"]  # fmt: skip

# Label ids of Cityscapes that the miniature uses.
IDS = {
    "ego vehicle": 1, "out of roi": 3, "static": 4, "road": 7, "sidewalk": 8, "building": 11,
    "wall": 12, "fence": 13, "pole": 17, "traffic light": 19, "traffic sign": 20,
    "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26,
    "truck": 27, "bicycle": 33,
}  # fmt: skip
PLASTER = [
    (188, 178, 160), (150, 144, 138), (168, 110, 86), (205, 198, 186), (120, 112, 108),
    (140, 92, 74), (176, 164, 120), (128, 138, 150), (196, 160, 128), (98, 92, 90),
]  # fmt: skip
PAINT = [
    (205, 205, 208), (42, 44, 50), (120, 124, 130), (150, 28, 30), (34, 54, 110),
    (80, 86, 92), (196, 188, 168), (38, 84, 60), (176, 120, 30), (88, 40, 44), (90, 130, 170),
]  # fmt: skip
CLOTH = [
    (44, 46, 58), (120, 38, 44), (60, 84, 130), (150, 140, 126), (40, 40, 42), (178, 168, 60),
    (92, 66, 50), (196, 192, 188), (58, 96, 74), (130, 84, 120), (186, 96, 40),
]  # fmt: skip
LEAF = [(66, 92, 48), (48, 74, 44), (96, 108, 52), (82, 96, 62), (120, 104, 48), (58, 84, 58)]
GLASS = [(58, 66, 76), (84, 98, 112), (40, 44, 52), (150, 164, 176), (110, 118, 120)]


def facade(rng, length: float, height: float, light: float) -> Sprite:
    """Front of a house, `length` x `height` metres, with rows of windows and a ground floor."""
    pen, half = Pen(length, height, IDS["building"], pixels=256), length / 2
    base = pick(rng, PLASTER, 16)
    pen.box(-half, 0, half, height, base)
    stain = 1 + 0.07 * fractal_noise(rng, *pen.ids.shape, cell=80)
    if rng.random() < 0.4:  # courses of bricks
        stain -= (np.arange(len(stain)) // 3 % 2)[:, None] * rng.uniform(0.06, 0.14)
    pen.color[:] = np.clip(pen.color * stain[..., None], 0, 255)
    floor, bay = rng.uniform(2.7, 3.5), rng.uniform(1.8, 3.2)
    glass, frame = pick(rng, GLASS, 10), jitter(rng, base * rng.choice([0.7, 1.3]), 8)
    wide, tall = bay * rng.uniform(0.35, 0.62), floor * rng.uniform(0.45, 0.66)
    bays = max(1, int(length / bay))
    middles = (np.arange(bays) + 0.5) * length / bays - half
    for y in (np.arange(1, max(2, int(height / floor))) + 0.18) * floor:
        if y + tall <= height - 0.2:
            for x in middles:
                pen.box(x - wide / 2 - 0.09, y - 0.09, x + wide / 2 + 0.09, y + tall + 0.09, frame)
                pen.box(x - wide / 2, y, x + wide / 2, y + tall, jitter(rng, glass, 14))
                pen.line([(x, y), (x, y + tall)], 0.07, frame)
    if rng.random() < 0.5:
        pen.box(-half, 0, half, floor * 0.95, pick(rng, PLASTER + CLOTH, 10))
    for x in middles:  # doors and shop windows
        if rng.random() < 0.3:
            pen.box(x - 0.5, 0, x + 0.5, 2.1, pick(rng, CLOTH, 10))
        elif rng.random() < 0.7:
            reach = 0.4 * length / bays
            pen.box(x - reach, 0.5, x + reach, floor * 0.78, jitter(rng, glass, 16))
    if rng.random() < 0.4:
        pen.box(-half, floor * 0.8, half, floor * 0.97, pick(rng, PAINT, 14))
    pen.box(-half, height - 0.35, half, height, base * rng.uniform(0.6, 0.85))
    return pen.sprite(rng, light, rough=0.07, bulge=0)


def wall(rng, length: float, height: float, light: float) -> Sprite:
    """A free-standing wall of stone, concrete or brick, sometimes with graffiti."""
    pen, half = Pen(length, height, IDS["wall"], pixels=256), length / 2
    base = pick(rng, PLASTER[:2] + PLASTER[4:8] + [(132, 130, 124), (110, 106, 100)], 14)
    pen.box(-half, 0, half, height, base)
    step = rng.choice([0.35, 0.6, 0.9])
    for row, y in enumerate(np.arange(0, height, step)):
        pen.line([(-half, y), (half, y)], 0.06, base * 0.6)
        for x in np.arange(-half + (row % 2) * step, half, 2 * step):
            pen.line([(x, y), (x, y + step)], 0.06, base * 0.6)
    for _ in range(rng.integers(1, 4) if rng.random() < 0.4 else 0):
        xs = rng.uniform(-half, half) + np.cumsum(rng.normal(0.2, 0.3, 7))
        pen.line(np.stack([xs, rng.uniform(0.3, height - 0.3, 7)], 1), 0.12, pick(rng, PAINT, 10))
    pen.box(-half, height - 0.16, half, height, base * 1.12)
    return pen.sprite(rng, light, rough=0.1, bulge=0)


def fence(rng, length: float, height: float, light: float) -> Sprite:
    """Boards, pickets, or rails on posts; the gaps are labelled too, as in Cityscapes."""
    pen, half, kind = Pen(length, height, IDS["fence"], pixels=256), length / 2, rng.integers(3)
    base = pick(rng, [(110, 84, 60), (190, 188, 182), (70, 76, 72), (60, 62, 66)], 14)
    pen.box(-half, 0, half, height * 0.97, 0.6 * pick(rng, LEAF + PLASTER[4:5], 10))
    noise = 1 + 0.2 * fractal_noise(rng, *pen.ids.shape, cell=16)
    pen.color[:] = np.clip(pen.color * noise[..., None], 0, 255)
    step = (0.3, 0.42, 1.2)[kind]
    for x in np.arange(-half, half + step, step):
        pen.line([(x, 0), (x, height)], (0.22, 0.2, 0.18)[kind], jitter(rng, base, 7))
    for y in (0.22, 0.5, 0.82) if kind == 2 else (0.25, 0.8):
        pen.line([(-half, y * height), (half, y * height)], 0.16, base * 0.92)
    return pen.sprite(rng, light, rough=0.06, bulge=0.2)


def tree(rng, height: float, light: float) -> Sprite:
    """A broad-leaved or conical tree or, below 2.2 m, a bush."""
    bush = height < 2.2
    width = height * (rng.uniform(1.3, 2.2) if bush else rng.uniform(0.55, 0.85))
    pen, leaf = Pen(width, height, IDS["vegetation"]), pick(rng, LEAF, 12)
    bottom = 0.0 if bush else 0.32 * height
    if not bush:
        bark = pick(rng, [(78, 64, 52), (104, 96, 86)], 10)
        pen.line([(0, 0), (rng.normal(0, 0.1), 0.6 * height)], 0.035 * height + 0.1, bark)
    cone = not bush and rng.random() < 0.3
    for _ in range(44):
        t = rng.uniform(0, 1) ** (1.4 if cone else 1.0)
        reach = width * 0.42 * ((1 - t) if cone else np.sqrt(max(0.05, 1 - (2 * t - 0.9) ** 2)))
        x, r = rng.uniform(-reach, reach), rng.uniform(0.06, 0.13) * max(width, 0.6 * height)
        bright = 0.75 + 0.5 * t + 0.15 * np.sign(light) * x / width
        y = bottom + t * (height - bottom) * 0.92
        pen.blob(rng, x, y, r, 0.8 * r, jitter(rng, leaf * bright, 9), rough=0.25)
    return pen.sprite(rng, light, rough=0.16, bulge=0.35)


def post(rng, height: float, light: float, head: str) -> Sprite:
    """A pole, bare or with a lamp ("lamp"), one or two signs ("sign"), or a signal ("light")."""
    pen, thick = Pen(3.2, height, IDS["pole"]), rng.uniform(0.17, 0.3)
    metal = pick(rng, [(120, 122, 122), (84, 86, 84), (150, 150, 146), (70, 62, 56)], 12)
    pen.line([(0, 0), (0, height - 0.15)], thick, metal)
    pen.line([(0, 0), (0, height * 0.14)], thick * 1.5, metal * 0.8)
    if head == "lamp":
        pen.line([(0, height - 0.2), (1.3, height - 0.12)], 0.14, metal)
        pen.ellipse(1.2, height - 0.2, 0.34, 0.13, jitter(rng, (190, 186, 170), 14))
    elif head == "sign":
        for k in range(rng.integers(1, 3)):
            _sign(rng, pen, height - 0.62 - 1.15 * k)
    elif head == "light":
        _signal(rng, pen, height - 0.85)
    return pen.sprite(rng, light, rough=0.04, bulge=0.25)


_TURN = np.linspace(0, 2 * np.pi, 24, endpoint=False)
_DISC = np.stack([np.cos(_TURN), np.sin(_TURN)], 1)
_TRIANGLE = np.array([(-1, -0.8), (1, -0.8), (0, 1)])
_DIAMOND = np.array([(0, -1), (1, 0), (0, 1), (-1, 0)])
_BOARD = np.array([(-1.7, -0.7), (1.7, -0.7), (1.7, 0.7), (-1.7, 0.7)])
_RED, _BLUE, _WHITE, _YELLOW = (178, 30, 34), (34, 72, 150), (226, 224, 218), (222, 178, 40)
# Outline, its colour; size and colour of the field inside; half width, height, colour of a bar.
_SIGNS = [
    (_DISC, _RED, 0.7, _WHITE, 0.38, 0.22, (50, 50, 52)),
    (_TRIANGLE, _RED, 0.58, _WHITE, 0, 0, _WHITE),
    (_DISC, _BLUE, 0, _BLUE, 0.14, 0.6, _WHITE),
    (_DIAMOND, _WHITE, 0.65, _YELLOW, 0, 0, _YELLOW),
    (_BOARD, _BLUE, 0, _BLUE, 1.2, 0.18, _WHITE),
    (_BOARD, (30, 96, 66), 0.9, (30, 96, 66), 1.2, 0.18, _WHITE),
    (_BOARD, _YELLOW, 0.9, _YELLOW, 1.2, 0.18, _WHITE),
]


def _sign(rng, pen, y):
    outline, rim, size, face, wide, tall, bar = _SIGNS[rng.integers(len(_SIGNS))]
    r, ident = rng.uniform(0.46, 0.58), IDS["traffic sign"]
    pen.poly(outline * r + (0, y), jitter(rng, rim, 8), ident)
    pen.poly(outline * r * size + (0, y), jitter(rng, face, 8), ident)
    pen.box(-r * wide, y - r * tall, r * wide, y + r * tall, bar, ident)


def _signal(rng, pen, y):
    ident, lit = IDS["traffic light"], rng.integers(3)
    shell = pick(rng, [(34, 36, 34), (46, 52, 46), (150, 122, 30)], 6)
    pen.box(-0.38, y - 0.85, 0.38, y + 0.85, shell, ident)
    for k, color in enumerate([(50, 200, 110), (236, 178, 40), (228, 44, 36)]):
        shown = np.array(color) * (1 if k == lit else 0.28)
        pen.ellipse(0, y + (k - 1) * 0.52, 0.21, 0.21, shown, ident=ident)
