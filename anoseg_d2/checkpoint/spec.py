"""Describe a checkpoint by its weights and the sizes and settings of their model."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from anoseg_d2.checkpoint.names import variant_of
from anoseg_d2.utils.constants import VIT_SIZES
from anoseg_d2.utils.ranges import shown

__all__ = [
    "ARCHITECTURE_VERSION",
    "FACTS",
    "FORMAT_NAME",
    "FORMAT_VERSION",
    "Checkpoint",
    "ModelSpec",
    "read_fact",
]

FORMAT_NAME = "anoseg_d2"
FORMAT_VERSION = 1
# Of files that name another architecture than EoMT, which readers of version 1 do not know.
ARCHITECTURE_VERSION = 2

# Dimensions of the tensors that sizes are read from.
_DIMENSIONS = {
    "backbone.patch_embed.proj.weight": 4,
    "backbone.pos_embed": 3,
    "backbone.cls_token": 3,
    "backbone.reg_token": 3,
    "class_head.weight": 2,
    "class_head.bias": 1,
    "class_head.scale": 0,
    "query.weight": 2,
}

# DINOv2's and DINOv3's attention heads by width: no tensor's shape shows them.
_HEADS = {size.width: size.heads for size in VIT_SIZES.values()}


@dataclass
class ModelSpec:
    """Sizes and settings of a model as its checkpoint states them; None for what is unknown.

    Attributes:
        architecture: name of the model in detectron2's registry where it is not EoMT.
        backbone: "dinov2" or "dinov3".
        swiglu: whether the MLPs are gated, as in DINOv2's giant.
        width: C, channels of a token.
        depth: number of ViT blocks.
        heads: attention heads per block.
        patch_size: side of a patch in pixels.
        num_registers: register tokens.
        norm_eps: epsilon of the ViT's layer norms.
        image_size: (H, W) in pixels that the model sees.
        grid: (rows, columns) of the patches.
        grid_stated: whether the file says so; else the grid is a guess from the number of rows.
        pos_rows: rows of the position embedding.
        pos_prefix: rows of the position embedding that come before those of the patches.
        num_queries: Q.
        num_blocks: last ViT blocks that see the queries.
        mask_probs: probability of the attention mask of each query block when the model is used,
            if a training left masks on.
        num_rows: R, rows of the class head: known classes, anomaly class if any, no-object.
        num_known: K, the known classes.
        has_anomaly: whether row K is the learned anomaly class.
        has_bias: whether the class head has a bias.
        head: registered name of the class head.
        head_options: arguments that the class head was built with.
        class_names: names of the K known classes.
        score_statistics: mean and deviation of scores on known pixels, which ensembles need.
        pixel_mean, pixel_std: input statistics of RGB 0..255.
        adapters: LoRA modules to `{"rank", "alpha", "enable"}`, as the metadata says.
        has_adapters: whether LoRA tensors are among the weights.
    """

    architecture: str | None = None
    backbone: str | None = None
    swiglu: bool = False
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    patch_size: int | None = None
    num_registers: int = 0
    norm_eps: float | None = None
    image_size: tuple[int, int] | None = None
    grid: tuple[int, int] | None = None
    grid_stated: bool = field(default=False, repr=False)
    pos_rows: int | None = field(default=None, repr=False)
    pos_prefix: int | None = None
    num_queries: int | None = None
    num_blocks: int | None = None
    mask_probs: tuple[float, ...] | None = None
    num_rows: int | None = None
    num_known: int | None = None
    has_anomaly: bool | None = None
    has_bias: bool | None = None
    head: str | None = None
    head_options: dict[str, Any] = field(default_factory=dict)
    class_names: list[str] | None = None
    score_statistics: dict[str, tuple[float, float]] = field(default_factory=dict, repr=False)
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None
    adapters: dict[str, dict[str, Any]] = field(default_factory=dict)
    has_adapters: bool = False

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> "ModelSpec":
        """Read the sizes of a model from its tensors, and add what its file states about it.

        Args:
            state: our names to tensors.
            facts: fields by name, from metadata or config.json; they take precedence over tensors.
        Raises:
            ValueError: a tensor or a fact has a form that its name rules out.
        """
        for name, dims in _DIMENSIONS.items():
            if name in state and state[name].dim() != dims:
                raise ValueError(
                    f"{name} must have {dims} dimensions, is {tuple(state[name].shape)}"
                )
        spec = cls(has_adapters=any(name.endswith(".lora_A") for name in state))
        spec._read_sizes(state)
        for name, value in facts.items():
            if value is not None:
                setattr(spec, name, read_fact(name, value))
        spec._read_grid(state)
        if spec.image_size is None and spec.grid and spec.patch_size:
            spec.image_size = tuple(side * spec.patch_size for side in spec.grid)
        if spec.has_anomaly is not None and spec.num_rows is not None:
            spec.num_known = spec.num_rows - 1 - int(spec.has_anomaly)
            if spec.num_known < 1:
                raise ValueError(f"class_head.weight has {spec.num_rows} rows: no known class")
        return spec

    def _read_sizes(self, state: Mapping[str, Tensor]) -> None:
        kernel, registers = (
            state.get(f"backbone.{name}") for name in ("patch_embed.proj.weight", "reg_token")
        )
        first, second = (state.get(f"backbone.blocks.0.mlp.fc{i}.weight") for i in (1, 2))
        if first is not None and second is not None and first.dim() == second.dim() == 2:
            self.swiglu = first.shape[0] == 2 * second.shape[1]  # two halves in one layer
        self.num_registers = 0 if registers is None else registers.shape[1]
        if kernel is not None:
            self.backbone = "dinov3" if variant_of(state) == "dinov3" else "dinov2"
            self.width, self.patch_size = kernel.shape[0], kernel.shape[-1]
        found = (re.match(r"backbone\.blocks\.([0-9]+)\.", name) for name in state)
        blocks = {int(match[1]) for match in found if match}
        # Only of a whole ViT: an adapter file may hold just the blocks that it adapts.
        if blocks and kernel is not None and blocks != set(range(len(blocks))):
            raise ValueError(f"found {len(blocks)} ViT blocks, but block index {max(blocks)}")
        self.depth = len(blocks) or None
        if "query.weight" in state:
            self.num_queries = state["query.weight"].shape[0]
        if "class_head.weight" in state:
            self.num_rows = state["class_head.weight"].shape[0]
            self.has_bias = "class_head.bias" in state

    def _read_grid(self, state: Mapping[str, Tensor]) -> None:
        """Find how the P rows of the position embedding split into prefix and grid."""
        embed = state.get("backbone.pos_embed")
        if embed is None:
            self.pos_prefix = 0
            return
        self.pos_rows = rows = embed.shape[1]
        if self.grid is None and self.image_size and self.patch_size:
            self.grid = tuple(side // self.patch_size for side in self.image_size)
        if self.grid:
            self.grid_stated = True
            self.pos_prefix = rows - math.prod(self.grid)
            return
        # Only our own files state their grid. The others are square, behind no prefix,
        # the class token's row, or rows of the class token and the registers.
        for prefix in (0, 1, 1 + self.num_registers):
            side = math.isqrt(max(rows - prefix, 0))
            if side > 0 and side * side == rows - prefix:
                self.grid, self.pos_prefix = (side, side), prefix
                return

    def attention_heads(self) -> int:
        """Return the attention heads that the checkpoint states, or those of the ViT of its width.

        Raises:
            ValueError: neither is known.
        """
        heads = self.heads or _HEADS.get(self.width)
        if heads is None:
            raise ValueError(
                "the checkpoint does not state its attention heads, and width "
                f"{self.width} is none of DINOv2's or DINOv3's; give them (--num-heads)"
            )
        return heads

    def complete(
        self,
        num_blocks: int | None = None,
        heads: int | None = None,
        image_size: Sequence[int] | None = None,
    ) -> None:
        """Fill in what the file does not state about its model; None fills in nothing.

        Raises:
            ValueError: the file states something else, or patches do not fill the image.
        """
        image_size = tuple(image_size) if image_size else None
        if image_size and self.pos_rows and not self.grid_stated:
            self.image_size = None  # of a guessed grid, which the user knows better
        given = {"num_blocks": num_blocks, "heads": heads, "image_size": image_size}
        for name, value in given.items():
            known = getattr(self, name)
            if value and known and known != value:
                raise ValueError(f"{name} {value} is given, but the checkpoint says {known}")
            setattr(self, name, known or value)
        if image_size:
            if self.patch_size is None or any(side % self.patch_size for side in image_size):
                raise ValueError(f"image_size {image_size}: patches have {self.patch_size} pixels")
            self.grid = tuple(side // self.patch_size for side in image_size)
            self.grid_stated = True
        if image_size and self.pos_rows:
            self.pos_prefix = self.pos_rows - math.prod(self.grid)
            if self.pos_prefix not in (0, 1, 1 + self.num_registers):
                raise ValueError(
                    f"image_size {image_size} has {self.grid[0]} x {self.grid[1]} patches, but the "
                    f"checkpoint has {self.pos_rows} positions"
                )

    def known(self) -> dict[str, Any]:
        """Return the sizes and settings that are known, by name, for printing."""
        values = ((entry.name, getattr(self, entry.name)) for entry in fields(self) if entry.repr)
        return {name: value for name, value in values if value not in (None, {})}


@dataclass
class Checkpoint:
    """Weights under our names, and what their file states about them.

    Attributes:
        state_dict: our names to tensors, as stored (dtype and shapes of the file).
        format: one of `formats.FORMATS`.
        spec: sizes and settings of the model.
        source: what was asked for, for messages.
        ignored: (name, reason) of stored tensors that are not weights of the model.
        meta: metadata of our own files, or the Hugging Face config.
        extra: other entries of our own files (optimizer, trainer, iteration).
        file: the file itself, of the folder or hub that `source` names; None for timm's weights.
    """

    state_dict: dict[str, Tensor]
    format: str
    spec: ModelSpec
    source: str
    ignored: list[tuple[str, str]] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None

    def require_whole(self) -> None:
        """Raise ValueError for an adapter file, which only its base makes a model."""
        if self.format == "anoseg_adapter":
            raise ValueError(
                f"{self.source} holds only adapters; join them with their base first: anoseg "
                f"convert {self.source} --base BASE --to anoseg --output whole.pth"
            )


def _list(value: Any) -> list:
    # A text would be taken apart into letters, and "44" into two digits.
    if isinstance(value, str):
        raise ValueError("a list is needed")
    return list(value)


def _sizes(value: Any) -> tuple[int, int]:
    rows, columns = map(int, _list(value))
    if rows < 1 or columns < 1:
        raise ValueError("two positive integers are needed")
    return rows, columns


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(map(float, _list(value)))


def _statistics(value: Any) -> dict[str, tuple[float, float]]:
    pairs = {str(name): _numbers(pair) for name, pair in value.items()}
    if any(len(pair) != 2 for pair in pairs.values()):
        raise ValueError("mean and deviation of each score are needed")
    return pairs


def _adapters(value: Any) -> dict[str, dict[str, Any]]:
    for name, rule in value.items():
        if not {"rank", "alpha", "enable"} <= set(rule):
            raise ValueError(f"{name} needs rank, alpha and enable")
    return dict(value)


# What a file may state about its model, and how it is read. Ranges are those of the config keys
# that the model is built from.
FACTS: dict[str, Callable[[Any], Any]] = {
    "architecture": str,
    "heads": int,
    "num_blocks": int,
    "has_anomaly": bool,
    "head": str,
    "head_options": dict,
    "class_names": _list,
    "score_statistics": _statistics,
    "image_size": _sizes,
    "grid": _sizes,
    "backbone": str,
    "norm_eps": float,
    "mask_probs": _numbers,
    "pixel_mean": _numbers,
    "pixel_std": _numbers,
    "adapters": _adapters,
}


def read_fact(name: str, value: Any) -> Any:
    """Convert what a file states about its model; raises a ValueError that names it."""
    try:
        return FACTS[name](value)
    except (AttributeError, ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"its metadata gives {name} as {shown(value)[:80]}: {error}") from error
