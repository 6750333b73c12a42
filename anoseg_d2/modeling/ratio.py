"""A small head on patch tokens says how much more likely a place is unknown than known.

The likelihood ratio of UEM (arXiv:2409.06424) and ULRE (arXiv:2508.00587), learned from pasted
outliers. Departures: tokens of three blocks instead of one, the cross entropy of two classes, and
several cells per patch, so that the outline of an object need not follow the patches.
The gradient stops at the tokens, so that the head does not affect the segmentation: it can be
trained together with it, or later on a finished checkpoint. Where known objects are pasted as well,
they are negatives like every known pixel, so that a pasted edge is not evidence by itself.

Shape letters: B images, N patches, C width, (gh, gw) patch grid, (h, w) grid of the cells, (H, W)
pixels.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anoseg_d2.modeling.memory import memory_block
from anoseg_d2.utils.constants import VOID

__all__ = ["RATIO_PREFIX", "RatioHead", "cell_labels", "cells_of", "ratio_blocks"]

# Start of the head's names in a checkpoint.
RATIO_PREFIX = "patch_maps.ratio."
HIDDEN = (256, 128)


class RatioHead(nn.Module):
    """The patch map behind the `ratio` score: an MLP with two outputs per cell, known and unknown.

    Args:
        width: C.
        blocks: ViT blocks, counted from 0, whose outputs it reads.
        threshold: see `cell_labels`; only training reads it.
        cells: along each side of a patch.
    """

    def __init__(self, width: int, blocks: Iterable[int], threshold: float = 0.5, cells: int = 1):
        super().__init__()
        self.blocks, self.threshold, self.cells = tuple(blocks), threshold, cells
        self.layers = nn.Sequential(
            nn.Linear(len(self.blocks) * width, HIDDEN[0]),
            nn.GELU(),
            nn.Linear(HIDDEN[0], HIDDEN[1]),
            nn.GELU(),
            nn.Linear(HIDDEN[1], 2 * cells**2),
        )

    def forward(self, tokens: Mapping[int, Tensor], grid: tuple[int, int]) -> Tensor:
        """Return log p(unknown) - log p(known).

        Args:
            tokens: {block: (B, N, C)}.
            grid: (gh, gw).
        Returns:
            (B, 1, h, w) float32.
        """
        known, unknown = self._logits(tokens, grid).unbind(dim=1)
        # The softmax divides both by the same sum, so the difference of the logits is enough.
        return (unknown - known)[:, None]

    def loss(self, tokens: Mapping[int, Tensor], sem_seg: Tensor, num_known: int) -> Tensor:
        """Return the cross entropy of each image, averaged over its labelled cells.

        Args:
            tokens: {block: (B, N, C)}; no gradient reaches them.
            sem_seg: (B, H, W) integers: 0..num_known - 1 known, above it unknown, 255 void.
            num_known: K.
        Returns:
            (B,) float32; 0 for an image without labels.
        """
        height, width = sem_seg.shape[-2:]
        patches = next(iter(tokens.values())).shape[1]
        # Patches are square, so their side follows from their number.
        side = round((height * width / patches) ** 0.5)
        logits = self._logits(tokens, (height // side, width // side))
        labels = cell_labels(sem_seg, num_known, side // self.cells, self.threshold)
        values = F.cross_entropy(logits, labels, ignore_index=VOID, reduction="none")
        count = (labels != VOID).sum(dim=(1, 2))
        return values.sum(dim=(1, 2)) / count.clamp(min=1)

    def _logits(self, tokens: Mapping[int, Tensor], grid: tuple[int, int]) -> Tensor:
        """Return the outputs (B, 2, h, w)."""
        # The first layer has its own gains and biases, so the norm needs none.
        parts = [tokens[block].detach().float() for block in self.blocks]
        parts = [F.layer_norm(part, part.shape[-1:]) for part in parts]
        outputs = self.layers(torch.cat(parts, dim=-1))
        return F.pixel_shuffle(outputs.mT.unflatten(-1, grid), self.cells)


def ratio_blocks(depth: int, num_blocks: int) -> tuple[int, ...]:
    """Return the blocks that the head reads, counted from 0: half way, memory's, last.

    Args:
        depth: number of ViT blocks.
        num_blocks: last blocks that see the queries.
    Raises:
        ValueError: the queries enter before the first block.
    """
    return tuple(sorted({max(depth // 2 - 1, 0), memory_block(depth, num_blocks), depth - 1}))


def cells_of(state: Mapping[str, Tensor]) -> int:
    """Return the cells along the side of a patch, of a head whose tensors are in a checkpoint."""
    last = max(name for name in state if name.startswith(RATIO_PREFIX) and name.endswith("bias"))
    return math.isqrt(len(state[last]) // 2)


def cell_labels(sem_seg: Tensor, num_known: int, side: int, threshold: float) -> Tensor:
    """Say of each cell whether it is known (0), unknown (1) or void (255).

    A cell is void where more than half of its pixels are, else unknown where more than `threshold`
    of its labelled pixels are.

    Args:
        sem_seg: (B, H, W) integers: 0..num_known - 1 known, above it unknown, 255 void.
        num_known: K.
        side: of a cell in pixels.
        threshold: fraction, 0..1.
    Returns:
        (B, h, w) int64.
    """
    void = sem_seg == VOID
    kinds = torch.stack([void, (sem_seg >= num_known) & ~void], dim=1).float()
    void, unknown = F.avg_pool2d(kinds, side).unbind(dim=1)
    labels = (unknown > threshold * (1 - void)).long()
    return labels.masked_fill_(void > 0.5, VOID)
