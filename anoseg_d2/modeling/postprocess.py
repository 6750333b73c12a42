"""Filters that change a finished score map; none is applied by default.

A filter takes the score (H, W) float32 and the predicted segmentation (H, W) int64 (argmax over
the known classes) and returns a score of the same shape.
"""

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from anoseg_d2.utils.registry import Registry

__all__ = ["POSTPROCESS", "gaussian", "road_prior"]

POSTPROCESS = Registry("post-processing filter")

ROAD, SIDEWALK = 0, 1  # Cityscapes train ids


@POSTPROCESS.register("gaussian")
def gaussian(score: Tensor, sem_seg: Tensor, sigma: float = 2.0) -> Tensor:
    """Smooth with a Gaussian of `sigma` pixels; borders are reflected."""
    radius = min(int(3 * sigma + 0.5), min(score.shape) - 1)
    if radius < 1:
        return score
    return TF.gaussian_blur(score[None], [2 * radius + 1] * 2, [sigma, sigma])[0]


@POSTPROCESS.register("road_prior")
def road_prior(score: Tensor, sem_seg: Tensor) -> Tensor:
    """Give pixels above the predicted ground the lowest score of the image.

    In each column, everything from the first road or pavement pixel downwards keeps its score: an
    obstacle interrupts the predicted ground but stands on it. A column without ground keeps none.
    """
    ground = (sem_seg == ROAD) | (sem_seg == SIDEWALK)
    reached = ground.cumsum(dim=0) > 0
    return torch.where(reached, score, score.min())
