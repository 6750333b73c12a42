"""The pictures of the miniature: closed-set scenes, COCO images, benchmark images; no files.

A picture depends only on (seed, set, index). Shapes: H, W of the image.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from anoseg_d2.utils.constants import ANOMALY, KNOWN, PASTED_ID, VOID
from miniature.drawing import street
from miniature.drawing.anomalies import LARGE, SMALL
from miniature.drawing.canvas import Canvas, Sprite, fractal_noise, pick
from miniature.drawing.objects import OBJECTS
from miniature.drawing.scene import Extra, draw_scene
from miniature.drawing.street import IDS

__all__ = ["BENCHMARKS", "COCO_SIZE", "draw_benchmark", "draw_closed_set", "draw_coco"]

COCO_SIZE = (320, 240)
_KINDS = {**LARGE, **SMALL}
_VOID_IDS = (IDS["ego vehicle"], IDS["out of roi"])


@dataclass(frozen=True)
class _Benchmark:
    """What one benchmark shows, how many of it, how far away (m), and its image format.

    On an obstacle track everything off the road is void; pasted objects ignore the perspective.
    """

    images: int
    kinds: tuple[str, ...]
    count: tuple[int, int]
    distance: tuple[float, float]
    suffix: str
    obstacle_track: bool = False
    pasted: bool = False


BENCHMARKS = {
    "road_anomaly": _Benchmark(8, (*LARGE,), (1, 2), (7, 17), ".jpg"),
    "road_anomaly21": _Benchmark(8, (*_KINDS,), (1, 3), (7, 18), ".jpg"),
    "road_obstacle21": _Benchmark(10, (*SMALL,), (1, 3), (6, 17), ".webp", obstacle_track=True),
    "fishyscapes_lostandfound": _Benchmark(10, (*SMALL,), (1, 3), (5.5, 13), ".png"),
    "fishyscapes_static": _Benchmark(8, (*_KINDS,), (1, 2), (5, 14), ".png", pasted=True),
}
# Every set has its own stream of random numbers: its place in this list.
_STREAMS = ("train", "val", "coco", "categories", *BENCHMARKS)


def _rng(seed: int, stream: str, *index: int) -> np.random.Generator:
    return np.random.default_rng([seed, _STREAMS.index(stream), *index])


def draw_closed_set(seed: int, split: str, index: int, size: tuple[int, int]):
    """Draw one scene of the closed set.

    Args:
        seed, index: which picture.
        split: "train" or "val".
        size: (W, H).
    Returns:
        image (H, W, 3) uint8 RGB, labels (H, W) uint8 Cityscapes label ids.
    """
    scene = draw_scene(_rng(seed, split, index), *size)
    return scene.image, scene.labels


def draw_benchmark(seed: int, name: str, index: int, size: tuple[int, int]):
    """Draw one benchmark image; every fourth shows no anomaly.

    Args:
        seed, index: which picture.
        name: key of `BENCHMARKS`.
        size: (W, H).
    Returns:
        image (H, W, 3) uint8 RGB, label (H, W) uint8 0 known, 1 anomaly, 255 void.
    Raises:
        RuntimeError: twenty attempts left no anomaly visible.
    """
    plan, empty = BENCHMARKS[name], index % 4 == 2
    for attempt in range(20):
        rng = _rng(seed, name, index, attempt)
        count = 0 if empty else rng.integers(plan.count[0], plan.count[1] + 1)
        kinds = [str(kind) for kind in rng.choice(plan.kinds, count, replace=False)]
        draw = _paste_on_scene if plan.pasted else _set_into_scene
        image, labels = draw(rng, kinds, plan, size)
        label = np.where(labels == PASTED_ID, ANOMALY, KNOWN).astype(np.uint8)
        label[np.isin(labels, _VOID_IDS)] = VOID
        if plan.obstacle_track:
            label[(labels != IDS["road"]) & (labels != PASTED_ID)] = VOID
        if empty or (label == ANOMALY).sum() >= 0.0008 * label.size:
            return image, label
    raise RuntimeError(f"{name} image {index} of seed {seed}: no visible anomaly in 20 attempts")


def _anomaly(rng, kind, light):
    sprite = _KINDS[kind](rng, light)
    return sprite.flipped() if rng.random() < 0.5 else sprite


def _set_into_scene(rng, kinds, plan, size):
    """Objects that stand in the scene, in its perspective, light, haze and noise."""

    def extras(rng, weather, on_road):
        chosen = []
        for kind in kinds:
            x, z = on_road(rng, *plan.distance)
            sprite = _anomaly(rng, kind, weather.light)
            chosen.append(Extra(sprite, x, max(z, 2.6 * sprite.width)))  # far enough to fit in
        return chosen

    scene = draw_scene(rng, *size, extras)
    return scene.image, scene.labels


def _paste_on_scene(rng, kinds, plan, size):
    """Objects blended onto a finished scene, wherever they fall, as in Fishyscapes Static."""
    scene = draw_scene(rng, *size)
    weather, canvas = scene.weather, Canvas(size[1], size[0])
    canvas.color[:], canvas.label[:] = scene.image, scene.labels
    for kind in kinds:
        sprite = _anomaly(rng, kind, weather.light).lit(weather.gain)
        scale = rng.uniform(0.16, 0.42) * size[1] / max(sprite.width, sprite.height)
        x, y = rng.uniform(0.12, 0.88) * size[0], rng.uniform(0.45, 0.9) * size[1]
        haze, soft = (weather.sky_low, rng.uniform(0, 0.2)), rng.uniform(0.6, 1.4)
        canvas.paste(sprite, x, y, scale, label=PASTED_ID, haze=haze, soft=soft)
    grain = rng.normal(0, 0.5 * weather.noise, canvas.color.shape)
    canvas.color += grain * (canvas.label == PASTED_ID)[..., None]
    image = np.clip(np.round(canvas.color), 0, 255).astype(np.uint8)
    void = np.isin(scene.labels, _VOID_IDS)
    return image, np.where(void, scene.labels, canvas.label)


def draw_coco(seed: int, index: int):
    """Draw one image with objects to cut out, and describe them as COCO does.

    Args:
        seed, index: which picture.
    Returns:
        image (240, 320, 3) uint8 RGB; list of annotations without ids (`segmentation` polygons or,
        for outlines with holes, compressed run lengths; `area`, `bbox`, `iscrowd`, `category_id`).
    """
    rng = _rng(seed, "coco", index)
    canvas, light = Canvas(COCO_SIZE[1], COCO_SIZE[0]), rng.uniform(-1, 1)
    _backdrop(rng, canvas)
    # Three large objects, in an order that gives every category its turn, and small ones behind.
    order = _rng(seed, "categories").permutation(list(OBJECTS))
    large = [int(c) for c in np.take(order, np.arange(3) + 3 * index, mode="wrap")]
    small = [int(c) for c in rng.choice(list(OBJECTS), rng.integers(0, 3))]
    for ident, category in enumerate(small + large, 1):
        longest = rng.uniform(14, 30) if ident <= len(small) else rng.uniform(62, 150)
        _place(rng, canvas, _trimmed(OBJECTS[category][2](rng, light)), longest, ident)
    canvas.color *= rng.uniform(0.82, 1.12) * rng.uniform(0.94, 1.06, 3).astype(np.float32)
    image = cv2.GaussianBlur(canvas.color, (0, 0), rng.uniform(0.3, 0.8))
    image = image + rng.normal(0, rng.uniform(2, 6), image.shape)
    annotations = [
        _annotation(canvas.label == ident, category)
        for ident, category in enumerate(small + large, 1)
        if (canvas.label == ident).sum() >= 40
    ]
    return np.clip(np.round(image), 0, 255).astype(np.uint8), annotations


def _place(rng, canvas, sprite, longest, ident):
    h, w = canvas.label.shape
    sprite = sprite.flipped() if rng.random() < 0.5 else sprite
    scale = longest / max(sprite.width, sprite.height)
    half = 0.4 * sprite.width * scale
    x = rng.uniform(half, max(half + 1, w - half))
    y = min(h - 2, max(rng.uniform(0.55, 0.98) * h, sprite.height * scale * 0.9))
    canvas.darken(x, y, half * 1.3, max(2.0, 0.12 * half), 0.45)
    canvas.paste(sprite, x, y, scale, label=ident)


def _trimmed(sprite: Sprite) -> Sprite:
    """Cut the empty margin off."""
    ys, xs = np.flatnonzero(sprite.ids.any(1)), np.flatnonzero(sprite.ids.any(0))
    cut = (slice(ys[0], ys[-1] + 1), slice(xs[0], xs[-1] + 1))
    scale, ids = sprite.height / sprite.ids.shape[0], sprite.ids[cut]
    return Sprite(sprite.color[cut], ids, ids.shape[1] * scale, ids.shape[0] * scale)


def _backdrop(rng, canvas):
    """A room, a meadow, a yard or a beach: a ground, what stands behind, and some clutter."""
    h, w = canvas.label.shape
    floor, light = int(h * rng.uniform(0.3, 0.62)), rng.uniform(-1, 1)
    back = street.PLASTER + [(150, 180, 206), (120, 150, 110), (196, 200, 206)]
    ground = street.LEAF[3:5] + [(150, 116, 84), (206, 190, 150), (130, 130, 130), (170, 150, 140)]
    canvas.color[:floor], canvas.color[floor:] = pick(rng, back, 16), pick(rng, ground, 16)
    for _ in range(rng.integers(0, 4)):
        if rng.random() < 0.5:
            thing = street.tree(rng, rng.uniform(2.5, 5), light)
        else:
            thing = street.facade(rng, rng.uniform(3, 6), rng.uniform(3, 5), light)
        y = floor + rng.uniform(0, 0.2) * (h - floor)
        canvas.paste(thing, rng.uniform(0, w), y, rng.uniform(18, 30))
    canvas.label[:] = 0
    texture = 1 + 0.09 * fractal_noise(rng, h, w, cell=48) + 0.05 * fractal_noise(rng, h, w, cell=6)
    shade = 1 - 0.125 * np.abs(np.linspace(-1, 1, w) - light)[None]
    canvas.color *= (texture * shade)[..., None].astype(np.float32)


def _annotation(mask, category):
    coded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    segmentation = _polygons(mask)
    if segmentation is None:
        segmentation = {"size": list(mask.shape), "counts": coded["counts"].decode()}
    else:
        coded = coco_mask.merge(coco_mask.frPyObjects(segmentation, *mask.shape))
    return {
        "category_id": category,
        "iscrowd": 0,
        "segmentation": segmentation,
        "area": float(coco_mask.area(coded)),
        "bbox": [float(v) for v in coco_mask.toBbox(coded)],
    }


def _polygons(mask) -> list[list[float]] | None:
    """Return outlines in COCO's pixel-corner coordinates, None when the mask has holes.

    Traced at four times the size, since an outline through pixel centres would lose half a pixel.
    """
    big = np.repeat(np.repeat(mask.astype(np.uint8), 4, 0), 4, 1)
    outlines, levels = cv2.findContours(big, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if (levels[0][:, 3] >= 0).any():
        return None
    kept = []
    for outline in sorted(outlines, key=cv2.contourArea, reverse=True):
        points = cv2.approxPolyDP(outline, 1.6, True)[:, 0].astype(float)
        if len(points) >= 3 and cv2.contourArea(outline) >= 60:
            kept.append(((points + 0.5) / 4).round(2).ravel().tolist())
    return kept
