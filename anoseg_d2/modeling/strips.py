"""Compute the maps of an image strip by strip, so that no map of a whole image is ever stored.

A strip of output rows needs a few rows of each window's mask logits. They are enlarged, turned into
maps, merged where windows overlap, and resized to the output while they are in the cache.

Shape letters: Q queries, M channels of all maps together, (h, w) mask logits of a window, (H, W)
output.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from anoseg_d2.modeling.windows import WindowPlan, resize_pixels, resize_rows

# Floats that one strip may hold at once, masks and maps together: 8 MiB fit into the cache.
STRIP_ELEMENTS = 2**21


class WindowPrediction(NamedTuple):
    """The part of a window's prediction that is kept until all windows are done.

    mask_logits: (h, w, Q') float32 of the queries that matter, most important first. Queries are
        the last axis because resizing is several times faster that way.
    channels: {linear map: M}, in the order of the rows of `coefficients`.
    coefficients: (sum of all M, Q') of the linear maps.
    patch_maps: {patch map: (M, rows, columns)}, of patches or of cells inside of them.
    """

    mask_logits: Tensor
    channels: dict[str, int]
    coefficients: Tensor
    patch_maps: dict[str, Tensor]

    def flip(self) -> "WindowPrediction":
        """Return the maps mirrored left to right; coefficients have no place in the image."""
        mirrored = {name: value.flip(-1) for name, value in self.patch_maps.items()}
        return self._replace(mask_logits=self.mask_logits.flip(1), patch_maps=mirrored)


class View(NamedTuple):
    """An image at one scale: its plan, and the prediction of each window."""

    plan: WindowPlan
    windows: list[WindowPrediction]


def strips(views: list[View], size) -> Iterator[tuple[int, int]]:
    """Yield rows start..stop that split the output into strips of about `STRIP_ELEMENTS`."""
    height, width = size
    most = 0
    for plan, windows in views:
        maps = [*windows[0].channels.values(), *map(len, windows[0].patch_maps.values())]
        queries = max(window.mask_logits.shape[-1] for window in windows)
        # Floats per row of the resized image, and per row of the output.
        inside = queries * plan.window[1] + sum(maps) * plan.resized[1]
        most = max(most, inside * plan.resized[0] / height, sum(maps) * width)
    rows = max(1, int(STRIP_ELEMENTS / most))
    for start in range(0, height, rows):
        yield start, min(start + rows, height)


def native_rows(view: View, size, start: int, stop: int) -> tuple[Tensor, dict]:
    """Return rows start..stop of a view's maps at output size, (M, rows, W), and channels."""
    plan, windows = view
    if plan.resized[0] == size[0]:
        first, last = start, stop
    else:
        scale = plan.resized[0] / size[0]
        first = max(0, int((start + 0.5) * scale - 0.5) - 1)
        last = min(plan.resized[0], int((stop + 0.5) * scale + 0.5) + 2)
    maps, channels = _merged_rows(windows, plan, first, last)
    if plan.resized != tuple(size):
        maps = resize_rows(maps, size, start, stop, (first, plan.resized[0]))
    return maps, channels


def _merged_rows(windows, plan: WindowPlan, first: int, last: int) -> tuple[Tensor, dict]:
    """Return rows first..last of the resized image's maps, (M, rows, W), and channels by name."""
    (height, width), (row_weights, column_weights) = plan.window, plan.weights
    pieces = []
    for window, (y, x) in zip(windows, plan.origins, strict=True):
        top, bottom = max(first, y) - y, min(last, y + height) - y  # rows of the window
        if top >= bottom:
            continue
        maps = []
        if len(window.coefficients):  # a bare backbone has none
            masks = resize_pixels(window.mask_logits, plan.window, top, bottom).sigmoid()
            maps.append(window.coefficients @ masks.flatten(0, 1).T)
        for value in window.patch_maps.values():
            maps.append(resize_rows(value, plan.window, top, bottom).flatten(1))
        maps = torch.cat(maps) if len(maps) > 1 else maps[0]
        weights = (row_weights[top:bottom, None] * column_weights).to(maps)
        pieces.append((maps.unflatten(1, (bottom - top, -1)), weights, top + y - first, x))
    rows = last - first
    channels = windows[0].channels | {k: len(v) for k, v in windows[0].patch_maps.items()}
    side_by_side = [x for *_, x in pieces] == list(range(0, plan.resized[1], width))
    if side_by_side and all(len(p[0][0]) == rows for p in pieces):
        # The windows are side by side without overlap, so there is nothing to average.
        parts = [maps for maps, *_ in pieces]
        return (torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]), channels
    like = windows[0].coefficients
    merged = like.new_zeros(sum(channels.values()), rows, plan.resized[1])
    total = like.new_zeros(rows, plan.resized[1])
    for maps, weights, top, x in pieces:
        bottom = top + maps.shape[1]
        merged[:, top:bottom, x : x + width].addcmul_(maps, weights)
        total[top:bottom, x : x + width] += weights
    # Windows may leave a part of the image uncovered; the maps are 0 there.
    return merged.div_(total.clamp_(min=torch.finfo(total.dtype).tiny)), channels
