"""Sliding windows over an image of any size, and the way back to its native size.

Shape letters: n windows, M channels, (H, W) sizes in pixels.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

__all__ = ["WindowPlan", "cut_windows", "merge_windows", "plan_windows", "resize_rows"]


class WindowPlan(NamedTuple):
    """Where windows lie.

    resized: (H, W) of the image when it is cut.
    window: (H, W) of each window.
    origins: (y, x) of each window's upper left corner.
    """

    resized: tuple[int, int]
    window: tuple[int, int]
    origins: list[tuple[int, int]]


def plan_windows(
    image_size: tuple[int, int], window: tuple[int, int], overlap: float = 0.0
) -> WindowPlan:
    """Scale an image so that it covers the window, and lay windows along the side that is longer.

    As EoMT does for semantic segmentation (arXiv:2503.19108): no padding, evenly spread windows.

    Args:
        image_size: native (H, W).
        window: (H, W) that the model sees.
        overlap: least overlap of neighbours as a share of the window, 0 <= overlap < 1.
    Raises:
        ValueError: an overlap out of range.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"TEST.WINDOW_OVERLAP must be in 0..1 (1 excluded), is {overlap}")
    scale = max(window[0] / image_size[0], window[1] / image_size[1])
    resized = tuple(
        max(size, round(side * scale)) for side, size in zip(image_size, window, strict=True)
    )
    starts = [_starts(side, size, overlap) for side, size in zip(resized, window, strict=True)]
    return WindowPlan(resized, tuple(window), [(y, x) for y in starts[0] for x in starts[1]])


def _starts(side: int, window: int, overlap: float) -> list[int]:
    if side == window:
        return [0]
    count = math.ceil((side - window) / (window * (1 - overlap))) + 1
    return [j * (side - window) // (count - 1) for j in range(count)]


def cut_windows(image: Tensor, plan: WindowPlan) -> Tensor:
    """Resize a uint8 image (bilinear, antialiased) and cut it: (3, H, W) -> (n, 3, h, w) uint8."""
    if tuple(image.shape[-2:]) != plan.resized:
        image = TF.resize(image, list(plan.resized), antialias=True)
    height, width = plan.window
    return torch.stack([image[:, y : y + height, x : x + width] for y, x in plan.origins])


class WindowMerger:
    """Mean of overlapping window maps.

    Args:
        plan: where the windows lie.
    """

    def __init__(self, plan: WindowPlan):
        self.plan = plan
        self._sum: Tensor | None = None
        self._count: Tensor | None = None

    def add(self, maps: Tensor, index: int) -> None:
        """Add the maps (..., h, w) of window `index`."""
        if self._sum is None:
            self._sum = maps.new_zeros(*maps.shape[:-2], *self.plan.resized)
            self._count = maps.new_zeros(self.plan.resized)
        y, x = self.plan.origins[index]
        height, width = self.plan.window
        self._sum[..., y : y + height, x : x + width] += maps
        self._count[y : y + height, x : x + width] += 1

    def mean(self) -> Tensor:
        """Merged maps (..., H, W) at the resized image's size."""
        return self._sum.div_(self._count)


def merge_windows(maps: Tensor, plan: WindowPlan) -> Tensor:
    """Merge window maps (n, M, h, w) to (M, H, W); overlaps take their mean."""
    merger = WindowMerger(plan)
    for index, window_maps in enumerate(maps):
        merger.add(window_maps, index)
    return merger.mean()


def resize_rows(maps: Tensor, size: tuple[int, int], start: int, stop: int) -> Tensor:
    """Rows start..stop of `maps` resized bilinearly (align_corners False) to `size`.

    Strips keep memory bounded where an image is far larger than what the model sees.

    Args:
        maps: (M, h, w).
        size: (H, W) of the whole result.
    Returns:
        (M, stop - start, W).
    """
    source, (height, width) = maps.shape[-2], size
    y = (torch.arange(start, stop, device=maps.device, dtype=torch.float64) + 0.5) * (
        source / height
    ) - 0.5
    y = y.clamp(0, source - 1)
    above = y.floor().long()
    below = (above + 1).clamp(max=source - 1)
    share = (y - above).to(maps.dtype)[:, None]
    rows = maps[:, above] * (1 - share) + maps[:, below] * share
    if rows.shape[-1] == width:
        return rows
    return F.interpolate(
        rows[None], size=(stop - start, width), mode="bilinear", align_corners=False
    )[0]
