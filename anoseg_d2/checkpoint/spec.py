"""Describe a checkpoint by its weights and the sizes and settings of their model."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from anoseg_d2.checkpoint.names import is_dinov3
from anoseg_d2.utils.constants import VIT_SIZES
from anoseg_d2.utils.ranges import shown

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


def _fact(read: Callable[[Any], Any] | None = None, key: str = "", **options: Any) -> Any:
    """Return a field of `ModelSpec`.

    Args:
        read: converts what a file states; None if files do not state it. Ranges are not checked
            here: those of the config keys that the model is built from hold.
        key: config key that builds it.
        options: of `dataclasses.field`; None by default.
    """
    return field(**(options or {"default": None}), metadata={"read": read, "key": key})


@dataclass
class ModelSpec:
    """Sizes and settings of a model as its checkpoint states them; None for what is unknown."""

    # Its name in detectron2's registry, if it is not EoMT.
    architecture: str | None = _fact(str, "MODEL.META_ARCHITECTURE")
    backbone: str | None = _fact(str, "MODEL.EOMT.BACKBONE")  # dinov2 or dinov3
    swiglu: bool = False  # whether the MLPs are gated, as in DINOv2's giant
    width: int | None = None  # C, channels of a token
    depth: int | None = None  # ViT blocks
    heads: int | None = _fact(int)  # attention heads per block
    patch_size: int | None = _fact(key="MODEL.EOMT.PATCH_SIZE")  # side in pixels
    num_registers: int = _fact(key="MODEL.EOMT.NUM_REGISTERS", default=0)
    norm_eps: float | None = _fact(float, "MODEL.EOMT.NORM_EPS")  # of the ViT's layer norms
    image_size: tuple[int, int] | None = _fact(_sizes, "INPUT.CROP_SIZE")  # (H, W) of the input
    grid: tuple[int, int] | None = _fact(_sizes)  # (rows, columns) of the patches
    # Whether the file says so; else the grid is a guess from the number of rows.
    grid_stated: bool = field(default=False, repr=False)
    pos_rows: int | None = field(default=None, repr=False)  # of the position embedding
    pos_prefix: int | None = None  # those of them that come before the patches
    num_queries: int | None = _fact(key="MODEL.EOMT.NUM_QUERIES")  # Q
    num_blocks: int | None = _fact(int, "MODEL.EOMT.NUM_BLOCKS")  # last ones that see the queries
    # Probability of each query block's attention mask, if a training left masks on.
    mask_probs: tuple[float, ...] | None = _fact(_numbers)
    num_rows: int | None = None  # R, of the class head: K known, the anomaly if any, no-object
    num_known: int | None = _fact(key="MODEL.EOMT.NUM_CLASSES")  # K
    has_anomaly: bool | None = _fact(bool, "MODEL.EOMT.ANOMALY_CLASS")  # whether row K is learned
    has_bias: bool | None = None  # of the class head
    head: str | None = _fact(str, "MODEL.HEAD.NAME")  # registered name of the class head
    head_options: dict[str, Any] = _fact(dict, default_factory=dict)
    class_names: list[str] | None = _fact(_list)  # of the K known classes
    # Mean and deviation of scores on known pixels, which ensembles need.
    score_statistics: dict[str, tuple[float, float]] = _fact(
        _statistics, default_factory=dict, repr=False
    )
    pixel_mean: tuple[float, ...] | None = _fact(_numbers, "MODEL.PIXEL_MEAN")  # of RGB 0..255
    pixel_std: tuple[float, ...] | None = _fact(_numbers, "MODEL.PIXEL_STD")
    # LoRA modules to {"rank", "alpha", "enable"}, as the metadata says.
    adapters: dict[str, dict[str, Any]] = _fact(_adapters, default_factory=dict)
    has_adapters: bool = False  # whether LoRA tensors are among the weights

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
        kernel = state.get("backbone.patch_embed.proj.weight")
        if kernel is not None:
            self.backbone = "dinov3" if is_dinov3(state) else "dinov2"
            self.width, self.patch_size = kernel.shape[0], kernel.shape[-1]
        first, second = (state.get(f"backbone.blocks.0.mlp.fc{i}.weight") for i in (1, 2))
        if first is not None and second is not None and first.dim() == second.dim() == 2:
            self.swiglu = first.shape[0] == 2 * second.shape[1]  # two halves in one layer
        if "backbone.reg_token" in state:
            self.num_registers = state["backbone.reg_token"].shape[1]
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
        if not image_size:
            return
        if self.patch_size is None or any(side % self.patch_size for side in image_size):
            raise ValueError(f"image_size {image_size}: patches have {self.patch_size} pixels")
        self.grid = tuple(side // self.patch_size for side in image_size)
        self.grid_stated = True
        if self.pos_rows:
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


# What a file may state about its model, and how it is read.
FACTS = {f.name: f.metadata["read"] for f in fields(ModelSpec) if f.metadata.get("read")}
# The config keys that build a model of these sizes and settings, by field.
CONFIG_KEYS = {f.name: f.metadata["key"] for f in fields(ModelSpec) if f.metadata.get("key")}


def read_fact(name: str, value: Any) -> Any:
    """Convert what a file states about its model; raises a ValueError that names it."""
    try:
        return FACTS[name](value)
    except (AttributeError, ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"its metadata gives {name} as {shown(value)[:80]}: {error}") from error


@dataclass
class Checkpoint:
    """Weights under our names, and what their file states about them.

    Attributes:
        state_dict: our names to tensors, as stored (dtype and shapes of the file).
        format: one of `formats.FORMATS`.
        spec: sizes and settings of the model.
        source: what was asked for, for messages.
        ignored: (name, reason) of stored tensors that are not weights of the model.
        meta: metadata of our own files.
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
