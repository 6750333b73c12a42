"""What stands along the streets: houses, walls, fences, trees, posts.

Each function draws one thing as a `Sprite` whose ids are Cityscapes label ids.
"""

import numpy as np

from miniature.drawing.canvas import Pen, Sprite, fractal_noise, jitter, pick

__all__ = [
    "CLOTH",
    "GLASS",
    "IDS",
    "LEAF",
    "PAINT",
    "PLASTER",
    "facade",
    "fence",
    "hedge",
    "post",
    "tree",
    "wall",
]

# Label ids of Cityscapes that the miniature uses.
IDS = {
    "ego vehicle": 1,
    "out of roi": 3,
    "static": 4,
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bicycle": 33,
}
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
    pen = Pen(length, height, IDS["building"], pixels=256)
    base = pick(rng, PLASTER, 16)
    pen.box(-length / 2, 0, length / 2, height, base)
    _masonry(rng, pen)
    floor, bay = rng.uniform(2.7, 3.5), rng.uniform(1.8, 3.2)
    glass, frame = pick(rng, GLASS, 10), jitter(rng, base * rng.choice([0.7, 1.3]), 8)
    wide, tall = bay * rng.uniform(0.35, 0.62), floor * rng.uniform(0.45, 0.66)
    bays = max(1, int(length / bay))
    for level in range(1, max(2, int(height / floor))):
        for j in range(bays):
            x, y = (j + 0.5) * length / bays - length / 2, (level + 0.18) * floor
            if y + tall > height - 0.2:
                continue
            pen.box(x - wide / 2 - 0.09, y - 0.09, x + wide / 2 + 0.09, y + tall + 0.09, frame)
            pen.box(x - wide / 2, y, x + wide / 2, y + tall, jitter(rng, glass, 14))
            pen.line([(x, y), (x, y + tall)], 0.07, frame)
    _ground_floor(rng, pen, bays, floor, glass)
    pen.box(-length / 2, height - 0.35, length / 2, height, base * rng.uniform(0.6, 0.85))
    return pen.sprite(rng, light, rough=0.07, bulge=0)


