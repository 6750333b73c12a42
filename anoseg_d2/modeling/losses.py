"""Compute the point-sampled mask losses and the outlier hinge, as pure functions in float32.

Shape letters: M matched masks, P points, B images, Q queries, R class rows, (h, w) mask grid.

Point sampling follows "PointRend" (arXiv:1912.08193) as Mask2Former uses it (arXiv:2112.01527).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from anoseg_d2.modeling.scores import combine_masks, rba
from anoseg_d2.utils.constants import VOID


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps bilinearly at points.

    Args:
        maps: (M, 1, h, w) float.
        points: (M, P, 2), x and y in 0..1 over the whole map, pixel centres at (i + 0.5) / w; or
            (1, P, 2), one set for all maps.
    Returns:
        (M, P).
    """
    if len(points) == 1:
        maps = maps.transpose(0, 1)  # as channels of one map: the weights are computed once
    grid = (2.0 * points[:, :, None]).sub_(1.0)
    # Within half a pixel of the border bilinear reads fade to 0, as in PointRend and Mask2Former.
    sampled = F.grid_sample(maps, grid, align_corners=False)
    return sampled[:, :, :, 0].flatten(0, 1)


def _unnormalize(points: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Map points in 0..1 to pixel indices y, x, rounded exactly as `F.grid_sample` rounds."""
    grid = 2.0 * points - 1.0
    x = (grid[..., 0] + 1.0) * (size[1] / 2) - 0.5
    y = (grid[..., 1] + 1.0) * (size[0] / 2) - 0.5
    return y, x


def sample_class_masks(sem_seg: Tensor, images: Tensor, classes: Tensor, points: Tensor) -> Tensor:
    """Read the masks `sem_seg[image] == class` bilinearly at points without building the masks.

    Equal to `sample_points` on those masks. The masks follow from the label map, so none of them
    has to exist as an image of floats: the labels of the four pixels around a point are enough.

    Args:
        sem_seg: (B, H, W) label maps, any integer type.
        images: (M,) int64, the image of each mask.
        classes: (M,) the class of each mask.
        points: (M, P, 2) or (1, P, 2), as in `sample_points`. With one set of points, all masks
            must belong to the same image.
    Returns:
        (M, P) float32 in 0..1.
    """
    height, width = sem_seg.shape[-2:]
    y, x = _unnormalize(points, (height, width))
    top, left = y.floor(), x.floor()
    down, right = y - top, x - left
    up, leftward = 1.0 - down, 1.0 - right
    offset = (images[: len(points)] * (height * width))[:, None]
    # One flat index for all images, because gathering along several axes is slow.
    labels, wanted = sem_seg.flatten(), classes[:, None]
    result = None
    for row, row_weight in ((top, up), (top + 1, down)):
        for column, column_weight in ((left, leftward), (left + 1, right)):
            # Outside the image there is no mask: zero padding, as in `sample_points`.
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            hit = (labels[offset + index.long()] == wanted) & inside
            part = hit * (row_weight * column_weight)
            result = part if result is None else result.add_(part)
    return result


def sample_valid(sem_seg: Tensor, images: Tensor, points: Tensor) -> Tensor:
    """Return whether the pixel nearest to each point is labelled, (M, P) float32 of 0 and 1.

    Arguments are as in `sample_class_masks`; outside the image the border pixel counts.
    """
    height, width = sem_seg.shape[-2:]
    y, x = _unnormalize(points, (height, width))
    row, column = y.round().clamp(0, height - 1), x.round().clamp(0, width - 1)
    offset = (images[: len(points)] * (height * width))[:, None]
    return (sem_seg.flatten()[offset + (row * width + column).long()] != VOID).float()


def dense_points(height: int, width: int, device) -> Tensor:
    """Return every pixel centre of a grid, (h * w, 2), x and y in 0..1, row by row."""
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).flatten(
        0, 1
    )


@torch.no_grad()
def uncertain_points(
    mask_logits: Tensor, num_points: int, oversample_ratio: float, importance_ratio: float
) -> Tensor:
    """Draw points, most of them where the mask is least certain.

    Of `oversample_ratio * num_points` uniform candidates, the `importance_ratio * num_points`
    with the smallest |logit| are kept; the other points are uniform.

    Args:
        mask_logits: (M, 1, h, w).
        num_points: P.
    Returns:
        (M, P, 2) in 0..1.
    """
    count, device = len(mask_logits), mask_logits.device
    candidates = torch.rand(count, int(num_points * oversample_ratio), 2, device=device)
    # A logit of 0 is the outline of a mask, where most of its errors are.
    uncertainty = -sample_points(mask_logits, candidates).abs()
    num_important = int(importance_ratio * num_points)
    index = uncertainty.topk(num_important, dim=1, sorted=False).indices
    important = candidates.gather(1, index[..., None].expand(-1, -1, 2))
    uniform = torch.rand(count, num_points - num_important, 2, device=device)
    return torch.cat([important, uniform], dim=1)


def _point_mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """Return the mean over points, (M, P) -> (M,); only over valid ones if `valid` is given."""
    if valid is None:
        return values.mean(dim=1)
    return (values * valid).sum(dim=1) / valid.sum(dim=1).clamp(min=1.0)


def bce_loss(logits: Tensor, targets: Tensor, num_masks: float, valid: Tensor | None = None):
    """Return the binary cross entropy: mean over points, sum over masks, divided by `num_masks`.

    Args:
        logits, targets: (M, P); targets in 0..1.
        num_masks: N, the average number of matched masks on a rank.
        valid: (M, P) of 0 and 1, points that count; None for all.
    Returns:
        scalar.
    """
    values = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return _point_mean(values, valid).sum() / num_masks


def dice_loss(logits: Tensor, targets: Tensor, num_masks: float, valid: Tensor | None = None):
    """Return 1 - (2 sum p t + 1) / (sum p + sum t + 1), summed over masks, over `num_masks`.

    Arguments and result are as in `bce_loss`.
    """
    probs = logits.sigmoid()
    if valid is not None:
        probs, targets = probs * valid, targets * valid
    # The ones keep the ratio, and its gradient, finite for masks of no pixel.
    overlap = 2 * (probs * targets).sum(dim=1) + 1
    return (1 - overlap / (probs.sum(dim=1) + targets.sum(dim=1) + 1)).sum() / num_masks


def outlier_hinge(
    mask_logits: Tensor,
    class_logits: Tensor,
    known: Tensor,
    outlier: Tensor,
    num_known: int,
    upper: float = -0.7,
    lower: float = -0.1,
) -> Tensor:
    """Return RbA's hinge on the score S = -sum_c tanh P_c of known and of pasted pixels.

    "RbA: Segmenting Unknown Regions Rejected by All" (arXiv:2211.14293). The upper bound departs
    from the original -1: one mask that claims a pixel gives at best -tanh 1 = -0.762.

    Args:
        mask_logits: (B, Q, h, w).
        class_logits: (B, Q, R), no-object last.
        known, outlier: (B, h, w) bool.
        num_known: K.
        upper: known pixels should score below this.
        lower: outliers should score above this.
    Returns:
        scalar; a side without pixels adds 0.
    """
    probs = class_logits.softmax(dim=-1)[..., :num_known]
    score = rba({"probs": combine_masks(probs, mask_logits)}, num_known)
    too_odd = F.relu(score - upper).square() * known
    too_normal = F.relu(lower - score).square() * outlier
    return 0.5 * (
        too_odd.sum() / known.sum().clamp(min=1) + too_normal.sum() / outlier.sum().clamp(min=1)
    )
