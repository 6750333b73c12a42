"""One road scene of the miniature: camera, weather, ground, street sides, traffic.

A scene is painted at twice its size, far things first, and reduced at the end. X is metres to the
right of the camera, Y metres above the ground, Z metres ahead.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

from . import miniature_street as street
from .miniature_canvas import Canvas, Sprite, fractal_noise, jitter, pick
from .miniature_street import IDS

__all__ = ["ANOMALY_ID", "Camera", "Extra", "Scene", "Weather", "draw_scene"]

ANOMALY_ID = 254
_OVERSAMPLE = 2

# name: light on everything, sky above, sky at the horizon, haze distance (m), shadow, noise sigma
_WEATHERS = {
    "clear": ((1.06, 1.03, 0.97), (96, 140, 196), (188, 206, 220), 260, 0.55, 4),
    "overcast": ((0.92, 0.94, 0.97), (176, 182, 190), (206, 208, 210), 150, 0.28, 5),
    "hazy": ((0.98, 0.97, 0.94), (186, 190, 192), (204, 204, 200), 60, 0.22, 5),
    "evening": ((0.94, 0.78, 0.62), (104, 112, 150), (226, 170, 120), 160, 0.45, 6),
    "dusk": ((0.52, 0.54, 0.64), (54, 62, 92), (120, 116, 130), 130, 0.2, 8),
    "rain": ((0.74, 0.77, 0.82), (128, 134, 144), (158, 162, 168), 75, 0.15, 7),
}


@dataclass(frozen=True)
class Weather:
    """Light of one scene; colours RGB 0..255, `light` -1 (from the left) to 1."""

    name: str
    gain: np.ndarray
    sky_top: np.ndarray
    sky_low: np.ndarray
    haze_distance: float
    shadow: float
    noise: float
    light: float

    def haze(self, z: float):
        """(colour, amount) that things `z` metres away are mixed with."""
        return self.sky_low, float(1 - np.exp(-max(0.0, z - 4) / self.haze_distance))


@dataclass(frozen=True)
class Camera:
    """A pinhole on a road that may bend: sideways offset grows with `bend` times Z squared."""

    width: int
    height: int
    focal: float
    x: float
    horizon: float
    above: float
    bend: float

    def point(self, x, y, z):
        """Pixel of a point in space; x is counted across the road."""
        u = self.x + self.focal * (x / z + self.bend * z)
        return u, self.horizon + self.focal * (self.above - y) / z

    def scale(self, z) -> float:
        """Pixels to the metre at distance z."""
        return self.focal / z

    def ground(self):
        """Ground under the pixels: first row below the horizon, then x (h, W) and z (h, 1) float32."""
        first = int(np.ceil(self.horizon))
        rows = np.arange(first, self.height, dtype=np.float32)[:, None] + 0.5 - self.horizon
        z = self.focal * self.above / np.maximum(rows, 0.5)
        u = (np.arange(self.width, dtype=np.float32)[None] + 0.5 - self.x) / self.focal
        x = u * z - self.bend * z**2
        return first, x.astype(np.float32), z.astype(np.float32)


@dataclass(frozen=True)
class Extra:
    """An object that is set into the scene beside what the scene draws itself."""

    sprite: Sprite
    x: float
    z: float
    label: int = ANOMALY_ID
    name: str = ""


@dataclass
class Scene:
    """A finished scene: image (H, W, 3) uint8, labels (H, W) uint8 Cityscapes ids (and 254)."""

    image: np.ndarray
    labels: np.ndarray
    weather: Weather
    camera: Camera
    extras: list = field(default_factory=list)


@dataclass(frozen=True)
class _Street:
    """Cross-section: the road lies between `left` and `right`, then pavement, then what `side` says."""

    left: float
    right: float
    pavement: tuple[float, float]
    verge: tuple[float, float]
    crossing: float  # distance of a zebra crossing, 0 for none


def _weather(rng) -> Weather:
    name = rng.choice(list(_WEATHERS), p=[0.28, 0.26, 0.12, 0.14, 0.08, 0.12])
    gain, top, low, far, shadow, noise = _WEATHERS[name]
    return Weather(
        name=str(name),
        gain=np.array(gain, np.float32) * np.float32(rng.uniform(0.88, 1.1)),
        sky_top=jitter(rng, top, 14),
        sky_low=jitter(rng, low, 10),
        haze_distance=far * rng.uniform(0.8, 1.3),
        shadow=shadow,
        noise=noise * rng.uniform(0.6, 1.3),
        light=float(rng.uniform(0.3, 1) * rng.choice([-1, 1])),
    )


def _camera(rng, width: int, height: int) -> Camera:
    return Camera(
        width=width,
        height=height,
        focal=height * rng.uniform(1.45, 1.85),
        x=width * rng.uniform(0.42, 0.58),
        horizon=height * rng.uniform(0.36, 0.46),
        above=rng.uniform(1.6, 2.3),
        bend=rng.normal(0, 0.0016),
    )


def _street(rng) -> _Street:
    return _Street(
        left=-rng.uniform(3.2, 5.5),
        right=rng.uniform(2.3, 3.6),
        pavement=tuple(rng.uniform(1.6, 3.4, 2)),
        verge=tuple(np.where(rng.random(2) < 0.55, rng.uniform(1.2, 3.5, 2), 0.0)),
        crossing=float(rng.uniform(7, 18)) if rng.random() < 0.35 else 0.0,
    )


def draw_scene(
    rng: np.random.Generator,
    width: int,
    height: int,
    extras: Callable | None = None,
) -> Scene:
    """Draw a road scene.

    Args:
        rng: all randomness comes from here.
        width, height: size in pixels of the result.
        extras: called as `extras(rng, weather, on_road)` with `on_road(rng, z_near, z_far)` ->
            (x, z) a free spot on the road; returns a list of `Extra` to set into the scene.
    """
    weather = _weather(rng)
    camera = _camera(rng, width * _OVERSAMPLE, height * _OVERSAMPLE)
    road = _street(rng)
    canvas = Canvas(camera.height, camera.width)
    _paint_sky(rng, canvas, camera, weather)
    _paint_ground(rng, canvas, camera, weather, road)
    added = extras(rng, weather, _spots(road)) if extras else []
    items = _sides(rng, weather, road) + _traffic(rng, weather, road, added)
    items += [_set_down(weather, extra) for extra in added]
    for _, paint in sorted(items, key=lambda item: -item[0]):
        paint(canvas, camera)
    image = _expose(rng, canvas, camera, weather)
    labels = canvas.label[::_OVERSAMPLE, ::_OVERSAMPLE].copy()
    _add_void(rng, image, labels)
    return Scene(image, labels, weather, camera, added)


def _spots(road):
    def on_road(rng, near, far):
        z = float(np.exp(rng.uniform(np.log(near), np.log(far))))
        return float(rng.uniform(road.left * 0.6, road.right * 0.75)), z

    return on_road


def _paint_sky(rng, canvas, camera, weather):
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
    for k, (name, z) in enumerate((("terrain", 160), ("vegetation", 110), ("building", 80))):
        if rng.random() < (0.5, 0.9, 0.6)[k]:
            _ridge(rng, canvas, camera, weather, k, name, z)


def _ridge(rng, canvas, camera, weather, k, name, z):
    """What closes the view at the horizon: hills, woods, or roofs."""
    w = camera.width
    ridge = fractal_noise(rng, 1, w, cell=(160, 48, 90)[k])[0]
    if name == "building":
        ridge = np.repeat(ridge[:: w // 24], w // 24 + 1)[:w]
    top = camera.horizon - camera.height * ((0.03, 0.05, 0.07)[k] + 0.02 * np.clip(ridge, -1.5, 3))
    rows = slice(max(0, int(top.min())), int(camera.horizon) + 2)
    mask = np.arange(rows.start, rows.stop)[:, None] >= top[None]
    color, amount = weather.haze(z)
    base = pick(rng, street.LEAF if k < 2 else street.PLASTER, 12) * weather.gain
    grain = 1 + 0.1 * fractal_noise(rng, *mask.shape, cell=12)[mask][:, None]
    canvas.color[rows][mask] = base * grain * (1 - amount) + color * amount
    canvas.label[rows][mask] = IDS[name]


def _paint_ground(rng, canvas, camera, weather, road):
    first, x, z = camera.ground()
    kinds, bright, palette = _strips(rng, x, z, road)
    tile = fractal_noise(rng, 512, 512, cell=128)
    near = np.broadcast_to(np.minimum(z, 90), x.shape)
    rough = cv2.remap(tile, np.mod(x * 14, 511), np.mod(near * 14, 511), cv2.INTER_LINEAR)
    grain = 0.05 * rough + 0.04 * fractal_noise(rng, *x.shape, cell=6)
    grain[kinds == 0] *= 2.6  # grass and soil are rougher than stone
    color = palette[kinds] * (bright * (1 + grain))[..., None]
    _markings(rng, color, x, z, road, rough)
    canvas.label[first:] = np.array([IDS[n] for n in ("terrain", "sidewalk", "sidewalk", "road")])[
        kinds
    ]
    if weather.name == "rain":
        _puddles(canvas, color, first, rough, kinds)
    amount = (1 - np.exp(-np.maximum(z - 4, 0) / weather.haze_distance))[..., None]
    color *= weather.gain * (1 - amount)
    color += (weather.sky_low * amount).astype(np.float32)
    canvas.color[first:] = color


def _strips(rng, x, z, road):
    """Strips of the ground: kind (h, W) 0 terrain 1 pavement 2 kerb 3 road, brightness, colours."""
    stone = pick(rng, [(150, 146, 140), (126, 122, 118), (162, 140, 124), (138, 138, 142)], 14)
    palette = [
        pick(rng, [(98, 112, 62), (124, 116, 78), (140, 122, 92), (84, 100, 58)], 14),
        stone,
        stone * rng.choice([0.7, 1.25]),
        pick(rng, [(98, 98, 100), (80, 80, 84), (118, 116, 112), (128, 122, 114)], 12),
    ]
    reach = [w + (2.0 if v == 0 else 0.0) for w, v in zip(road.pavement, road.verge, strict=True)]
    kinds = ((x > road.left - reach[0]) & (x < road.right + reach[1])).astype(np.uint8)
    on_road = (x > road.left) & (x < road.right)
    kinds[(x > road.left - 0.16) & (x < road.right + 0.16)] = 2
    kinds[on_road] = 3
    slab = rng.choice([0.5, 0.8, 1.2])
    joint = ((np.mod(x, slab) < 0.05) | (np.mod(z, slab) < 0.07)) & (z < 22) & (kinds == 1)
    bright = np.where(joint, np.float32(0.8), np.float32(1))
    spot = rng.uniform(-2, 2)
    patch = (np.abs(x - spot) < 0.9) & (np.mod(z + rng.uniform(0, 9), 17) < 6) & on_road
    bright[patch] = rng.choice([0.88, 1.1])
    ruts = 0.06 * np.exp(-(((np.mod(x - 0.4, 1.7) - 0.85) / 0.3) ** 2))
    bright -= np.where(on_road, ruts, 0)
    return kinds, bright, np.array(palette, np.float32)


def _markings(rng, color, x, z, road, rough):
    """Paint the middle line, edge lines and a zebra crossing, worn where the ground is rough."""
    paint = (
        jitter(rng, (214, 212, 204), 12) if rng.random() < 0.85 else jitter(rng, (208, 176, 70), 12)
    )
    middle = (road.left + road.right) / 2 - rng.uniform(0, 0.6)
    dashed = rng.random() < 0.7
    stripe = (np.abs(x - middle) < 0.09) & ((np.mod(z, 6) < 3) | (not dashed))
    if rng.random() < 0.6:
        stripe |= (np.abs(x - road.left - 0.4) < 0.07) | (np.abs(x - road.right + 0.4) < 0.07)
    if road.crossing:
        stripe |= (np.abs(z - road.crossing) < 1.5) & (np.mod(x, 1.0) < 0.5)
    stripe &= (x > road.left) & (x < road.right) & (z < 60)
    cover = (0.75 - 0.2 * np.clip(rough[stripe], 0, 2))[:, None]
    color[stripe] = color[stripe] * (1 - cover) + paint * cover


def _puddles(canvas, color, first, rough, kinds):
    """Mirror the sky in the wet parts of road and pavement."""
    rows = np.clip(first - 1 - np.arange(len(color)), 0, None)
    wet = np.clip(rough * 0.5 + 0.25, 0, 0.6) * (kinds > 0) * np.float32(0.7)
    color += wet[..., None] * (canvas.color[rows] - color)


def _lit(weather, sprite: Sprite) -> Sprite:
    color = np.clip(sprite.color * weather.gain, 0, 255).astype(np.uint8)
    return Sprite(color, sprite.ids, sprite.width, sprite.height)


def _standing(weather, sprite, x, z, label=None, contact=1.0):
    """(distance, painter) of a thing that faces the camera, with its shadow."""
    sprite = _lit(weather, sprite)

    def paint(canvas, camera):
        u, v = camera.point(x, 0, z)
        size = camera.scale(z)
        reach = 0.5 * sprite.width * size * contact
        canvas.darken(
            u - weather.light * reach * 0.8, v, reach * 1.5, max(1.0, 0.16 * reach), weather.shadow
        )
        canvas.darken(u, v, reach * 1.05, max(1.0, 0.1 * reach), 0.5)
        canvas.paste(sprite, u, v, size, label=label, haze=weather.haze(z))

    return z, paint


def _plane(weather, sprite, x0, z0, x1, z1):
    """(distance, painter) of an upright plane from (x0, z0), left in the picture, to (x1, z1)."""
    sprite = _lit(weather, sprite)

    def paint(canvas, camera):
        quad = [camera.point(x0, sprite.height, z0), camera.point(x1, sprite.height, z1)]
        quad += [camera.point(x1, 0, z1), camera.point(x0, 0, z0)]
        canvas.warp(sprite, quad, haze=weather.haze(0.7 * min(z0, z1) + 0.3 * max(z0, z1)))

    return max(z0, z1) - 0.01, paint


def _set_down(weather, extra: Extra):
    return _standing(weather, extra.sprite, extra.x, extra.z, extra.label, contact=0.9)


def _sides(rng, weather, road):
    items = []
    for side in (0, 1):
        sign = (-1, 1)[side]
        edge = (road.left, road.right)[side] + sign * road.pavement[side]
        line = edge + sign * (road.verge[side] + rng.uniform(0.3, 1.5))
        items += _frontage(rng, weather, sign, line)
        items += _greenery(rng, weather, sign, edge, line, road.verge[side])
        items += _posts(rng, weather, sign, (road.left, road.right)[side], edge)
    return items


def _frontage(rng, weather, sign, line):
    """Houses, walls, fences, hedges and gaps along one side, from near to far."""
    items, z = [], rng.uniform(2.2, 4.0)
    kinds, odds = ["house", "wall", "fence", "hedge", "gap"], [0.4, 0.2, 0.24, 0.06, 0.1]
    while z < 62:
        kind = str(rng.choice(kinds, p=odds))
        length = rng.uniform(8, 16) if kind == "house" else rng.uniform(6, 14)
        end = z + length
        if kind == "house":
            items += _house(rng, weather, sign, line, z, end)
        elif kind != "gap":
            draw, tall = {
                "wall": (street.wall, rng.uniform(1.5, 2.8)),
                "fence": (street.fence, rng.uniform(1.2, 2.1)),
                "hedge": (street.hedge, rng.uniform(1.2, 2.2)),
            }[kind]
            items.append(
                _facing(weather, draw(rng, length, tall, weather.light), sign, line, z, end)
            )
            items += _behind(rng, weather, sign, line, z, end)
        else:
            items += _behind(rng, weather, sign, line, z, end)
        z = end + (rng.uniform(0, 2) if rng.random() < 0.3 else 0)
    return items


def _facing(weather, sprite, sign, line, near, far):
    """A plane along the road: on the left its near end is left in the picture, on the right it is right."""
    ends = ((line, near), (line, far)) if sign < 0 else ((line, far), (line, near))
    return _plane(weather, sprite, *ends[0], *ends[1])


def _house(rng, weather, sign, line, near, far):
    tall = rng.uniform(4.5, 13)
    front = street.facade(rng, far - near, tall, weather.light)
    shaded = front.color * rng.uniform(0.7, 0.9)
    side = Sprite(
        shaded.astype(np.uint8)[:, : front.color.shape[1] // 2],
        front.ids[:, : front.ids.shape[1] // 2],
        6.0,
        tall,
    )
    outer = line + sign * 9
    ends = (outer, line) if sign < 0 else (line, outer)
    return [
        _facing(weather, front, sign, line, near, far),
        _plane(weather, side, ends[0], near, ends[1], near),
    ]


def _behind(rng, weather, sign, line, near, far):
    """Trees or a house that look over a wall or a fence."""
    if rng.random() < 0.35:
        return _house(rng, weather, sign, line + sign * rng.uniform(3, 6), near + 0.5, far)
    spots = rng.uniform(near + 0.5, far, rng.integers(1, 4))
    return [
        _standing(
            weather,
            street.tree(rng, rng.uniform(3.5, 8), weather.light),
            line + sign * rng.uniform(2, 6),
            z,
        )
        for z in spots
    ]


def _greenery(rng, weather, sign, edge, line, verge):
    items = []
    for _ in range(rng.integers(1, 4) if verge else rng.integers(0, 2)):
        x, z = rng.uniform(min(edge, line), max(edge, line)), rng.uniform(6, 40)
        tall = rng.uniform(4, 7.5) if rng.random() < 0.6 else rng.uniform(0.7, 1.6)
        items.append(_standing(weather, street.tree(rng, tall, weather.light), x, z))
    return items


def _posts(rng, weather, sign, curb, edge):
    items = []
    for _ in range(rng.integers(2, 4)):
        head = str(rng.choice(["lamp", "sign", "light", ""], p=[0.18, 0.4, 0.34, 0.08]))
        tall = {"lamp": rng.uniform(4.5, 6), "": rng.uniform(2.5, 5)}.get(
            head, rng.uniform(2.9, 3.8)
        )
        x, z = (
            curb + sign * rng.uniform(0.4, 1.0),
            float(np.exp(rng.uniform(np.log(6.5), np.log(22)))),
        )
        sprite = street.post(rng, tall, weather.light, head)
        items.append(
            _standing(weather, sprite.flipped() if sign > 0 else sprite, x, z, contact=0.12)
        )
    return items


def _traffic(rng, weather, road, extras):
    """Vehicles, cyclists and people, none on top of another or hiding an extra object."""
    taken = [(extra.x, extra.z, 0.8 + extra.sprite.width / 2) for extra in extras]
    items = []

    def free(x, z, half, depth):
        clash = any(abs(x - a) < half + b and abs(z - c) < depth for a, c, b in taken)
        hides = any(
            z < e.z and abs(x / z - e.x / e.z) < half / z + 0.5 * e.sprite.width / e.z
            for e in extras
        )
        if not (clash or hides):
            taken.append((x, z, half))
        return not (clash or hides)

    for make, count in (
        (_vehicle, rng.integers(3, 6)),
        (_cyclist, rng.integers(1, 3)),
        (_walker, rng.integers(2, 6)),
    ):
        for _ in range(count):
            items += make(rng, weather, road, free)
    return items


def _vehicle(rng, weather, road, free):
    lorry = rng.random() < 0.26
    half, length = (1.25, 7.0) if lorry else (0.95, 4.3)
    z = float(np.exp(rng.uniform(np.log(7.5), np.log(40))))
    lane = rng.choice(["own", "oncoming", "parked left", "parked right"], p=[0.2, 0.25, 0.25, 0.3])
    x = {
        "own": rng.uniform(-0.3, 0.8),
        "oncoming": road.left * 0.55,
        "parked left": road.left + half * rng.uniform(-0.3, 1.1),
        "parked right": road.right - half * rng.uniform(-0.3, 1.1),
    }[str(lane)]
    if not free(x, z, half, length + 1):
        return []
    paint = pick(rng, street.PAINT, 16)
    front = "left" in lane or lane == "oncoming"
    draw_end, draw_side = (
        (street.truck_rear, street.truck_side) if lorry else (street.car_rear, street.car_side)
    )
    end, side = (
        draw_end(rng, weather.light, paint, bool(front)),
        draw_side(rng, weather.light, paint),
    )
    return [_solid(weather, end, side, x, z, half, length, front)]


def _solid(weather, end, side, x, z, half, length, front):
    """A vehicle as two planes: the end that faces the camera and the side it shows."""
    side = Sprite((side.color * 0.88).astype(np.uint8), side.ids, side.width, side.height)
    right = x < 0  # the side that the camera sees
    # Sides are drawn nose right. Seen from the camera, the near end of the side is left in the
    # picture when the right flank shows; the nose is near when the vehicle comes towards us.
    mirrored = side.flipped() if front == right else side
    flank = x + (half if right else -half) * 0.97
    ends = ((flank, z), (flank, z + length)) if right else ((flank, z + length), (flank, z))
    _, paint_side = _plane(weather, mirrored, *ends[0], *ends[1])
    _, paint_end = _standing(weather, end, x, z)

    def paint(canvas, camera):
        u, v = camera.point(x, 0, z + length * 0.45)
        size = camera.scale(z + length * 0.45)
        canvas.darken(u, v, half * size * 1.5, max(1.0, 0.35 * half * size), 0.55)
        paint_side(canvas, camera)
        paint_end(canvas, camera)

    return z, paint


def _cyclist(rng, weather, road, free):
    z, ridden = float(np.exp(rng.uniform(np.log(6.5), np.log(16)))), bool(rng.random() < 0.62)
    side = rng.choice([-1, 1])
    curb = road.left if side < 0 else road.right
    x = curb - side * rng.uniform(0.2, 1.6) if ridden else curb + side * rng.uniform(0.5, 1.8)
    if not free(x, z, 1.0, 1.5):
        return []
    return [_standing(weather, street.bicycle(rng, weather.light, ridden), x, z)]


def _walker(rng, weather, road, free):
    z = float(np.exp(rng.uniform(np.log(6), np.log(24))))
    side = int(rng.integers(2))
    x = (
        road.left - rng.uniform(0.4, road.pavement[0]),
        road.right + rng.uniform(0.4, road.pavement[1]),
    )[side]
    if rng.random() < 0.2:
        x, z = rng.uniform(road.left, road.right), max(z, 9)
    if not free(x, z, 0.4, 1.0):
        return []
    return [_standing(weather, street.person(rng, weather.light), x, z)]


def _expose(rng, canvas, camera, weather) -> np.ndarray:
    """Reduce to the final size and add what a camera adds: vignette, softness, noise, tone."""
    size = (camera.width // _OVERSAMPLE, camera.height // _OVERSAMPLE)
    image = cv2.resize(np.clip(canvas.color, 0, 255), size, interpolation=cv2.INTER_AREA)
    ys, xs = np.mgrid[-1 : 1 : size[1] * 1j, -1 : 1 : size[0] * 1j].astype(np.float32)
    image *= (1 - rng.uniform(0.04, 0.2) * (xs**2 + ys**2) / 2)[..., None]
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.75))
    image = 255 * (np.clip(image, 0, 255) / 255) ** np.float32(rng.uniform(0.85, 1.15))
    image += rng.standard_normal(image.shape, np.float32) * np.float32(weather.noise)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def _add_void(rng, image, labels):
    """Bonnet of the own car, a blind frame, and sometimes a box-shaped `static` area."""
    h, w = labels.shape
    if rng.random() < 0.75:
        x = np.linspace(-1, 1, w)
        top = h * (1 - rng.uniform(0.05, 0.1) * np.sqrt(np.clip(1 - (x / 0.96) ** 2, 0, 1)))
        mask = np.arange(h)[:, None] > top[None]
        sheen = (1 - 0.4 * np.abs(x))[None, :, None] * pick(rng, street.PAINT, 8)
        image[mask] = np.clip(
            0.55 * np.broadcast_to(sheen, image.shape) + 0.25 * image.mean((0, 1)), 0, 255
        )[mask]
        labels[mask] = IDS["ego vehicle"]
    border = max(1, round(h / 128))
    for part in (np.s_[:border], np.s_[-border:], np.s_[:, :border], np.s_[:, -border:]):
        labels[part] = IDS["out of roi"]
