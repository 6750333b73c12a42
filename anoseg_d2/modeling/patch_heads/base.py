"""Base class and registry of patch heads, which compute maps from patch tokens, not queries.

Shape letters: B images, N patches, C width, (gh, gw) patch grid, (h, w) grid of the map, which may
be finer than the patches, (H, W) pixels.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from anoseg_d2.utils.registry import Registry

PATCH_HEADS = Registry("patch head")
# Start of the names of their tensors in a checkpoint, before the name of the head.
PATCH_PREFIX = "patch_maps."


def free_block(depth: int, num_blocks: int) -> int:
    """Return the last ViT block, counted from 0, that the queries have not entered.

    Args:
        depth: number of ViT blocks.
        num_blocks: last blocks that see the queries; 0 for a bare backbone.
    Raises:
        ValueError: the queries enter before the first block.
    """
    if num_blocks >= depth:
        raise ValueError(f"queries enter all {depth} blocks: no patch token is free of them")
    return depth - num_blocks - 1


class PatchHead(nn.Module):
    """Base of the patch heads. Subclass it and register the subclass in `PATCH_HEADS`.

    A patch head turns tokens of some ViT blocks into a map, which windows merge like every other
    map and scores read by the head's name (`register_score(maps=("mine",))`). It needs no queries,
    so that it also works on a bare backbone. One with a `loss` trains next to the network, whose
    other losses it does not touch unless its gradient reaches the tokens.

    Args:
        width: C.
        blocks: ViT blocks, counted from 0, whose outputs it reads.
        options: of `options_class`; None for the defaults.
    """

    # Dataclass of its options, which checkpoints hold as plain values; None without options.
    options_class: ClassVar[type | None] = None
    # How a model gets one, for error messages.
    wanted: ClassVar[str] = "give it to EoMT as `patch_heads`"

    def __init__(self, width: int, blocks: Iterable[int], options: Any = None):
        super().__init__()
        self.width, self.blocks = width, tuple(blocks)
        if options is None and self.options_class is not None:
            options = self.options_class()
        self.options = options

    @property
    def sources(self) -> tuple[int | str, ...]:
        """What `run_network` is asked for: a number is the output of that block of the network."""
        return self.blocks

    @classmethod
    def choose_blocks(cls, depth: int, num_blocks: int) -> tuple[int, ...]:
        """Return the blocks that it reads; here the last one without queries, see `free_block`."""
        return (free_block(depth, num_blocks),)

    @classmethod
    def from_config(cls, cfg) -> Any:
        """Return the options of the head that a config asks for; None where it asks for none."""
        return None

    @classmethod
    def learning_rate_factor(cls, cfg) -> float:
        """Return the factor on SOLVER.BASE_LR for its parameters."""
        return 1.0

    def forward(self, tokens: Mapping[int | str, Tensor], grid: tuple[int, int]) -> Tensor:
        """Return the map (B, 1, h, w), float32, of {source: tokens (B, N, C)} on grid (gh, gw)."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def loss(self, tokens: Mapping[int, Tensor], sem_seg: Tensor, num_known: int) -> Tensor | None:
        """Return the loss of each image; None, as here, when the head is not trained.

        Args:
            tokens: {block: (B, N, C)}.
            sem_seg: (B, H, W) integers: 0..num_known - 1 known, above it unknown, 255 void.
            num_known: K.
        Returns:
            (B,) float32.
        """
        return None

    @staticmethod
    def grid_of(tokens: Mapping[int, Tensor], sem_seg: Tensor) -> tuple[int, int]:
        """Return (gh, gw): patches are square, so their side follows from their number."""
        height, width = sem_seg.shape[-2:]
        patches = next(iter(tokens.values())).shape[1]
        side = round((height * width / patches) ** 0.5)
        return height // side, width // side

    def check(self, patch_size: int) -> None:
        """Raise ValueError if the head does not fit patches of this many pixels along a side."""

    def check_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Raise ValueError if the head was made for another backbone than that of a checkpoint."""

    def state(self) -> dict[str, Any]:
        """Return what `from_state` needs in addition to the tensors, as plain values."""
        options = {} if self.options is None else dataclasses.asdict(self.options)
        return {"blocks": list(self.blocks), "options": options}

    @classmethod
    def from_state(cls, state: dict, tensors: dict, vit: nn.Module, num_blocks: int) -> "PatchHead":
        """Build the head that a checkpoint holds; its tensors are loaded afterwards.

        Args:
            state: of `state`; empty in files that say nothing about the head.
            tensors: of the head, by their names within it.
            vit, num_blocks: the backbone that it is attached to, and how many blocks see queries.
        """
        blocks = state.get("blocks") or cls.choose_blocks(len(vit.blocks), num_blocks)
        options = None
        if cls.options_class is not None:
            options = cls.options_class(**state.get("options", {}))
        return cls(vit.embed_dim, blocks, options)
