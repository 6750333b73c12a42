"""A small head on patch tokens says how much more likely a patch is unknown than known.

The likelihood ratio of UEM (arXiv:2409.06424) and ULRE (arXiv:2508.00587), learned from pasted
outliers. Departures: tokens of three blocks instead of one, and the cross entropy of two classes.
The gradient stops at the tokens, so that the head does not affect the segmentation: it can be
trained together with it, or later on a finished checkpoint. Where known objects are pasted as well,
they are negatives like every known pixel, so that a pasted edge is not evidence by itself.

Shape letters: B images, N patches, C width, (H, W) pixels.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anoseg_d2.modeling.memory import memory_block
from anoseg_d2.utils.constants import VOID

__all__ = ["RATIO_PREFIX", "RatioHead", "patch_labels", "ratio_blocks"]

# Start of the head's names in a checkpoint.
RATIO_PREFIX = "patch_maps.ratio."
HIDDEN = (256, 128)


class RatioHead(nn.Module):
    """The patch map behind the `ratio` score: an MLP with two outputs, known and unknown.

    Args:
        width: C.
        blocks: ViT blocks, counted from 0, whose outputs it reads.
        threshold: see `patch_labels`; only training reads it.
    """

    def __init__(self, width: int, blocks: Iterable[int], threshold: float = 0.5):
        super().__init__()
        self.blocks, self.threshold = tuple(blocks), threshold
        self.layers = nn.Sequential(
            nn.Linear(len(self.blocks) * width, HIDDEN[0]),
            nn.GELU(),
            nn.Linear(HIDDEN[0], HIDDEN[1]),
            nn.GELU(),
            nn.Linear(HIDDEN[1], 2),
        )

    def forward(self, tokens: Mapping[int, Tensor]) -> Tensor:
        """Return log p(unknown) - log p(known): {block: (B, N, C)} -> (B, 1, N) float32."""
        known, unknown = self._logits(tokens).unbind(dim=-1)
        # The softmax divides both by the same sum, so the difference of the logits is enough.
        return (unknown - known)[:, None]

    def loss(self, tokens: Mapping[int, Tensor], sem_seg: Tensor, num_known: int) -> Tensor:
        """Return the cross entropy of each image, averaged over its labelled patches.

        Args:
            tokens: {block: (B, N, C)}; no gradient reaches them.
            sem_seg: (B, H, W) integers: 0..num_known - 1 known, above it unknown, 255 void.
            num_known: K.
        Returns:
            (B,) float32; 0 for an image without labels.
        """
        logits = self._logits(tokens)
        patches = next(iter(tokens.values())).shape[1]
        # Patches are square, so their side follows from their number.
        side = round((sem_seg[0].numel() / patches) ** 0.5)
        labels = patch_labels(sem_seg, num_known, side, self.threshold)
        values = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=VOID, reduction="none"
        )
        count = (labels != VOID).sum(dim=1)
        return values.view_as(labels).sum(dim=1) / count.clamp(min=1)

    def _logits(self, tokens: Mapping[int, Tensor]) -> Tensor:
        # The first layer has its own gains and biases, so the norm needs none.
        parts = [tokens[block].detach().float() for block in self.blocks]
        parts = [F.layer_norm(part, part.shape[-1:]) for part in parts]
        return self.layers(torch.cat(parts, dim=-1))


def ratio_blocks(depth: int, num_blocks: int) -> tuple[int, ...]:
    """Return the blocks that the head reads, counted from 0: half way, memory's, last.

    Args:
        depth: number of ViT blocks.
        num_blocks: last blocks that see the queries.
    Raises:
        ValueError: the queries enter before the first block.
    """
    return tuple(sorted({max(depth // 2 - 1, 0), memory_block(depth, num_blocks), depth - 1}))


def patch_labels(sem_seg: Tensor, num_known: int, side: int, threshold: float) -> Tensor:
    """Say of each patch whether it is known (0), unknown (1) or void (255).

    A patch is void where more than half of its pixels are, else unknown where more than `threshold`
    of its labelled pixels are.

    Args:
        sem_seg: (B, H, W) integers: 0..num_known - 1 known, above it unknown, 255 void.
        num_known: K.
        side: of a patch in pixels.
        threshold: fraction, 0..1.
    Returns:
        (B, N) int64.
    """
    void = sem_seg == VOID
    kinds = torch.stack([void, (sem_seg >= num_known) & ~void], dim=1).float()
    void, unknown = F.avg_pool2d(kinds, side).flatten(2).unbind(dim=1)
    labels = (unknown > threshold * (1 - void)).long()
    return labels.masked_fill_(void > 0.5, VOID)