def _masonry(rng, pen):
    """Brick courses or stains over the whole sheet."""
    rows, columns = pen.ids.shape
    if rng.random() < 0.4:
        course = (np.arange(rows) // 3 % 2)[:, None] * rng.uniform(0.06, 0.14)
        pen.color[:] = np.clip(pen.color * (1 - course[..., None]), 0, 255)
    stain = 1 + 0.07 * fractal_noise(rng, rows, columns, cell=80)
    pen.color[:] = np.clip(pen.color * stain[..., None], 0, 255)


def _ground_floor(rng, pen, bays, floor, glass):
    half = pen.width / 2
    if rng.random() < 0.5:
        pen.box(-half, 0, half, floor * 0.95, pick(rng, PLASTER + CLOTH, 10))
    for j in range(bays):
        x, wide = (j + 0.5) * pen.width / bays - half, pen.width / bays
        if rng.random() < 0.3:
            pen.box(x - 0.5, 0, x + 0.5, 2.1, pick(rng, CLOTH, 10))
        elif rng.random() < 0.7:
            pen.box(x - wide * 0.4, 0.5, x + wide * 0.4, floor * 0.78, jitter(rng, glass, 16))
    if rng.random() < 0.4:
        pen.box(-half, floor * 0.8, half, floor * 0.97, pick(rng, PAINT, 14))


def wall(rng, length: float, height: float, light: float) -> Sprite:
    """A free-standing wall of stone, concrete or brick."""
    pen = Pen(length, height, IDS["wall"], pixels=256)
    base = pick(rng, PLASTER[:2] + PLASTER[4:8] + [(132, 130, 124), (110, 106, 100)], 14)
    pen.box(-length / 2, 0, length / 2, height, base)
    step, joint = rng.choice([0.35, 0.6, 0.9]), base * 0.6
    for row, y in enumerate(np.arange(0, height, step)):
        pen.line([(-length / 2, y), (length / 2, y)], 0.06, joint)
        for x in np.arange(-length / 2 + (row % 2) * step, length / 2, 2 * step):
            pen.line([(x, y), (x, y + step)], 0.06, joint)
    if rng.random() < 0.4:
        for _ in range(rng.integers(1, 4)):
            x = rng.uniform(-length / 2, length / 2)
            xs, ys = x + np.cumsum(rng.normal(0.2, 0.3, 7)), rng.uniform(0.3, height - 0.3, 7)
            pen.line(np.stack([xs, ys], 1), 0.12, pick(rng, PAINT, 10))
    pen.box(-length / 2, height - 0.16, length / 2, height, base * 1.12)
    return pen.sprite(rng, light, rough=0.1, bulge=0)


def fence(rng, length: float, height: float, light: float) -> Sprite:
    """Boards, pickets, or rails on posts; the gaps are labelled too, as in Cityscapes."""
    pen = Pen(length, height, IDS["fence"], pixels=256)
    kind, base = (
        rng.integers(3),
        pick(rng, [(110, 84, 60), (190, 188, 182), (70, 76, 72), (60, 62, 66)], 14),
    )
    backdrop = pick(rng, LEAF + [(96, 92, 84), (120, 116, 108)], 10)
    pen.box(-length / 2, 0, length / 2, height * 0.97, backdrop * 0.6)
    noise = 1 + 0.2 * fractal_noise(rng, *pen.ids.shape, cell=16)
    pen.color[:] = np.clip(pen.color * noise[..., None], 0, 255)
    step = (0.3, 0.42, 1.2)[kind]
    for x in np.arange(-length / 2, length / 2 + step, step):
        pen.line([(x, 0), (x, height)], (0.22, 0.2, 0.18)[kind], jitter(rng, base, 7))
    for y in (0.22, 0.5, 0.82) if kind == 2 else (0.25, 0.8):
        pen.line([(-length / 2, y * height), (length / 2, y * height)], 0.16, base * 0.92)
    return pen.sprite(rng, light, rough=0.06, bulge=0.2)


def tree(rng, height: float, light: float) -> Sprite:
    """A broad-leaved or conical tree, or with `height` below 2.2 m a bush; all vegetation."""
    width = height * rng.uniform(0.55, 0.85) if height > 2.2 else height * rng.uniform(1.3, 2.2)
    pen = Pen(width, height, IDS["vegetation"])
    leaf, bark = pick(rng, LEAF, 12), pick(rng, [(78, 64, 52), (104, 96, 86)], 10)
    bottom = 0.32 * height if height > 2.2 else 0.0
    if bottom:
        pen.line([(0, 0), (rng.normal(0, 0.1), 0.6 * height)], 0.035 * height + 0.1, bark)
    cone = height > 2.2 and rng.random() < 0.3
    for _ in range(44):
        t = rng.uniform(0, 1) ** (1.4 if cone else 1.0)
        y = bottom + t * (height - bottom) * 0.92
        reach = width * 0.42 * ((1 - t) if cone else np.sqrt(max(0.05, 1 - (2 * t - 0.9) ** 2)))
        x, r = rng.uniform(-reach, reach), rng.uniform(0.06, 0.13) * max(width, 0.6 * height)
        bright = 0.75 + 0.5 * t + 0.15 * np.sign(light) * x / width
        pen.blob(rng, x, y, r, 0.8 * r, jitter(rng, leaf * bright, 9), rough=0.25)
    return pen.sprite(rng, light, rough=0.16, bulge=0.35)


def post(rng, height: float, light: float, head: str) -> Sprite:
    """A pole, bare or with a lamp ("lamp"), one or two signs ("sign"), or a signal ("light")."""
    pen = Pen(3.2, height, IDS["pole"])
    thick, metal = (
        rng.uniform(0.17, 0.3),
        pick(rng, [(120, 122, 122), (84, 86, 84), (150, 150, 146), (70, 62, 56)], 12),
    )
    pen.line([(0, 0), (0, height - 0.15)], thick, metal)
    pen.line([(0, 0), (0, height * 0.14)], thick * 1.5, metal * 0.8)
    if head == "lamp":
        pen.line([(0, height - 0.2), (1.3, height - 0.12)], 0.14, metal)
        pen.ellipse(1.2, height - 0.2, 0.34, 0.13, jitter(rng, (190, 186, 170), 14))
    elif head == "sign":
        top = height - 0.62
        _sign(rng, pen, 0, top)
        if rng.random() < 0.5:
            _sign(rng, pen, 0, top - 1.15)
    elif head == "light":
        _signal(rng, pen, 0.0, height - 0.85)
    return pen.sprite(rng, light, rough=0.04, bulge=0.25)


def _sign(rng, pen, x, y):
    kind, ident, r = rng.integers(5), IDS["traffic sign"], rng.uniform(0.46, 0.58)
    face = jitter(rng, (226, 224, 218), 8)
    red, blue = jitter(rng, (178, 30, 34), 8), jitter(rng, (34, 72, 150), 8)
    if kind == 0:
        pen.ellipse(x, y, r, r, red, ident=ident)
        pen.ellipse(x, y, r * 0.7, r * 0.7, face, ident=ident)
        pen.box(x - 0.2, y - 0.12, x + 0.2, y + 0.12, (50, 50, 52), ident)
    elif kind == 1:
        pen.poly([(x - r, y - r * 0.8), (x + r, y - r * 0.8), (x, y + r)], red, ident)
        pen.poly(
            [(x - r * 0.6, y - r * 0.55), (x + r * 0.6, y - r * 0.55), (x, y + r * 0.5)],
            face,
            ident,
        )
    elif kind == 2:
        pen.ellipse(x, y, r, r, blue, ident=ident)
        pen.line([(x, y - r * 0.5), (x, y + r * 0.5)], 0.14, face, ident)
    elif kind == 3:
        w = r * rng.uniform(1.2, 2.2)
        pen.box(
            x - w,
            y - r * 0.7,
            x + w,
            y + r * 0.7,
            pick(rng, [(34, 72, 150), (214, 180, 40), (230, 228, 220), (30, 96, 66)], 8),
            ident,
        )
        for k in range(2):
            pen.line(
                [(x - w * 0.7, y - 0.15 + 0.3 * k), (x + w * 0.6, y - 0.15 + 0.3 * k)],
                0.09,
                (240, 240, 236),
                ident,
            )
    else:
        pen.poly([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], face, ident)
        pen.poly(
            [(x, y - r * 0.65), (x + r * 0.65, y), (x, y + r * 0.65), (x - r * 0.65, y)],
            (222, 178, 40),
            ident,
        )


def _signal(rng, pen, x, y):
    ident, lit = IDS["traffic light"], rng.integers(3)
    shell = pick(rng, [(34, 36, 34), (46, 52, 46), (150, 122, 30)], 6)
    pen.box(x - 0.38, y - 0.85, x + 0.38, y + 0.85, shell, ident)
    bright = [(50, 200, 110), (236, 178, 40), (228, 44, 36)]
    for k, color in enumerate(bright):
        shown = np.array(color) * (1 if k == lit else 0.28)
        pen.ellipse(x, y + (k - 1) * 0.52, 0.21, 0.21, shown, ident=ident)


def hedge(rng, length: float, height: float, light: float) -> Sprite:
    """A row of bushes."""
    pen = Pen(length, height, IDS["vegetation"], pixels=256)
    leaf = pick(rng, LEAF, 12)
    for x in np.arange(-length / 2, length / 2 + 0.6, 0.55):
        top = height * rng.uniform(0.6, 0.82)
        pen.box(x - 0.5, 0, x + 0.5, top, leaf * 0.8)
        for _ in range(5):
            y = rng.uniform(0.1, 1) * top
            pen.blob(
                rng,
                x + rng.normal(0, 0.25),
                y,
                0.45,
                0.12 * height + 0.2,
                jitter(rng, leaf * (0.7 + 0.5 * y / height), 10),
                rough=0.25,
            )
    return pen.sprite(rng, light, rough=0.18, bulge=0.15)
