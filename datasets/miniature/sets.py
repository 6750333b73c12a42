"""The pictures of the miniature: closed-set scenes, COCO images, benchmark images; nothing on disk.

A picture depends on (seed, set, index) alone. Shapes: H, W of the image.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from miniature.drawing import street
from miniature.drawing.anomalies import ANOMALIES, LARGE, SMALL
from miniature.drawing.canvas import Canvas, Sprite, fractal_noise, pick
from miniature.drawing.objects import OBJECTS
from miniature.drawing.scene import ANOMALY_ID, Extra, draw_scene
from miniature.drawing.street import IDS

__all__ = ["BENCHMARKS", "BenchmarkImage", "draw_benchmark", "draw_closed_set", "draw_coco"]

# Every picture draws from its own stream of random numbers; the order is part of the format.
_STREAMS = ("train", "val", "coco", "categories")
_VOID_IDS = (IDS["ego vehicle"], IDS["out of roi"], IDS["static"])
_VOID = 255


@dataclass(frozen=True)
class _Benchmark:
    """What one benchmark shows, how many and how far away (m); void lies outside `region` ids."""

    images: int
    kinds: tuple[str, ...]
    count: tuple[int, int]
    distance: tuple[float, float]
    region: tuple[int, ...] = ()
    pasted: bool = False


BENCHMARKS = {
    "road_anomaly": _Benchmark(8, LARGE, (1, 2), (7, 17)),
    "road_anomaly21": _Benchmark(8, LARGE + SMALL[:4], (1, 3), (7, 18)),
    "road_obstacle21": _Benchmark(10, SMALL, (1, 3), (6, 17), region=(IDS["road"],)),
    "fishyscapes_lostandfound": _Benchmark(10, SMALL, (1, 3), (5.5, 13)),
    "fishyscapes_static": _Benchmark(8, LARGE + SMALL, (1, 2), (5, 14), pasted=True),
}


def _rng(seed: int, stream: str, *index: int) -> np.random.Generator:
    streams = (*_STREAMS, *BENCHMARKS)
    return np.random.default_rng([seed, streams.index(stream), *index])


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


@dataclass(frozen=True)
class BenchmarkImage:
    """image (H, W, 3) uint8 RGB, label (H, W) uint8 0 known, 1 anomaly, 255 void; kinds shown."""

    image: np.ndarray
    label: np.ndarray
    kinds: tuple[str, ...]


def draw_benchmark(seed: int, name: str, index: int, size: tuple[int, int]) -> BenchmarkImage:
    """Draw one benchmark image; every fourth shows no anomaly.

    Args:
        seed, index: which picture.
        name: key of `BENCHMARKS`.
        size: (W, H).
    Raises:
        RuntimeError: twenty attempts left no anomaly visible.
    """
    plan, empty = BENCHMARKS[name], index % 4 == 2
    for attempt in range(20):
        rng = _rng(seed, name, index, attempt)
        draw = _pasted if plan.pasted else _integrated
        image, labels, kinds = draw(rng, plan, size, empty)
        label = _anomaly_label(labels, plan.region)
        if empty or (label == 1).sum() >= 0.0008 * label.size:
            return BenchmarkImage(image, label, kinds)
    raise RuntimeError(f"{name} image {index} of seed {seed}: no visible anomaly in 20 attempts")


def _integrated(rng, plan, size, empty):
    """Objects that stand in the scene: perspective, light, shadow, haze and noise are its own."""

    def extras(rng, weather, on_road):
        count = 0 if empty else int(rng.integers(plan.count[0], plan.count[1] + 1))
        chosen = []
        for kind in rng.choice(plan.kinds, count, replace=False):
            x, z = on_road(rng, *plan.distance)
            sprite = ANOMALIES[str(kind)][0](rng, weather.light)
            # Bulky things need some distance to fit the frame.
            chosen.append(Extra(sprite, x, max(z, 2.6 * sprite.width), name=str(kind)))
        return chosen

    scene = draw_scene(rng, *size, extras)
    return scene.image, scene.labels, tuple(extra.name for extra in scene.extras)


def _pasted(rng, plan, size, empty):
    """Objects blended onto a finished scene, wherever they fall, as in Fishyscapes Static."""
    scene = draw_scene(rng, *size)
    canvas = Canvas(size[1], size[0])
    canvas.color[:], canvas.label[:] = scene.image, scene.labels
    kinds = (
        []
        if empty
        else rng.choice(plan.kinds, rng.integers(plan.count[0], plan.count[1] + 1), replace=False)
    )
    for kind in kinds:
        sprite = ANOMALIES[str(kind)][0](rng, scene.weather.light)
        lit = np.clip(sprite.color * scene.weather.gain, 0, 255).astype(np.uint8)
        sprite = Sprite(lit, sprite.ids, sprite.width, sprite.height)
        scale = rng.uniform(0.16, 0.42) * size[1] / max(sprite.width, sprite.height)
        x, y = rng.uniform(0.12, 0.88) * size[0], rng.uniform(0.45, 0.9) * size[1]
        haze = (scene.weather.sky_low, rng.uniform(0, 0.2))
        canvas.paste(sprite, x, y, scale, label=ANOMALY_ID, haze=haze, soft=rng.uniform(0.6, 1.4))
    grain = rng.normal(0, 0.5 * scene.weather.noise, canvas.color.shape)
    changed = canvas.label == ANOMALY_ID
    canvas.color[changed] += grain[changed]
    image = np.clip(np.round(canvas.color), 0, 255).astype(np.uint8)
    void = np.isin(scene.labels, _VOID_IDS)
    return image, np.where(void, scene.labels, canvas.label), tuple(map(str, kinds))


def _anomaly_label(labels, region):
    label = np.where(labels == ANOMALY_ID, 1, 0).astype(np.uint8)
    label[np.isin(labels, _VOID_IDS)] = _VOID
    if region:
        label[~np.isin(labels, (*region, ANOMALY_ID))] = _VOID
    return label


def draw_coco(seed: int, index: int, size: tuple[int, int] = (320, 240)):
    """Draw one image with objects to cut out, and describe them as COCO does.

    Args:
        seed, index: which picture.
        size: (W, H).
    Returns:
        image (H, W, 3) uint8 RGB; list of annotations (`segmentation` polygons, compressed RLE or,
        for a crowd, uncompressed RLE; `area`, `bbox`, `iscrowd`, `category_id`, without ids).
    """
    rng = _rng(seed, "coco", index)
    canvas = Canvas(size[1], size[0])
    _backdrop(rng, canvas)
    light = rng.uniform(-1, 1)
    order = _rng(seed, "categories").permutation(list(OBJECTS))
    categories = [int(c) for c in np.take(order, np.arange(3) + 3 * index, mode="wrap")]
    crowded = index % 6 == 4
    tags = _place(rng, canvas, light, categories, crowded)
    canvas.color *= rng.uniform(0.82, 1.12) * rng.uniform(0.94, 1.06, 3).astype(np.float32)
    image = cv2.GaussianBlur(canvas.color, (0, 0), rng.uniform(0.3, 0.8))
    image = image + rng.normal(0, rng.uniform(2, 6), image.shape)
    annotations = [
        _annotation(rng, canvas.label == k + 1, category, crowd)
        for k, (category, crowd) in enumerate(tags)
        if (canvas.label == k + 1).sum() >= 40
    ]
    return np.clip(np.round(image), 0, 255).astype(np.uint8), annotations


def _place(rng, canvas, light, categories, crowded):
    """Paste objects, far and small first; returns (category, is crowd) of instance ids 1, 2, ..."""
    h, w = canvas.label.shape
    tags = []

    def put(category, longest, ident):
        sprite = _trimmed(OBJECTS[category][2](rng, light))
        scale = longest / max(sprite.width, sprite.height)
        half = 0.4 * sprite.width * scale
        x = rng.uniform(half, max(half + 1, w - half))
        y = min(h - 2, max(rng.uniform(0.55, 0.98) * h, sprite.height * scale * 0.9))
        canvas.darken(x, y, half * 1.3, max(2.0, 0.12 * half), 0.45)
        canvas.paste(sprite, x, y, scale, label=ident)

    if crowded:
        tags.append((int(rng.choice(categories)), True))
        for _ in range(rng.integers(6, 11)):
            put(tags[-1][0], rng.uniform(22, 46), len(tags))
    for _ in range(rng.integers(0, 3)):
        tags.append((int(rng.choice(list(OBJECTS))), False))
        put(tags[-1][0], rng.uniform(14, 30), len(tags))
    for category in categories:
        tags.append((category, False))
        put(category, rng.uniform(62, 150), len(tags))
    return tags


def _trimmed(sprite: Sprite) -> Sprite:
    """Cut the empty margin off."""
    ys, xs = np.flatnonzero(sprite.ids.any(1)), np.flatnonzero(sprite.ids.any(0))
    cut = (slice(ys[0], ys[-1] + 1), slice(xs[0], xs[-1] + 1))
    scale = sprite.height / sprite.ids.shape[0]
    ids = sprite.ids[cut]
    return Sprite(sprite.color[cut], ids, ids.shape[1] * scale, ids.shape[0] * scale)


def _backdrop(rng, canvas):
    """A room, a meadow, a yard or a beach: a ground, what stands behind, and some clutter."""
    h, w = canvas.label.shape
    floor = int(h * rng.uniform(0.3, 0.62))
    back = pick(rng, street.PLASTER + [(150, 180, 206), (120, 150, 110), (196, 200, 206)], 16)
    ground = pick(
        rng,
        street.LEAF[3:5] + [(150, 116, 84), (206, 190, 150), (130, 130, 130), (170, 150, 140)],
        16,
    )
    canvas.color[:floor], canvas.color[floor:] = back, ground
    light = rng.uniform(-1, 1)
    for _ in range(rng.integers(0, 4)):
        z, x = rng.uniform(0, 1), rng.uniform(0, w)
        thing = (
            street.tree(rng, rng.uniform(2.5, 5), light)
            if rng.random() < 0.5
            else street.facade(rng, rng.uniform(3, 6), rng.uniform(3, 5), light)
        )
        canvas.paste(thing, x, floor + 0.2 * z * (h - floor), rng.uniform(18, 30))
    canvas.label[:] = 0
    texture = 1 + 0.09 * fractal_noise(rng, h, w, cell=48) + 0.05 * fractal_noise(rng, h, w, cell=6)
    fall = 1 - 0.25 * np.abs(np.linspace(-1, 1, w) - light)[None] * 0.5
    canvas.color *= (texture * fall)[..., None].astype(np.float32)


def _annotation(rng, mask, category, crowd):
    coded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    if crowd:
        segmentation = {"size": list(mask.shape), "counts": _run_lengths(mask)}
    elif rng.random() < 0.15 or _has_holes(mask):
        segmentation = {"size": list(mask.shape), "counts": coded["counts"].decode()}
    else:
        segmentation = _polygons(mask)
        coded = coco_mask.merge(coco_mask.frPyObjects(segmentation, *mask.shape))
    return {
        "category_id": category,
        "iscrowd": int(crowd),
        "segmentation": segmentation,
        "area": float(coco_mask.area(coded)),
        "bbox": [float(v) for v in coco_mask.toBbox(coded)],
    }


def _run_lengths(mask) -> list[int]:
    """Uncompressed COCO run lengths: down the columns, zeros first."""
    flat = np.concatenate([[0], mask.ravel(order="F").astype(np.int8)])
    edges = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], edges, [mask.size]])).astype(int).tolist()


def _has_holes(mask) -> bool:
    _, levels = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return levels is not None and bool((levels[0][:, 3] >= 0).any())


def _polygons(mask) -> list[list[float]]:
    """Outlines of a mask without holes, in COCO's pixel-corner coordinates.

    Traced at four times the size, since an outline through pixel centres would lose half a pixel.
    """
    big = np.repeat(np.repeat(mask.astype(np.uint8), 4, 0), 4, 1)
    outlines, _ = cv2.findContours(big, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    kept = []
    for outline in sorted(outlines, key=cv2.contourArea, reverse=True):
        points = cv2.approxPolyDP(outline, 1.6, True)[:, 0].astype(float)
        if len(points) >= 3 and cv2.contourArea(outline) >= 60:
            kept.append(((points + 0.5) / 4).round(2).ravel().tolist())
    return kept
