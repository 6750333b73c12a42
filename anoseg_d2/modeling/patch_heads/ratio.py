"""Score by a small head on patch tokens how much likelier a place is unknown than known.

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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anoseg_d2.modeling.patch_heads.base import PATCH_HEADS, PatchHead, free_block
from anoseg_d2.utils.constants import VOID
from anoseg_d2.utils.options import check_options, option, options_of
from anoseg_d2.utils.ranges import integer, number

HIDDEN = (256, 128)


@dataclass(frozen=True)
class RatioOptions:
    """Options of the `ratio` head."""

    enabled: bool = option(
        False, says="train a head for the `ratio` score next to the rest, on pasted objects"
    )
    alone: bool = option(
        False, says="train only that head: the checkpoint it is trained on stays as it is"
    )
    cells: int = option(
        4, integer(1, 32), "cells along each side of a patch, each with a score of its own"
    )
    threshold: float = option(
        0.5, number(0, 0.99), "a cell is unknown where more than this fraction of its pixels is"
    )
    lr_factor: float = option(10.0, number(0, 1000), "the head's learning rate / BASE_LR")

    def __post_init__(self):
        check_options(self)


@PATCH_HEADS.register("ratio")
class RatioHead(PatchHead):
    """The patch head behind the `ratio` score: an MLP with two outputs per cell, known and unknown.

    Args:
        width: C.
        blocks: ViT blocks, counted from 0, whose outputs it reads.
        options: `RatioOptions`; None for the defaults.
    """

    options_class = RatioOptions
    wanted = (
        "MODEL.RATIO.ENABLED True trains one in stages 3 and 4, configs/ratio.yaml on a checkpoint"
    )

    def __init__(self, width: int, blocks: Iterable[int], options: RatioOptions | None = None):
        super().__init__(width, blocks, options)
        self.threshold, self.cells = self.options.threshold, self.options.cells
        self.layers = nn.Sequential(
            nn.Linear(len(self.blocks) * width, HIDDEN[0]),
            nn.GELU(),
            nn.Linear(HIDDEN[0], HIDDEN[1]),
            nn.GELU(),
            nn.Linear(HIDDEN[1], 2 * self.cells**2),
        )

    def forward(self, tokens: Mapping[int, Tensor], grid: tuple[int, int]) -> Tensor:
        """Return log p(unknown) - log p(known), (B, 1, h, w) float32."""
        known, unknown = self._logits(tokens, grid).unbind(dim=1)
        # The softmax divides both by the same sum, so the difference of the logits is enough.
        return (unknown - known)[:, None]

    def loss(self, tokens: Mapping[int, Tensor], sem_seg: Tensor, num_known: int) -> Tensor:
        """Return the cross entropy of each image, averaged over its labelled cells; 0 without any.

        No gradient reaches the tokens.
        """
        grid = self.grid_of(tokens, sem_seg)
        logits = self._logits(tokens, grid)
        side = sem_seg.shape[-2] // (grid[0] * self.cells)
        labels = cell_labels(sem_seg, num_known, side, self.threshold)
        values = F.cross_entropy(logits, labels, ignore_index=VOID, reduction="none")
        count = (labels != VOID).sum(dim=(1, 2))
        return values.sum(dim=(1, 2)) / count.clamp(min=1)

    @classmethod
    def choose_blocks(cls, depth: int, num_blocks: int) -> tuple[int, ...]:
        """Return the blocks half way, before the queries, and the last one."""
        return tuple(sorted({max(depth // 2 - 1, 0), free_block(depth, num_blocks), depth - 1}))

    @classmethod
    def from_config(cls, cfg) -> RatioOptions | None:
        options = options_of(cfg, "MODEL.RATIO", RatioOptions)
        return options if options.enabled or options.alone else None

    @classmethod
    def learning_rate_factor(cls, cfg) -> float:
        return cfg.MODEL.RATIO.LR_FACTOR

    def check(self, patch_size: int) -> None:
        if patch_size % self.cells:
            raise ValueError(
                f"MODEL.RATIO.CELLS is {self.cells}; patches of {patch_size} pixels "
                "(MODEL.EOMT.PATCH_SIZE) cannot be divided into so many along their side"
            )

    def state(self) -> dict[str, Any]:
        return {}  # blocks follow from the ViT, cells from the tensors, and nothing else is used

    @classmethod
    def from_state(cls, state: dict, tensors: dict, vit: nn.Module, num_blocks: int) -> "RatioHead":
        last = max(name for name in tensors if name.endswith("bias"))
        cells = math.isqrt(len(tensors[last]) // 2)
        blocks = cls.choose_blocks(len(vit.blocks), num_blocks)
        return cls(vit.embed_dim, blocks, RatioOptions(cells=cells))

    def _logits(self, tokens: Mapping[int, Tensor], grid: tuple[int, int]) -> Tensor:
        """Return the outputs (B, 2, h, w)."""
        # The first layer has its own gains and biases, so the norm needs none.
        parts = [tokens[block].detach().float() for block in self.blocks]
        parts = [F.layer_norm(part, part.shape[-1:]) for part in parts]
        outputs = self.layers(torch.cat(parts, dim=-1))
        return F.pixel_shuffle(outputs.mT.unflatten(-1, grid), self.cells)


def cell_labels(sem_seg: Tensor, num_known: int, side: int, threshold: float) -> Tensor:
    """Return for each cell whether it is known (0), unknown (1) or void (255).

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
