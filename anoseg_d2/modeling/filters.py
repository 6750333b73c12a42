"""The guided filter, which aligns finished score maps with their photograph; off by default.

Shape letters: B images, (H, W) pixels, (h, w) coarser grid.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

# Variance of a colour, as a fraction of full brightness squared, below which a window counts as
# plain: (0.03)^2, as in the paper of the guided filter.
PLAIN = 1e-3


class GuidedFilter:
    """Align the outlines of score maps with the edges of their photographs (guided filter).

    The network sees patches of 16 pixels and gives masks at a quarter of the resolution, so along
    an outline its scores are soft, and often a few pixels off. "Guided Image Filtering" (He et al.,
    TPAMI 2013) replaces a score by the best linear function of the colours in each small window, so
    that it changes where the colours change. It is computed on a coarser grid, as in "Fast Guided
    Filter" (He and Sun, arXiv:1505.00996).

    Args:
        images: (B, 3, H, W) RGB 0..255.
        radius: of the windows in pixels; they have 2 * radius + 1 pixels along each side, fewer at
            the border.
        step: pixels along each side of a cell of the coarser grid; 1 computes on every pixel. None
            for a quarter of the radius.
    """

    def __init__(self, images: Tensor, radius: float, step: int | None = None):
        step = step or max(1, int(radius / 4))
        self.colors = images.float() / 255
        self.grid = tuple(max(1, round(side / step)) for side in images.shape[-2:])
        self.radius = max(1, round(radius / step))
        self.coarse = self._coarsen(self.colors)
        self.mean = _box_mean(self.coarse, self.radius)
        products = (self.coarse[:, :, None] * self.coarse[:, None]).flatten(1, 2)
        covariance = _box_mean(products, self.radius).unflatten(1, (3, 3))
        covariance = covariance - self.mean[:, :, None] * self.mean[:, None]
        rows = covariance + PLAIN * torch.eye(3, device=images.device)[..., None, None]
        first, second, third = rows.unbind(dim=1)
        # The inverse of a symmetric 3 x 3 matrix: its rows' cross products over its determinant.
        crossed = [_cross(second, third), _cross(third, first), _cross(first, second)]
        self.inverse = torch.stack(crossed, dim=1)
        self.inverse = self.inverse / (first * crossed[0]).sum(dim=1)[:, None, None]

    def __call__(self, maps: Tensor) -> Tensor:
        """Filter maps (B, H, W) float32; the result has the same shape."""
        coarse = self._coarsen(maps[:, None])
        means = _box_mean(torch.cat([coarse, coarse * self.coarse], dim=1), self.radius)
        mean, covariance = means[:, :1], means[:, 1:] - means[:, :1] * self.mean
        # In every window the map is about slope * colour + offset, by least squares.
        slope = (self.inverse * covariance[:, None]).sum(dim=2)
        offset = mean - (slope * self.mean).sum(dim=1, keepdim=True)
        fits = _box_mean(torch.cat([slope, offset], dim=1), self.radius)
        fits = F.interpolate(fits, size=maps.shape[-2:], mode="bilinear", align_corners=False)
        return (fits[:, :3] * self.colors).sum(dim=1) + fits[:, 3]

    def _coarsen(self, values: Tensor) -> Tensor:
        return F.interpolate(values, size=self.grid, mode="bilinear", antialias=True)


def _box_mean(values: Tensor, radius: int) -> Tensor:
    """Return the mean over the window around every pixel, (B, C, h, w), without padding."""
    for kernel, padding in (((2 * radius + 1, 1), (radius, 0)), ((1, 2 * radius + 1), (0, radius))):
        values = F.avg_pool2d(values, kernel, stride=1, padding=padding, count_include_pad=False)
    return values


def _cross(left: Tensor, right: Tensor) -> Tensor:
    """Return the cross product of vectors along dimension 1."""
    a, b, c = left.unbind(dim=1)
    d, e, f = right.unbind(dim=1)
    return torch.stack([b * f - c * e, c * d - a * f, a * e - b * d], dim=1)
