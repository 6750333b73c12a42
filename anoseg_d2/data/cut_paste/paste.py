"""Paste cut-out objects into road scenes.

Pure functions on arrays: an object is scaled, feathered and blended, and gets the anomaly's id in
the label map. Nothing here reads a file or knows a dataset; `sampling` chooses what to paste, and
`job` writes whole datasets.

Shapes: H W frame, h w object (its tight box, at pasted size once resized).
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from anoseg_d2.data.cut_paste.options import CutPasteOptions

KERNEL_SIGMAS = 4.0  # beyond this the feather adds less than a hundredth of a grey level
HORIZON_FALLBACK = 0.4  # fraction of the height above the horizon if no ground is labelled


@dataclass(frozen=True)
class PasteObject:
    """A cut-out object.

    Args:
        image: (h, w, 3) uint8 RGB photograph that holds the object.
        mask: (h, w) bool, where the object is.
        label: id written into the label map; None for the options' anomaly value.
        source: origin of the object for its record (annotation, image, category, ...).
        min_side: smallest side when pasted, pixels; None takes it from the options.
    """

    image: np.ndarray
    mask: np.ndarray
    label: int | None = None
    source: dict = field(default_factory=dict)
    min_side: int | None = None


@dataclass
class _Placement:
    """An object with its size and place; (x, y) is the upper left corner of its box."""

    object: PasteObject
    mask: np.ndarray
    scale: float
    x: int
    y: int
    visible: int = 0


def paste_objects(
    image: np.ndarray,
    label: np.ndarray,
    objects: Sequence,
    generator: np.random.Generator,
    options: CutPasteOptions | None = None,
    *,
    redraw: Callable[[np.random.Generator, PasteObject], PasteObject | None] | None = None,
    **changes,
) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """Paste all given objects, later ones over earlier ones.

    An object without a visible label pixel (covered, too thin for its size, no ground to stand on)
    is redrawn, at most `options.max_redraws` times. If it still finds no place, it is not pasted,
    and its record says why.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) integers.
        objects: `PasteObject`s, (image, mask) pairs or mappings with `PasteObject`'s fields.
        generator: source of all random numbers.
        options: sizes, places and blending; `ratio` and the counts are ignored.
        redraw: returns a replacement for an object that found no place, or None to try the same
            object again (as without `redraw`).
        changes: single options by name that override `options`.
    Returns:
        New image and label of the same shapes and types, and one record per object in pasting
        order: `label`, `scale`, `box` [x0, y0, x1, y1) of the whole object, `visible_pixels`,
        `sigma`, `dropped` (None, or why it was not pasted), and the entries of its `source`.
    Raises:
        ValueError: shapes or types do not fit, or an object's mask is empty.
    """
    options = dataclasses.replace(options or CutPasteOptions(), **changes)
    _check_frame(image, label, options)
    objects = [_as_object(item) for item in objects]
    if options.placement == "uniform" and options.size == "native":
        ground = np.broadcast_to(np.False_, label.shape)  # nothing has to stand on it
    else:
        ground = np.isin(label, options.ground_labels)
    placements = [_place(item, ground, generator, options) for item in objects]
    for _ in range(options.max_redraws):
        hidden = _count_visible(placements, label.shape)
        if not hidden:
            break
        for index in hidden:
            other = redraw(generator, objects[index]) if redraw else None
            objects[index] = _as_object(other) if other else objects[index]
            placements[index] = _place(objects[index], ground, generator, options)
    _count_visible(placements, label.shape)
    image, label, records = image.copy(), label.copy(), []
    for item, placement in zip(objects, placements, strict=True):
        value = options.anomaly_value if item.label is None else int(item.label)
        record = {"label": value, "scale": None, "box": None, "visible_pixels": 0, "sigma": None}
        # What is hidden is entirely under other objects, so dropping it uncovers nothing else.
        if placement is None or not placement.visible:
            record["dropped"] = "no size and place with a visible label pixel was found"
        else:
            (h, w), x, y = placement.mask.shape, placement.x, placement.y
            sigma = _blend(image, label, placement, value, options)
            record |= {"scale": placement.scale, "box": [x, y, x + w, y + h], "sigma": sigma}
            record |= {"visible_pixels": placement.visible, "dropped": None}
        records.append({**item.source, **record})
    return image, label, records


def _check_frame(image, label, options) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be (H, W, 3) uint8, found {image.shape} {image.dtype}")
    if label.shape != image.shape[:2] or label.dtype.kind not in "iu":
        raise ValueError(
            f"label must be integers {image.shape[:2]}, found {label.shape} {label.dtype}"
        )
    if options.anomaly_value > np.iinfo(label.dtype).max:
        raise ValueError(f"label type {label.dtype} cannot hold {options.anomaly_value}")


def _as_object(item) -> PasteObject:
    """Return the object with a bool mask, cropped to the mask's tight box."""
    if not isinstance(item, PasteObject):
        item = PasteObject(**item) if isinstance(item, dict) else PasteObject(*item)
    mask = np.asarray(item.mask) > 0
    if item.image.dtype != np.uint8 or item.image.shape != (*mask.shape, 3):
        raise ValueError(
            f"an object's image must be (h, w, 3) uint8 and its mask (h, w): found "
            f"{item.image.shape} {item.image.dtype} and {mask.shape} ({item.source})"
        )
    if not mask.any():
        raise ValueError(f"an object's mask is empty ({item.source})")
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return dataclasses.replace(item, image=item.image[box], mask=mask[box])


