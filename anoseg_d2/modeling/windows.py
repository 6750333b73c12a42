"""Cut an image of any size into windows, and bring maps back to its native size.

Shape letters: n windows, M channels, (H, W) sizes in pixels.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

# Pixels of an image after it was resized to cover the window: 32 windows of 1024 x 1024. A strip of
# 1 x 5000 pixels would ask for 5,000 of them and many gigabytes.
MOST_PIXELS = 2**25


class WindowPlan(NamedTuple):
    """Positions of the windows of an image.

    resized: (H, W) of the image when it is cut.
    window: (H, W) of each window.
    origins: (y, x) of each window's upper left corner.
    flipped: whether the network sees this window mirrored left to right.
    weights: of each row (h,) and column (w,) of a window where windows are merged; their product
        is the weight of a pixel.
    """

    resized: tuple[int, int]
    window: tuple[int, int]
    origins: list[tuple[int, int]]
    flipped: list[bool]
    weights: tuple[Tensor, Tensor]


def plan_windows(
    image_size: tuple[int, int],
    window: tuple[int, int],
    overlap: float = 0.0,
    flip: bool = False,
    scale: float = 1.0,
    taper: bool = False,
) -> WindowPlan:
    """Scale an image until it just covers the window, and place windows along its longer side.

    This is what EoMT does for semantic segmentation (arXiv:2503.19108): evenly spread windows
    without padding.

    Args:
        image_size: native (H, W).
        window: (H, W) that the model sees.
        overlap: least overlap of neighbouring windows, fraction of a window, 0 <= overlap < 1.
        flip: see every window a second time, mirrored. The two overlap completely, so merging
            takes the mean of both, as it does wherever windows overlap.
        scale: enlarge the image further by this factor, at least 1, so that a window covers less of
            it. Windows are then spread along both sides.
        taper: weights fall linearly from the middle of a window to its borders; else all are 1.
    Raises:
        ValueError: an empty image, or one so elongated that its resized version has more than
            `MOST_PIXELS`.
    """
    if min(image_size) < 1:
        raise ValueError(f"an image of {image_size[0]}x{image_size[1]} pixels is empty")
    # `InferenceOptions` checks what users give.
    assert 0 <= overlap < 1 and scale >= 1, (overlap, scale)
    scale *= max(window[0] / image_size[0], window[1] / image_size[1])
    resized = tuple(
        max(size, round(side * scale)) for side, size in zip(image_size, window, strict=True)
    )
    if resized[0] * resized[1] > MOST_PIXELS:
        raise ValueError(
            f"an image of {image_size[0]}x{image_size[1]} pixels is too elongated: covering a "
            f"window of {window[0]}x{window[1]}, it becomes {resized[0]}x{resized[1]}, over the "
            f"{MOST_PIXELS} pixels allowed; crop it, or choose a smaller INPUT.CROP_SIZE or "
            "smaller TEST.SCALES"
        )
    # Along the side that the window just covers there is only one start.
    starts = [_starts(side, size, overlap) for side, size in zip(resized, window, strict=True)]
    origins = [(y, x) for y in starts[0] for x in starts[1]]
    flipped = [False] * len(origins) + [True] * (len(origins) if flip else 0)
    weights = tuple(_triangle(side) if taper else torch.ones(side) for side in window)
    return WindowPlan(resized, tuple(window), origins * (1 + flip), flipped, weights)


def _triangle(side: int) -> Tensor:
    return 1 - ((torch.arange(side) + 0.5) * (2 / side) - 1).abs()


def _starts(side: int, window: int, overlap: float) -> list[int]:
    if side == window:
        return [0]
    count = math.ceil((side - window) / (window * (1 - overlap))) + 1
    return [j * (side - window) // (count - 1) for j in range(count)]


def cut_windows(image: Tensor, plan: WindowPlan) -> Tensor:
    """Resize a uint8 image (bilinear, antialiased) and cut it: (3, H, W) -> (n, 3, h, w) uint8.

    Windows that the plan flips come out mirrored; their maps have to be mirrored back.
    """
    image = resize_image(image, plan.resized)
    height, width = plan.window
    crops = [image[:, y : y + height, x : x + width] for y, x in plan.origins]
    return torch.stack([c.flip(-1) if f else c for c, f in zip(crops, plan.flipped, strict=True)])


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a uint8 image (bilinear, antialiased): (3, H, W) -> (3, *size)."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return TF.resize(image, list(size), antialias=True)


def row_weights(
    source: int, target: int, start: int, stop: int, like: Tensor
) -> tuple[int, Tensor]:
    """Return the weights that resize a line of `source` pixels bilinearly to rows start..stop.

    Args:
        source, target: lengths of the whole line before and after.
        start, stop: the wanted part of the result.
        like: a tensor of the wanted device and type.
    Returns:
        the first source row that is needed, and weights (stop - start, needed source rows); row
        i of the result is the weighted sum of the needed rows. As with align_corners False.
    """
    # In float64: at float32, row 20,000 of a large image would be read a tenth of a row off.
    y = (np.arange(start, stop) + 0.5) * (source / target) - 0.5
    y = y.clip(0, source - 1)
    above = y.astype(np.int64)
    below = (above + 1).clip(max=source - 1)
    first, rows = int(above[0]), np.arange(stop - start)
    weights = np.zeros((stop - start, int(below[-1]) + 1 - first))
    weights[rows, above - first] = 1 - (y - above)
    weights[rows, below - first] += y - above
    return first, torch.from_numpy(weights).to(like)


def resize_rows(
    maps: Tensor, size: tuple[int, int], start: int, stop: int, source: tuple[int, int] = (0, 0)
) -> Tensor:
    """Return rows start..stop of `maps` resized bilinearly (align_corners False) to `size`.

    Strips bound the memory of images that are far larger than what the model sees. Columns are
    interpolated first, while there are few rows, and rows by a matrix product, which is faster
    than indexing. The tests compare it with `F.interpolate` of the whole.

    Args:
        maps: (M, h, w), or the rows of it from `source[0]` on.
        size: (H, W) of the whole result.
        source: first row that `maps` holds, and h of the whole; (0, 0) if `maps` is complete.
    Returns:
        (M, stop - start, W).
    """
    offset, height = source if source[1] else (0, maps.shape[-2])
    if height == size[0]:
        rows = maps[:, start - offset : stop - offset]
        return rows if rows.shape[-1] == size[1] else _resize_columns(rows, size[1])
    first, weights = row_weights(height, size[0], start, stop, maps)
    rows = maps[:, first - offset : first - offset + weights.shape[1]]
    return weights @ _resize_columns(rows, size[1])


def _resize_columns(rows: Tensor, width: int) -> Tensor:
    if rows.shape[-1] == width:
        return rows
    # Rows are the channels of a line here, which is faster than an image and gives the same bits.
    return F.interpolate(rows, size=width, mode="linear", align_corners=False)


def resize_pixels(maps: Tensor, size: tuple[int, int], start: int, stop: int) -> Tensor:
    """Like `resize_rows`, for maps with channels last; much faster on CPUs.

    Args:
        maps: (h, w, M).
        size: (H, W) of the whole result.
        start, stop: the wanted rows of the result.
    Returns:
        (stop - start, W, M), equal to `resize_rows` up to rounding.
    """
    height, width, channels = maps.shape
    if height == size[0]:
        rows = maps[start:stop]
    else:
        first, weights = row_weights(height, size[0], start, stop, maps)
        rows = weights @ maps[first : first + weights.shape[1]].flatten(1)
        rows = rows.unflatten(1, (width, channels))
    if width == size[1]:
        return rows
    # The new axis has to be the first one, or torch does not see that channels are contiguous.
    rows = F.interpolate(
        rows[None].permute(0, 3, 1, 2),
        size=(stop - start, size[1]),
        mode="bilinear",
        align_corners=False,
    )
    return rows.permute(0, 2, 3, 1)[0]
