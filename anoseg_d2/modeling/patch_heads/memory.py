"""A memory of known patches says how far a patch is from all that normal photographs show.

The score needs no training and no outliers. "Far Away in the Deep Space" (cDNP, Galesso et al.,
arXiv:2211.06660) and AnomalyDINO (arXiv:2405.14529) score patches by their nearest neighbour among
known ones; here it is the cosine to the nearest of a few thousand tokens. They come from the last
ViT block before the queries enter, which neither queries nor mask losses have touched, or from
several blocks. Those that queries enter are run a second time for it, as plain blocks: without
queries, and with the weights that they had before adapters changed them. What finds a small unknown
object in the last block of a bare ViT is no longer there in a network that was trained on classes.

Shape letters: B images, N patches, C width, M blocks, R rows of the memory.
"""

import copy
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anoseg_d2.modeling.patch_heads.base import PATCH_HEADS, PatchHead

# Cosines held at once, of all windows of a batch together: 32 MiB.
_COSINES = 2**23
# Rows compared at once in an exported graph, whose batch may be open.
_EXPORTED_ROWS = 4096


@PATCH_HEADS.register("memory")
class PatchMemory(PatchHead):
    """The patch head behind the `memory` score.

    The distance of a token is 1 - cosine to the nearest row of its block. With `mean` and `spread`,
    the distances of each block are standardised before the mean over blocks is taken, so that no
    block drowns the others.

    Args:
        rows: (R, C) or (M, R, C) known patch tokens of any norm; kept with norm 1 in float16.
        blocks: ViT block, counted from 0, whose output the rows are, or M blocks.
        mean, spread: (M,) of the distances of each block on known patches; None for raw distances.
        backbone_sha256: `backbone_hash` of the weights that the rows were computed with.
        plain: the plain blocks, from the first that queries enter to the last one of `blocks`; None
            where `blocks` has none of them.
    """

    wanted = "`anoseg memory` adds one to a checkpoint"

    def __init__(
        self,
        rows: Tensor,
        blocks: int | Iterable[int],
        mean: Tensor | None = None,
        spread: Tensor | None = None,
        backbone_sha256: str | None = None,
        plain: nn.ModuleList | None = None,
    ):
        blocks = (blocks,) if isinstance(blocks, int) else tuple(blocks)
        if rows.dim() not in (2, 3) or rows.numel() == 0 or not torch.isfinite(rows).all():
            raise ValueError(
                f"a memory must be (rows, width) finite numbers, or (blocks, rows, width); found "
                f"shape {tuple(rows.shape)}"
            )
        if len(blocks) != (1 if rows.dim() == 2 else len(rows)):
            raise ValueError(f"a memory of blocks {blocks} has rows {tuple(rows.shape)}")
        super().__init__(rows.shape[-1], blocks)
        self.register_buffer("rows", F.normalize(rows.float(), dim=-1).half())
        self.register_buffer("mean", None if mean is None else mean.float())
        self.register_buffer("spread", None if spread is None else spread.float())
        self.plain = plain
        self.backbone_sha256 = backbone_sha256
        self._unit: Tensor | None = None  # the rows in float32, made when they are first compared

    @property
    def plain_from(self) -> int:
        """The first block that runs as a plain one; one after the last where there is none."""
        return max(self.blocks) + 1 - len(self.plain or ())

    @property
    def sources(self) -> tuple[int | str, ...]:
        return tuple(f"plain {b}" if b >= self.plain_from else b for b in self.blocks)

    def plain_tokens(self, x: Tensor, rope: Tensor | None, prefix: int) -> dict[str, Tensor]:
        """Run the plain blocks.

        Args:
            x: (B, prefix + N, C) tokens that the network has before queries enter.
            rope: rotation that the blocks of a DINOv3 need.
            prefix: tokens before the patches.
        Returns:
            {source: patch tokens (B, N, C)}.
        """
        found = {}
        for index, block in enumerate(self.plain or (), self.plain_from):
            x = block(x) if rope is None else block(x, rope=rope)
            found[f"plain {index}"] = x[:, prefix:]
        return found

    def forward(self, tokens: Mapping[int | str, Tensor], grid: tuple[int, int]) -> Tensor:
        """Return the distance from the rows, (B, 1, gh, gw) float32: 0..2 unless standardised."""
        rows = self._unit_rows().view(len(self.blocks), -1, self.width)
        found = [
            self._distance(tokens[source], own)
            for source, own in zip(self.sources, rows, strict=True)
        ]
        if self.mean is not None:
            found = [
                (distance - mean) / spread
                for distance, mean, spread in zip(found, self.mean, self.spread, strict=True)
            ]
        distance = found[0] if len(found) == 1 else torch.stack(found).mean(dim=0)
        return distance.unflatten(-1, grid)[:, None]

    def _distance(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """Return 1 - cosine of tokens (B, N, C) to the nearest of rows (R, C): (B, N)."""
        unit = F.normalize(tokens.float(), dim=-1)
        nearest = None
        exporting = torch.compiler.is_exporting()
        at_once = _EXPORTED_ROWS if exporting else max(_COSINES // unit[..., 0].numel(), 1)
        for some in rows.split(at_once):
            best = (unit @ some.T).amax(dim=-1)
            nearest = best if nearest is None else torch.maximum(nearest, best)
        return 1 - nearest.clamp(max=1)

    def state(self) -> dict[str, Any]:
        # Files with a single block are of before there were several.
        blocks = {"block": self.blocks[0]} if len(self.blocks) == 1 else {"blocks": [*self.blocks]}
        return {**blocks, "backbone_sha256": self.backbone_sha256}

    @classmethod
    def from_state(
        cls, state: dict, tensors: dict, vit: nn.Module, num_blocks: int
    ) -> "PatchMemory":
        blocks = state.get("blocks") or (state.get("block"),)
        if not all(isinstance(b, int) and 0 <= b < len(vit.blocks) for b in blocks):
            blocks = cls.choose_blocks(len(vit.blocks), num_blocks)
        statistics = (tensors.get(name) for name in ("mean", "spread"))
        plain = None
        if any(name.startswith("plain.") for name in tensors):
            plain = plain_blocks(vit, num_blocks, blocks)
        return cls(tensors["rows"], blocks, *statistics, state.get("backbone_sha256"), plain)

    def check_backbone(self, state: Mapping[str, Tensor]) -> None:
        if self.backbone_sha256 != backbone_hash(state, self.plain_from - 1):
            raise ValueError(
                "its memory was built from another backbone, so its scores would mean nothing; "
                "build it again with `anoseg memory`"
            )

    def _load_from_state_dict(self, *args, **options) -> None:
        self._unit = None
        super()._load_from_state_dict(*args, **options)

    def _unit_rows(self) -> Tensor:
        """Return the rows in float32: kept, because converting them takes a fifth of the time."""
        exporting = torch.compiler.is_exporting()
        if not exporting and self._unit is not None and self._unit.device == self.rows.device:
            return self._unit
        # float16 rounds a row; normalised again, its cosine with itself is 1.
        unit = F.normalize(self.rows.float(), dim=-1)
        if not exporting:
            self._unit = unit
        return unit


def plain_blocks(
    vit: nn.Module,
    num_blocks: int,
    blocks: Iterable[int],
    unadapted: Mapping[str, Tensor] | None = None,
) -> nn.ModuleList | None:
    """Return copies of the blocks that queries enter, up to the last of `blocks`; None without any.

    Args:
        vit: a ViT without adapters, or whose adapters are merged.
        num_blocks: last blocks of the ViT that see the queries.
        blocks: that a memory reads, counted from 0.
        unadapted: tensors by their names in a checkpoint, from before adapters were merged.
    """
    first = len(vit.blocks) - num_blocks
    copies = nn.ModuleList(copy.deepcopy(block) for block in vit.blocks[first : max(blocks) + 1])
    for index, block in enumerate(copies, first):
        if hasattr(block.attn, "num_prefix_tokens"):  # tokens without a rotary position
            block.attn.num_prefix_tokens = vit.num_prefix_tokens
        for name, tensor in block.state_dict().items():
            tensor.copy_((unadapted or {}).get(f"backbone.blocks.{index}.{name}", tensor))
    return copies.eval().requires_grad_(False) if len(copies) else None


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
    """Choose rows for a memory; returns their numbers, (min(count, P),) int64.

    Args:
        tokens: (P, C) candidates.
        count: most rows to choose.
        generator: source of randomness.
        coreset: greedily choose the token that is farthest from all chosen ones (k-center, as in
            PatchCore, arXiv:2106.08265) instead of at random. A few rows then cover rare patches
            too, at a cost of count * P * C multiplications.
    """
    order = torch.randperm(len(tokens), generator=generator)
    if not coreset or len(tokens) <= count:
        return order[:count]
    unit = F.normalize(tokens.float(), dim=-1)
    chosen = [int(order[0])]
    nearest = unit @ unit[chosen[0]]
    while len(chosen) < count:
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, unit @ unit[chosen[-1]])
    return torch.tensor(chosen)


def leave_one_out(rows: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and spread of the rows' distances to the nearest row of another photograph.

    Neighbours within one photograph are nearly equal, and overlapping windows hold the same patch
    twice, so that distances to them would say nothing about a photograph that is not in the memory.
    Rows of a single photograph are compared with each other.

    Args:
        rows: (M, R, C) tokens of M blocks.
        images: (R,) number of the photograph that each row is from.
    Returns:
        both (M,) float32; a spread is at least 1e-6.
    Raises:
        ValueError: there is only one row.
    """
    if len(images) < 2:
        raise ValueError("a memory of several blocks needs at least two rows to be standardised")
    if len(images.unique()) == 1:
        images = torch.arange(len(images))
    found = []
    for own in rows:
        unit = F.normalize(own.float(), dim=-1)
        nearest = [
            (some @ unit.T).masked_fill_(image[:, None] == images, -1).amax(dim=-1)
            for some, image in zip(unit.split(1024), images.split(1024), strict=True)
        ]
        found.append(1 - torch.cat(nearest).clamp(max=1))
    distances = torch.stack(found)
    return distances.mean(dim=1), distances.std(dim=1, correction=0).clamp(min=1e-6)
