"""What stands in the streets of the miniature: buildings, trees, posts, people, vehicles.

Each function draws one thing as a `Sprite` whose ids are Cityscapes label ids.
"""

import numpy as np

from .miniature_canvas import Pen, Sprite, fractal_noise, jitter, pick

__all__ = [
    "IDS",
    "bicycle",
    "car_rear",
    "car_side",
    "facade",
    "fence",
    "hedge",
    "person",
    "post",
    "tree",
    "truck_rear",
    "truck_side",
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
SKIN = [(226, 184, 156), (190, 140, 108), (132, 92, 68), (92, 62, 48)]
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
    step, joint = rng.choice([0.25, 0.5, 0.9]), base * 0.78
    for row, y in enumerate(np.arange(0, height, step)):
        pen.line([(-length / 2, y), (length / 2, y)], 0.03, joint)
        for x in np.arange(-length / 2 + (row % 2) * step, length / 2, 2 * step):
            pen.line([(x, y), (x, y + step)], 0.03, joint)
    if rng.random() < 0.4:
        for _ in range(rng.integers(1, 4)):
            x = rng.uniform(-length / 2, length / 2)
            pen.line(
                np.stack([x + np.cumsum(rng.normal(0.2, 0.3, 7)), rng.uniform(0.3, height - 0.3, 7)], 1),
                0.12, pick(rng, PAINT, 10),
            )  # fmt: skip
    pen.box(-length / 2, height - 0.16, length / 2, height, base * 1.12)
    return pen.sprite(rng, light, rough=0.1, bulge=0)


def fence(rng, length: float, height: float, light: float) -> Sprite:
    """A fence: boards, pickets, or rails on posts; labelled whole, gaps included, as Cityscapes does."""
    pen = Pen(length, height, IDS["fence"], pixels=256)
    kind, base = (
        rng.integers(3),
        pick(rng, [(110, 84, 60), (190, 188, 182), (70, 76, 72), (60, 62, 66)], 14),
    )
    backdrop = pick(rng, LEAF + [(96, 92, 84), (120, 116, 108)], 10)
    pen.box(-length / 2, 0, length / 2, height * 0.97, backdrop * 0.8)
    noise = 1 + 0.2 * fractal_noise(rng, *pen.ids.shape, cell=16)
    pen.color[:] = np.clip(pen.color * noise[..., None], 0, 255)
    step = (0.24, 0.3, 1.6)[kind]
    for x in np.arange(-length / 2, length / 2 + step, step):
        pen.line([(x, 0), (x, height)], (0.19, 0.12, 0.14)[kind], jitter(rng, base, 7))
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


def person(rng, light: float, ident: int = IDS["person"]) -> Sprite:
    """Somebody standing or walking, 1.5 to 1.95 m tall, sometimes with a bag or a coat."""
    height = rng.uniform(1.5, 1.95)
    pen = Pen(1.1, height, ident)
    stride, cloth, trousers = rng.uniform(0, 0.3), pick(rng, CLOTH, 14), pick(rng, CLOTH[:5], 12)
    skin, shoe = pick(rng, SKIN, 8), pick(rng, CLOTH, 6) * 0.6
    hip, shoulder = 0.5 * height, 0.82 * height
    for side in (-1, 1):
        foot = side * (0.07 + stride * 0.7)
        pen.line(
            [(side * 0.08, hip), (0.6 * foot + 0.04, hip * 0.5), (foot, 0.09)],
            0.16,
            trousers * (1 + 0.1 * side),
        )
        pen.line([(foot - 0.04, 0.04), (foot + 0.08, 0.04)], 0.09, shoe)
    coat = hip * rng.choice([0.62, 0.95, 1.0])
    pen.poly([(-0.21, shoulder), (0.21, shoulder), (0.23, coat), (-0.23, coat)], cloth)
    for side in (-1, 1):
        swing = side * rng.uniform(0.0, 0.22)
        hand = (side * 0.26 + swing, hip * 0.96)
        pen.line(
            [(side * 0.22, shoulder - 0.04), (side * 0.3 + swing * 0.3, 0.66 * height), hand],
            0.11,
            cloth * 0.88,
        )
        pen.ellipse(*hand, 0.05, 0.06, skin)
    pen.line([(0, shoulder), (0, shoulder + 0.08)], 0.12, skin)
    pen.ellipse(0, height - 0.14, 0.11, 0.14, skin)
    pen.poly(
        [
            (-0.12, height - 0.13),
            (-0.1, height),
            (0.1, height),
            (0.12, height - 0.11),
            (0, height - 0.07),
        ],
        pick(rng, CLOTH, 10) * 0.7,
    )
    if rng.random() < 0.35:
        side = rng.choice([-1, 1])
        pen.box(side * 0.3 - 0.13, hip * 0.62, side * 0.3 + 0.13, hip * 0.98, pick(rng, CLOTH, 16))
    return pen.sprite(rng, light, rough=0.07, bulge=0.6)


def bicycle(rng, light: float, ridden: bool) -> Sprite:
    """A bicycle from the side, alone or with its rider; gaps of wheels and frame belong to it."""
    pen = Pen(2.0, 1.85 if ridden else 1.15, IDS["bicycle"])
    paint, r = pick(rng, PAINT, 14), 0.36
    for x in (-0.55, 0.55):
        pen.ellipse(x, r, r, r, jitter(rng, (96, 96, 94), 14))
        pen.arc(x, r, r - 0.03, r - 0.03, 0, 360, 0.08, (26, 26, 28))
        pen.line([(x - r * 0.8, r), (x + r * 0.8, r)], 0.02, (170, 170, 170))
        pen.line([(x, r * 0.2), (x, r * 1.8)], 0.02, (170, 170, 170))
    pen.line([(-0.55, r), (-0.2, 0.85), (0.38, 0.88), (0.0, 0.34), (-0.2, 0.85)], 0.09, paint)
    pen.line([(-0.55, r), (0.0, 0.34)], 0.08, paint)
    pen.line([(0.55, r), (0.36, 1.0), (0.2, 1.05)], 0.08, paint)
    pen.line([(-0.34, 0.93), (-0.1, 0.93)], 0.1, (34, 32, 30))
    if ridden:
        _rider(rng, pen)
    sprite = pen.sprite(rng, light, rough=0.05, bulge=0.4)
    return sprite.flipped() if rng.random() < 0.5 else sprite


def _rider(rng, pen):
    ident, cloth, trousers, skin = (
        IDS["rider"],
        pick(rng, CLOTH, 14),
        pick(rng, CLOTH[:5], 10),
        pick(rng, SKIN, 8),
    )
    for knee, foot in (((0.14, 0.62), (0.06, 0.26)), ((0.2, 0.78), (-0.04, 0.42))):
        pen.line([(-0.2, 0.98), knee, foot], 0.17, trousers, ident)
    pen.poly([(-0.36, 0.92), (-0.06, 0.92), (0.16, 1.5), (-0.14, 1.54)], cloth, ident)
    pen.line([(0.04, 1.44), (0.2, 1.18), (0.3, 1.06)], 0.12, cloth * 0.85, ident)
    pen.ellipse(0.1, 1.68, 0.12, 0.14, skin, ident=ident)
    helmet = pick(rng, PAINT, 10)
    pen.poly([(-0.05, 1.7), (-0.03, 1.84), (0.18, 1.85), (0.25, 1.72)], helmet, ident)


def car_rear(rng, light: float, paint, front: bool) -> Sprite:
    """A car from behind or from the front, 1.8 x 1.5 m, in the given paint."""
    pen = Pen(1.9, 1.55, IDS["car"])
    glass, dark = pick(rng, GLASS, 10), np.array((30, 30, 32))
    for side in (-1, 1):
        pen.box(side * 0.68 - 0.14, 0, side * 0.68 + 0.14, 0.5, (24, 24, 26))
    pen.poly([(-0.66, 0.9), (-0.52, 1.5), (0.52, 1.5), (0.66, 0.9)], paint * 0.94)
    pen.poly([(-0.58, 0.94), (-0.47, 1.42), (0.47, 1.42), (0.58, 0.94)], glass)
    pen.poly(
        [(-0.88, 0.3), (-0.9, 0.8), (-0.74, 0.97), (0.74, 0.97), (0.9, 0.8), (0.88, 0.3)], paint
    )
    pen.box(-0.86, 0.22, 0.86, 0.44, dark if rng.random() < 0.5 else paint * 0.75)
    lamp = jitter(rng, (240, 236, 214) if front else (176, 26, 24), 8)
    for side in (-1, 1):
        pen.box(side * 0.72 - 0.15, 0.66, side * 0.72 + 0.13, 0.82, lamp)
        pen.ellipse(side * 0.94, 1.0, 0.08, 0.07, paint * 0.8)
    if front:
        pen.box(-0.45, 0.5, 0.45, 0.7, dark)
    pen.box(-0.26, 0.46, 0.26, 0.58, (226, 224, 210))
    return pen.sprite(rng, light, rough=0.03, bulge=0.6)


def car_side(rng, light: float, paint) -> Sprite:
    """The same from the side, 4.3 x 1.5 m, nose to the right."""
    pen = Pen(4.3, 1.55, IDS["car"])
    glass, nose = pick(rng, GLASS, 10), rng.uniform(0.5, 1.15)
    pen.poly(
        [(-2.15, 0.3), (-2.15, 0.9), (-2.0, 1.0), (1.8, 0.95), (2.15, 0.84), (2.15, 0.3)], paint
    )
    roof = [(-2.1, 0.95), (-1.75, 1.48), (0.35, 1.5), (2.0 - nose, 0.94)]
    pen.poly(roof, paint * 0.95)
    pen.poly([(-1.9, 0.98), (-1.62, 1.4), (-0.5, 1.42), (-0.5, 0.98)], glass)
    pen.poly([(-0.4, 0.98), (-0.4, 1.42), (0.28, 1.42), (1.75 - nose, 0.98)], glass)
    pen.box(-2.1, 0.2, 2.1, 0.34, paint * 0.5)
    for x in (-0.45, 0.85):
        pen.line([(x, 0.36), (x, 0.94)], 0.025, paint * 0.7)
    pen.box(1.9, 0.62, 2.1, 0.74, (238, 232, 208))
    pen.box(-2.1, 0.66, -1.95, 0.84, (170, 26, 24))
    for x in (-1.3, 1.3):
        pen.wheel(x, 0.33, 0.33)
    return pen.sprite(rng, light, rough=0.03, bulge=0.5)


def truck_rear(rng, light: float, paint, front: bool) -> Sprite:
    """A lorry from behind (doors) or from the front (cab), 2.5 x 3.3 m."""
    pen = Pen(2.5, 3.3, IDS["truck"])
    for side in (-1, 1):
        pen.box(side * 0.9 - 0.26, 0, side * 0.9 + 0.26, 0.9, (24, 24, 26))
    pen.box(-1.2, 0.75, 1.2, 3.28, paint)
    pen.box(-1.15, 0.45, 1.15, 0.75, (44, 44, 46))
    if front:
        cab = pick(rng, PAINT, 12)
        pen.box(-1.15, 0.55, 1.15, 2.5, cab)
        pen.poly([(-1.0, 1.5), (-0.95, 2.3), (0.95, 2.3), (1.0, 1.5)], pick(rng, GLASS, 10))
        pen.box(-0.7, 0.8, 0.7, 1.3, cab * 0.55)
    else:
        pen.line([(0, 0.85), (0, 3.2)], 0.05, paint * 0.6)
        for x in (-0.55, 0.55):
            pen.line([(x, 0.9), (x, 3.15)], 0.05, paint * 0.75)
    for side in (-1, 1):
        pen.box(
            side * 0.98 - 0.16,
            0.62,
            side * 0.98 + 0.16,
            0.78,
            (238, 230, 200) if front else (178, 28, 24),
        )
    return pen.sprite(rng, light, rough=0.04, bulge=0.3)


def truck_side(rng, light: float, paint) -> Sprite:
    """The same from the side, 7 x 3.3 m, cab to the right."""
    pen = Pen(7.0, 3.3, IDS["truck"])
    cab, x = pick(rng, PAINT, 12), 1.9
    pen.box(-3.5, 0.75, x - 0.05, 3.28, paint)
    pen.box(-3.5, 0.45, 3.3, 0.85, (48, 48, 50))
    pen.poly([(x, 0.6), (x, 2.6), (3.4, 2.6), (3.5, 1.6), (3.5, 0.5)], cab)
    pen.poly([(2.2, 1.5), (2.2, 2.35), (3.0, 2.35), (3.25, 1.5)], pick(rng, GLASS, 10))
    for k in np.linspace(-3.3, x - 0.3, 7):
        pen.line([(k, 0.9), (k, 3.2)], 0.04, paint * 0.82)
    if rng.random() < 0.6:
        pen.box(-2.6, 1.6, 0.9, 2.5, pick(rng, PAINT, 14))
    for k in (-2.6, -1.6, 2.6):
        pen.wheel(k, 0.48, 0.48)
    return pen.sprite(rng, light, rough=0.04, bulge=0.3)


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
