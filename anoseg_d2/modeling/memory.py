"""A memory of known patches says how far a patch is from all that normal photographs show.

The score needs no training and no outliers. "Far Away in the Deep Space" (cDNP, Galesso et al.,
arXiv:2211.06660) and AnomalyDINO (arXiv:2405.14529) score patches by their nearest neighbour among
known ones; here it is the cosine to the nearest of a few thousand tokens. They come from the last
ViT block before the queries enter, which neither queries nor mask losses have touched.

Shape letters: B images, N patches, C width, R rows of the memory.
"""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MEMORY_ROWS", "PatchMemory", "backbone_hash", "choose_rows", "memory_block"]

# Name of the rows in a checkpoint.
MEMORY_ROWS = "patch_maps.memory.rows"
# Cosines held at once, of all windows of a batch together: 32 MiB.
_COSINES = 2**23
# Rows compared at once in an exported graph, whose batch may be open.
_EXPORTED_ROWS = 4096


class PatchMemory(nn.Module):
    """The patch map behind the `memory` score.

    Args:
        rows: (R, C) known patch tokens of any norm; kept with norm 1 in float16.
        block: ViT block, counted from 0, whose output the rows are.
    """

    def __init__(self, rows: Tensor, block: int):
        super().__init__()
        if rows.dim() != 2 or len(rows) == 0 or not torch.isfinite(rows).all():
            raise ValueError(
                f"a memory must be (rows, width) finite numbers; found shape {tuple(rows.shape)}"
            )
        self.blocks = (block,)
        self.register_buffer("rows", F.normalize(rows.float(), dim=-1).half())
        self._unit: Tensor | None = None  # the rows in float32, made when they are first compared

    def forward(self, tokens: Mapping[int, Tensor], grid: tuple[int, int]) -> Tensor:
        """Return 1 - cosine to the nearest row, 0..2.

        Args:
            tokens: {block: (B, N, C)}.
            grid: patches (gh, gw).
        Returns:
            (B, 1, gh, gw) float32.
        """
        unit = F.normalize(tokens[self.blocks[0]].float(), dim=-1)
        nearest = None
        for rows in self._unit_rows().split(self._rows_at_once(unit)):
            best = (unit @ rows.T).amax(dim=-1)
            nearest = best if nearest is None else torch.maximum(nearest, best)
        return 1 - nearest.clamp(max=1).unflatten(-1, grid)[:, None]

    def _unit_rows(self) -> Tensor:
        """Return the rows in float32: kept, because converting them takes a fifth of the time."""
        if torch.compiler.is_exporting():
            return self._normalized()
        if self._unit is None or self._unit.device != self.rows.device:
            self._unit = self._normalized()
        return self._unit

    def _load_from_state_dict(self, *args, **options) -> None:
        self._unit = None
        super()._load_from_state_dict(*args, **options)

    def _normalized(self) -> Tensor:
        # float16 rounds a row; normalised again, its cosine with itself is 1.
        return F.normalize(self.rows.float(), dim=-1)

    def _rows_at_once(self, unit: Tensor) -> int:
        if torch.compiler.is_exporting():
            return _EXPORTED_ROWS
        return max(_COSINES // unit[..., 0].numel(), 1)


def memory_block(depth: int, num_blocks: int) -> int:
    """Return the last ViT block, counted from 0, that the queries have not entered.

    Raises:
        ValueError: the queries enter before the first block.
    """
    if num_blocks >= depth:
        raise ValueError(f"queries enter all {depth} blocks: no patch token is free of them")
    return depth - num_blocks - 1


def backbone_hash(state: Mapping[str, Tensor], block: int) -> str:
    """Return the sha256 of the weights that the tokens of a block are computed with.

    The position embedding is left out, so that a checkpoint keeps its memory when it is
    resampled for another crop.

    Args:
        state: tensors by our names, with adapters merged.
        block: ViT block, counted from 0.
    """
    prefixes = ("backbone.patch_embed.", "backbone.cls_token", "backbone.reg_token")
    prefixes += tuple(f"backbone.blocks.{index}." for index in range(block + 1))
    digest = hashlib.sha256()
    for name in sorted(name for name in state if name.startswith(prefixes)):
        digest.update(f"{name} {tuple(state[name].shape)}\n".encode())
        digest.update(state[name].detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def choose_rows(tokens: Tensor, count: int, generator: torch.Generator, coreset: bool) -> Tensor:
    """Choose rows for a memory.

    Args:
        tokens: (P, C) candidates.
        count: most rows to choose.
        generator: source of randomness.
        coreset: greedily choose the token that is farthest from all chosen ones (k-center, as in
            PatchCore, arXiv:2106.08265) instead of at random. A few rows then cover rare patches
            too, at a cost of count * P * C multiplications.
    Returns:
        (min(count, P), C).
    """
    order = torch.randperm(len(tokens), generator=generator)
    if not coreset or len(tokens) <= count:
        return tokens[order[:count]]
    unit = F.normalize(tokens.float(), dim=-1)
    chosen = [int(order[0])]
    nearest = unit @ unit[chosen[0]]
    while len(chosen) < count:
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, unit @ unit[chosen[-1]])
    return tokens[chosen]
