"""Sky, horizon and ground of a scene. Shapes: H, W of the canvas; h rows below the horizon."""

import cv2
import numpy as np

from miniature.drawing.canvas import fractal_noise, jitter, pick
from miniature.drawing.street import IDS, LEAF, PLASTER

__all__ = ["paint_ground", "paint_sky"]


def paint_sky(rng, canvas, camera, weather):
    """Paint the sky with its clouds, and what closes the view at the horizon."""
    h, w = canvas.label.shape
    low = int(camera.horizon) + 2
    t = np.clip(np.arange(low, dtype=np.float32) / camera.horizon, 0, 1)[:, None, None] ** 0.8
    clouds = fractal_noise(rng, low // 4, w // 4, cell=rng.uniform(20, 70))
    clouds = np.clip(clouds * 0.3 + rng.uniform(-0.25, 0.25), 0, 0.6).astype(np.float32)
    clouds = cv2.resize(clouds, (w, low))[..., None]
    sky = (weather.sky_top * (1 - t) + weather.sky_low * t).astype(np.float32)
    white = np.array((236, 234, 230), np.float32) * weather.gain
    canvas.color[:low] = sky + clouds * (white - sky)
    canvas.label[:] = IDS["sky"]
    # Hills, woods and roofs: odds, distance (m), height, and pixels of the outline's waves.
    for name, odds, z, tall, cell in (
        ("terrain", 0.5, 160, 0.03, 160),
        ("vegetation", 0.9, 110, 0.05, 48),
        ("building", 0.6, 80, 0.07, 90),
    ):
        if rng.random() < odds:
            _ridge(rng, canvas, camera, weather, name, z, tall, cell)


def _ridge(rng, canvas, camera, weather, name, z, tall, cell):
    w = camera.width
    ridge = fractal_noise(rng, 1, w, cell=cell)[0]
    if name == "building":
        ridge = np.repeat(ridge[:: w // 24], w // 24 + 1)[:w]
    top = camera.horizon - camera.height * (tall + 0.02 * np.clip(ridge, -1.5, 3))
    rows = slice(max(0, int(top.min())), int(camera.horizon) + 2)
    mask = np.arange(rows.start, rows.stop)[:, None] >= top[None]
    color, amount = weather.haze(z)
    base = pick(rng, PLASTER if name == "building" else LEAF, 12) * weather.gain
    grain = 1 + 0.1 * fractal_noise(rng, *mask.shape, cell=12)[mask][:, None]
    canvas.color[rows][mask] = base * grain * (1 - amount) + color * amount
    canvas.label[rows][mask] = IDS[name]


def paint_ground(rng, canvas, camera, weather, road):
    """Paint road, kerbs, pavements and soil, with markings, puddles and haze."""
    first, x, z = camera.ground()
    kinds, bright, palette = _strips(rng, x, z, road)
    tile = fractal_noise(rng, 512, 512, cell=128)
    near = np.broadcast_to(np.minimum(z, 90), x.shape)
    rough = cv2.remap(tile, np.mod(x * 14, 511), np.mod(near * 14, 511), cv2.INTER_LINEAR)
    grain = 0.05 * rough + 0.04 * fractal_noise(rng, *x.shape, cell=6)
    grain[kinds == 0] *= 2.6  # grass and soil are rougher than stone
    color = palette[kinds] * (bright * (1 + grain))[..., None]
    _markings(rng, color, x, z, road, rough)
    names = ("terrain", "sidewalk", "sidewalk", "road")
    canvas.label[first:] = np.array([IDS[name] for name in names])[kinds]
    if weather.name == "rain":  # puddles mirror the sky in the wet parts of road and pavement
        rows = np.clip(first - 1 - np.arange(len(color)), 0, None)
        wet = np.clip(rough * 0.5 + 0.25, 0, 0.6) * (kinds > 0) * np.float32(0.7)
        color += wet[..., None] * (canvas.color[rows] - color)
    tint, amount = weather.haze(z)
    color *= weather.gain * (1 - amount[..., None])
    canvas.color[first:] = color + (tint * amount[..., None]).astype(np.float32)


def _strips(rng, x, z, road):
    """Return kind (h, W) 0 soil 1 pavement 2 kerb 3 road, brightness (h, W), and colours (4, 3)."""
    stone = pick(rng, [(150, 146, 140), (126, 122, 118), (162, 140, 124), (138, 138, 142)], 14)
    soil = pick(rng, [(98, 112, 62), (124, 116, 78), (140, 122, 92), (84, 100, 58)], 14)
    tar = pick(rng, [(98, 98, 100), (80, 80, 84), (118, 116, 112), (128, 122, 114)], 12)
    palette = np.array([soil, stone, stone * rng.choice([0.7, 1.25]), tar], np.float32)
    # Without a verge the pavement reaches to the houses.
    reach = [w + (2.0 if v == 0 else 0.0) for w, v in zip(road.pavement, road.verge, strict=True)]
    kinds = ((x > road.left - reach[0]) & (x < road.right + reach[1])).astype(np.uint8)
    on_road = (x > road.left) & (x < road.right)
    kinds[(x > road.left - 0.16) & (x < road.right + 0.16)] = 2
    kinds[on_road] = 3
    slab = rng.choice([0.5, 0.8, 1.2])
    joint = ((np.mod(x, slab) < 0.05) | (np.mod(z, slab) < 0.07)) & (z < 22) & (kinds == 1)
    bright = np.where(joint, np.float32(0.8), np.float32(1))
    patch = (np.abs(x - rng.uniform(-2, 2)) < 0.9) & (np.mod(z + rng.uniform(0, 9), 17) < 6)
    bright[patch & on_road] = rng.choice([0.88, 1.1])
    ruts = 0.06 * np.exp(-(((np.mod(x - 0.4, 1.7) - 0.85) / 0.3) ** 2))
    return kinds, bright - np.where(on_road, ruts, 0), palette


def _markings(rng, color, x, z, road, rough):
    """Paint the middle line, edge lines and a zebra crossing, worn where the ground is rough."""
    paint = jitter(rng, (214, 212, 204) if rng.random() < 0.85 else (208, 176, 70), 12)
    middle = (road.left + road.right) / 2 - rng.uniform(0, 0.6)
    solid = rng.random() < 0.3
    stripe = (np.abs(x - middle) < 0.09) & ((np.mod(z, 6) < 3) | solid)
    if rng.random() < 0.6:
        stripe |= (np.abs(x - road.left - 0.4) < 0.07) | (np.abs(x - road.right + 0.4) < 0.07)
    if road.crossing:
        stripe |= (np.abs(z - road.crossing) < 1.5) & (np.mod(x, 1.0) < 0.5)
    stripe &= (x > road.left) & (x < road.right) & (z < 60)
    cover = (0.75 - 0.2 * np.clip(rough[stripe], 0, 2))[:, None]
    color[stripe] = color[stripe] * (1 - cover) + paint * cover