def _place(item, ground, generator, options) -> _Placement | None:
    """Draw a size and a place; None if they do not fit the frame."""
    factor = generator.uniform(*options.scale)
    if options.size == "perspective":
        return _place_in_perspective(item, factor, ground, generator, options)
    mask, scale = _resize_mask(item, factor, ground.shape, options)
    if mask is None:
        return None
    if options.placement == "road":
        corner = _corner_on_ground(mask, ground, generator)
        return None if corner is None else _Placement(item, mask, scale, *corner)
    x = int(generator.integers(ground.shape[1] - mask.shape[1] + 1))
    y = int(generator.integers(ground.shape[0] - mask.shape[0] + 1))
    return _Placement(item, mask, scale, x, y)


def _resize_mask(item, scale, frame, options) -> tuple[np.ndarray | None, float]:
    """Return the mask at its final size, or None if no size satisfies both limits."""
    height, width = item.mask.shape
    most = min(options.max_fraction * frame[0] / height, options.max_fraction * frame[1] / width)
    wanted = options.perspective_min_side if options.size == "perspective" else options.min_side
    wanted = wanted if item.min_side is None else item.min_side
    # At most half the upper limit, so that small frames have room for objects of aspect ratio 2.
    wanted = min(wanted, int(options.max_fraction * min(frame) / 2))
    least = wanted / min(height, width)
    if least > most:
        return None, scale
    scale = min(max(scale, least), most)
    h, w = (
        min(max(round(side * scale), wanted), int(options.max_fraction * limit))
        for side, limit in zip((height, width), frame, strict=True)
    )
    if min(h, w) < 1:
        return None, scale
    # Nearest neighbour by pixel centres, in integers, which gives the same mask on every machine.
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for new, old in ((h, height), (w, width))
    )
    return item.mask[np.ix_(rows, columns)], scale


def _corner_on_ground(mask, ground, generator) -> tuple[int, int] | None:
    """Draw a corner that puts the middle of the mask's lowest row on a ground pixel."""
    height, width = mask.shape
    base = _base_column(mask)
    inside = ground[height - 1 :, base : ground.shape[1] - width + base + 1]
    spots = np.flatnonzero(inside)
    if not len(spots):
        return None
    y, x = divmod(int(spots[generator.integers(len(spots))]), inside.shape[1])
    return x, y


def _base_column(mask) -> int:
    lowest = np.flatnonzero(mask.any(1))
    return int(np.median(np.flatnonzero(mask[lowest[-1]]))) if len(lowest) else mask.shape[1] // 2


def _place_in_perspective(item, factor, ground, generator, options) -> _Placement | None:
    """Draw the base first; its row decides the size."""
    height, width = ground.shape
    if height < 3:
        return None  # no room for a horizon with ground below it
    horizon = _horizon(ground)
    if options.placement == "road":
        spots = np.flatnonzero(ground[horizon + 1 :])
        if not len(spots):
            return None
        row, column = divmod(int(spots[generator.integers(len(spots))]), width)
        row += horizon + 1
    else:
        row = int(generator.integers(horizon + 1, height))
        column = int(generator.integers(width))
    side = options.perspective_side * min(height, width) * (row - horizon) / (height - 1 - horizon)
    mask, scale = _resize_mask(item, factor * side / max(item.mask.shape), ground.shape, options)
    if mask is None:
        return None
    x, y = column - _base_column(mask), row + 1 - mask.shape[0]
    fits = 0 <= x <= width - mask.shape[1] and y >= 0
    return _Placement(item, mask, scale, x, y) if fits else None


