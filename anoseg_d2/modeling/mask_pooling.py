"""Mix a score with its mean over the mask that claims a pixel.

An isolated edge that scores high inside a large calm mask is calmed, and an object that one mask
covers gets one score. This is the mask-level aggregation of Objectomaly (arXiv:2507.07460) with the
model's own queries in place of SAM's masks.

Shape letters: n windows, Q queries, (h, w) mask logits of a window, (H, W) output.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from anoseg_d2.modeling.windows import WindowPlan, resize_rows

__all__ = ["claimed_regions", "pool_over_regions"]


def claimed_regions(
    mask_logits: Sequence[Tensor], plan: WindowPlan, size: tuple[int, int], strip_elements: int
) -> Tensor:
    """Say which mask claims each pixel: the strongest one that is there with more than 0.5.

    Queries of no object count as well, because a mask of something unknown often is one of these.
    Each window has masks of its own; where windows overlap, the strongest of all of them decides.

    Args:
        mask_logits: per window (Q, h, w), mirrored back where the plan flips it.
        plan: where the windows are.
        size: (H, W) of the result.
        strip_elements: most mask logits to enlarge at once.
    Returns:
        (H, W) int64; 0 where no mask claims the pixel, else a number from 1, another one for
        each query of each window.
    """
    # An empty mask has probability 0.5 and claims nothing.
    strongest = mask_logits[0].new_zeros(plan.resized)
    regions = torch.zeros(plan.resized, dtype=torch.int64, device=strongest.device)
    height, width = plan.window
    number = 1
    for logits, (y, x) in zip(mask_logits, plan.origins, strict=True):
        rows = max(1, strip_elements // (len(logits) * width))
        for first in range(0, height, rows):
            last = min(first + rows, height)
            place = (slice(y + first, y + last), slice(x, x + width))
            best, region = strongest[place], regions[place]
            for query, mask in enumerate(resize_rows(logits, plan.window, first, last)):
                region.masked_fill_(mask > best, number + query)
                torch.maximum(best, mask, out=best)
        number += len(logits)
    if plan.resized != tuple(size):
        # float64 holds every number exactly; nearest neighbours do not mix them.
        enlarged = F.interpolate(regions[None, None].double(), size=size, mode="nearest-exact")
        regions = enlarged[0, 0].long()
    return regions


def pool_over_regions(score: Tensor, regions: Tensor, weight: float) -> Tensor:
    """Return (1 - weight) * score + weight * (mean of the score over the pixel's region).

    Args:
        score: (H, W) float32.
        regions: (H, W) int64, from `claimed_regions`; pixels of number 0 keep their score.
        weight: 0..1.
    Returns:
        (H, W) float32.
    """
    flat = regions.flatten()
    # Sums in float64: a region may have millions of pixels.
    total = torch.bincount(flat, weights=score.flatten().double())
    mean = (total / torch.bincount(flat).clamp(min=1)).to(score.dtype)[regions]
    return torch.where(regions > 0, torch.lerp(score, mean, weight), score)