def _horizon(ground) -> int:
    """Return the highest row in which at least 1 % of the pixels are ground."""
    rows = np.flatnonzero(ground.mean(1) >= 0.01)
    row = int(rows[0]) if len(rows) else int(HORIZON_FALLBACK * len(ground))
    return min(row, len(ground) - 2)


def _count_visible(placements, shape) -> list[int]:
    """Set `visible` of every placement; return the indices of objects without visible pixels."""
    taken = np.zeros(shape, bool)
    for item in filter(None, reversed(placements)):
        h, w = item.mask.shape
        there = taken[item.y : item.y + h, item.x : item.x + w]
        item.visible = int(np.count_nonzero(item.mask & ~there))
        there |= item.mask
    return [index for index, p in enumerate(placements) if p is None or not p.visible]


def _clean_rim(item: PasteObject, rim: int) -> np.ndarray:
    """Return the photograph with the band inside the outline filled with inner colours.

    Where the object is thinner than two bands, there is no inside and its colours are kept.
    """
    if rim == 0:
        return item.image
    mask = item.mask.astype(np.uint8)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * rim + 1, 2 * rim + 1))
    inner = cv2.erode(mask, disc, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    # The band itself keeps a small weight, which decides only where nothing inner is in reach.
    weight = inner + np.float32(0.02) * mask
    colours = _blur(item.image * weight[..., None], rim, 3 * rim)
    colours /= np.maximum(_blur(weight, rim, 3 * rim), 1e-6)[..., None]
    band = (mask > inner)[..., None]
    return np.where(band, np.rint(colours).clip(0, 255).astype(np.uint8), item.image)


def _resize_colours(item: PasteObject, mask: np.ndarray, rim: int) -> np.ndarray:
    """Return the object's colours at the mask's size, without the background around it.

    Bilinear when it grows, and area means when it shrinks, so that it does not alias. Colours are
    weighted by the mask, so that a rim pixel is the mean of object pixels only.
    """
    h, w = mask.shape
    shrinks = h < item.mask.shape[0] or w < item.mask.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    image = _clean_rim(item, rim)
    weight = item.mask.astype(np.float32)
    colours = cv2.resize(image * weight[..., None], (w, h), interpolation=how)
    weight = cv2.resize(weight, (w, h), interpolation=how)
    colours /= np.maximum(weight, 1e-6)[..., None]
    # The mask was resized by nearest neighbour, so a few of its pixels may have no weight at all.
    bare = mask & (weight < 1e-3)
    if bare.any():
        colours[bare] = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)[bare]
    return colours


def _alpha(mask: np.ndarray, sigma: float, pad: int, opaque_core: bool) -> np.ndarray:
    """Return the feathered mask on the padded crop, float32 in 0..1."""
    padded = np.pad(mask, pad).astype(np.float32)
    if sigma == 0:
        return padded
    alpha = _blur(padded, sigma, pad)
    if opaque_core:
        side = 2 * int(np.ceil(sigma)) + 1
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
        alpha = np.maximum(alpha, cv2.erode(padded, disc))
    return alpha


def _blur(values, sigma, pad):
    side = 2 * pad + 1
    return cv2.GaussianBlur(values, (side, side), sigma, borderType=cv2.BORDER_CONSTANT)


def _blend(image, label, placement: _Placement, value: int, options: CutPasteOptions) -> float:
    """Blend one object into `image`, and `value` into `label`; return the feather's sigma."""
    mask = placement.mask
    sigma = min(options.feather[0], options.feather[1] * float(np.sqrt(mask.sum())))
    pad = int(np.ceil(KERNEL_SIGMAS * sigma))
    alpha = _alpha(mask, sigma, pad, options.opaque_core)[..., None]
    inside = np.pad(mask, pad)
    colours = _resize_colours(placement.object, mask, options.rim)
    colours = np.pad(colours, ((pad, pad), (pad, pad), (0, 0)))
    colours[~inside] = 0
    # The colours are blurred like the mask, which continues the object's own colours outwards; with
    # the photograph's background there, the feather would show as a halo.
    light = _blur(colours, sigma, pad) if sigma else colours
    light[inside] = (alpha * colours)[inside]
    (top, bottom), (left, right) = (
        (max(start - pad, 0), min(start + size + pad, limit))
        for start, size, limit in zip(
            (placement.y, placement.x), mask.shape, label.shape, strict=True
        )
    )
    crop = np.s_[
        top - placement.y + pad : bottom - placement.y + pad,
        left - placement.x + pad : right - placement.x + pad,
    ]
    there = image[top:bottom, left:right]
    there[...] = np.rint(there * (1 - alpha[crop]) + light[crop]).clip(0, 255)
    label[top:bottom, left:right][inside[crop]] = value
    return sigma
