"""A checkpoint: its weights, and the sizes and settings of the model that they belong to."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from anoseg_d2.checkpoint.lora_state import lora_module_names
from anoseg_d2.checkpoint.names import variant_of
from anoseg_d2.utils.constants import PIXEL_MEAN, PIXEL_STD

__all__ = [
    "FORMAT_NAME",
    "FORMAT_VERSION",
    "Checkpoint",
    "ModelSpec",
    "facts_of_file",
    "has_swiglu",
    "pixel_statistics",
]

FORMAT_NAME = "anoseg_d2"
FORMAT_VERSION = 1

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

# Width to attention heads of DINOv2's and DINOv3's ViTs: no tensor's shape shows them.
_HEADS = {384: 6, 768: 12, 1024: 16, 1536: 24}


@dataclass
class ModelSpec:
    """Sizes and settings of a model as its checkpoint states them; None for what is unknown.

    Attributes:
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
        pos_prefix: rows of the position embedding that come before those of the patches.
        num_queries: Q.
        num_blocks: last ViT blocks that see the queries.
        num_rows: R, rows of the class head: known classes, anomaly class if any, no-object.
        num_known: K, the known classes.
        has_anomaly: whether row K is the learned anomaly class.
        has_bias: whether the class head has a bias.
        head: registered name of the class head.
        head_options: arguments that the class head was built with.
        class_names: names of the K known classes.
        pixel_mean, pixel_std: input statistics of RGB 0..255.
        adapters: LoRA modules to `{"rank", "alpha", "enable"}`, as the metadata say.
        has_adapters: whether LoRA tensors are among the weights.
    """

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
    pos_prefix: int | None = None
    num_queries: int | None = None
    num_blocks: int | None = None
    num_rows: int | None = None
    num_known: int | None = None
    has_anomaly: bool | None = None
    has_bias: bool | None = None
    head: str | None = None
    head_options: dict[str, Any] = field(default_factory=dict)
    class_names: list[str] | None = None
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
        spec = cls(has_adapters=bool(lora_module_names(state)))
        spec._read_backbone(state)
        spec._read_heads(state)
        for name, value in facts.items():
            if value is not None:
                setattr(spec, name, _read_fact(name, value))
        spec._read_grid(state)
        if spec.image_size is None and spec.grid and spec.patch_size:
            spec.image_size = tuple(side * spec.patch_size for side in spec.grid)
        if spec.has_anomaly is not None and spec.num_rows is not None:
            spec.num_known = spec.num_rows - 1 - int(spec.has_anomaly)
            if spec.num_known < 1:
                raise ValueError(f"class_head.weight has {spec.num_rows} rows: no known class")
        return spec

    def _read_backbone(self, state: Mapping[str, Tensor]) -> None:
        kernel, registers = (
            state.get(f"backbone.{name}") for name in ("patch_embed.proj.weight", "reg_token")
        )
        self.swiglu = has_swiglu(state)
        self.num_registers = 0 if registers is None else registers.shape[1]
        if kernel is not None:
            self.backbone = "dinov3" if variant_of(state) == "dinov3" else "dinov2"
            self.width, self.patch_size = kernel.shape[0], kernel.shape[-1]
        found = (re.match(r"backbone\.blocks\.([0-9]+)\.", name) for name in state)
        blocks = {int(match[1]) for match in found if match}
        if blocks and kernel is not None and blocks != set(range(len(blocks))):
            raise ValueError(f"{len(blocks)} ViT blocks are there, one is numbered {max(blocks)}")
        self.depth = len(blocks) or None

    def _read_heads(self, state: Mapping[str, Tensor]) -> None:
        rows, query = state.get("class_head.weight"), state.get("query.weight")
        if query is not None:
            self.num_queries = query.shape[0]
        if rows is not None:
            self.num_rows, self.has_bias = rows.shape[0], "class_head.bias" in state

    def _read_grid(self, state: Mapping[str, Tensor]) -> None:
        """Find how the P rows of the position embedding split into prefix and grid."""
        embed = state.get("backbone.pos_embed")
        if embed is None:
            self.pos_prefix = 0
            return
        rows = embed.shape[1]
        if self.grid:
            self.pos_prefix = rows - self.grid[0] * self.grid[1]
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

    def known(self) -> dict[str, Any]:
        """Return the fields that are known, by name, for printing."""
        values = ((entry.name, getattr(self, entry.name)) for entry in fields(self))
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


def has_swiglu(state: Mapping[str, Tensor]) -> bool:
    """Whether the MLPs are gated (DINOv2's giant): the first layer holds two halves."""
    first, second = (state.get(f"backbone.blocks.0.mlp.fc{i}.weight") for i in (1, 2))
    if first is None or second is None or first.dim() != 2 or second.dim() != 2:
        return False
    return first.shape[0] == 2 * second.shape[1]


# ---- what a file says about its model -------------------------------------------------------


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1_000_000:
        raise ValueError("a positive integer is needed")
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("True or False is needed")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a name is needed")
    return value


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError("a positive number is needed")
    return float(value)


def _pair(value: Any) -> tuple[int, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError("two positive integers are needed")
    return _integer(value[0]), _integer(value[1])


def _three(value: Any) -> tuple[float, ...]:
    numbers = isinstance(value, (list, tuple)) and len(value) == 3
    if not numbers or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in value):
        raise ValueError("three numbers are needed")
    return tuple(float(v) for v in value)


def _names(value: Any) -> list[str]:
    if not isinstance(value, (list, tuple)):
        raise ValueError("a list of names is needed")
    return [_text(name) for name in value]


def _options(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(
        isinstance(key, str) and isinstance(entry, (int, float, str))
        for key, entry in value.items()
    ):
        raise ValueError("options with plain values are needed")
    return dict(value)


def _adapters(value: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(value, Mapping):
        raise ValueError("LoRA modules by name are needed")
    return {
        _text(name): {
            "rank": _integer(entry["rank"]),
            "alpha": _positive(entry["alpha"]),
            "enable": None
            if entry["enable"] is None
            else [_boolean(part) for part in entry["enable"]],
        }
        for name, entry in value.items()
    }


# How each field that a file may state is checked and converted.
_READERS: dict[str, Callable[[Any], Any]] = {
    "heads": _integer,
    "num_blocks": _integer,
    "has_anomaly": _boolean,
    "head": _text,
    "head_options": _options,
    "class_names": _names,
    "image_size": _pair,
    "grid": _pair,
    "backbone": _text,
    "norm_eps": _positive,
    "pixel_mean": _three,
    "pixel_std": _three,
    "adapters": _adapters,
}


def _read_fact(name: str, value: Any) -> Any:
    try:
        return _READERS[name](value)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"its metadata give {name} as {repr(value)[:80]}: {error}") from error


def facts_of_file(
    fmt: str, state: Mapping[str, Tensor], meta: Mapping[str, Any], config: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Collect what a file states about its model besides the shapes of its weights.

    Args:
        fmt: its format.
        state: cleaned names of the file to tensors.
        meta: metadata of our own files, else empty.
        config: config.json next to a Hugging Face file.
    Returns:
        fields of `ModelSpec` by name, unchecked.
    """
    if meta:
        facts = {name: meta.get(name) for name in _READERS}
        lora = meta.get("lora")
        facts["adapters"] = lora.get("modules") if isinstance(lora, Mapping) else None
        return facts
    facts = {}
    if fmt in ("eomt_official", "huggingface"):
        facts |= {"head": "linear", "has_anomaly": False}
        probabilities = state.get("attn_mask_probs")
        if probabilities is not None:
            facts["num_blocks"] = probabilities.numel()
        for key in ("pixel_mean", "pixel_std"):
            statistics = state.get(f"encoder.{key}", state.get(key))
            if statistics is not None and statistics.any():  # all 0 in a delta
                facts[key] = [255.0 * float(value) for value in statistics.flatten()]
    if fmt == "huggingface" and config:
        facts |= _facts_of_config(config)
    return facts


def _facts_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    model_type = config.get("model_type", "eomt")
    if model_type not in ("eomt", "eomt_dinov3"):
        raise ValueError(
            f"config.json says model_type {model_type!r}; supported are 'eomt' and 'eomt_dinov3'"
        )
    # The defaults are those of transformers, which leaves them out of the file.
    image, patch = config.get("image_size", 640), config.get("patch_size", 16)
    image = _pair([image, image] if isinstance(image, int) else image)
    patch = _integer(patch[0] if isinstance(patch, (list, tuple)) else patch)
    labels = config.get("id2label") or {}
    ours = config.get(FORMAT_NAME) or {}
    if not isinstance(labels, Mapping) or not isinstance(ours, Mapping):
        raise ValueError(f"config.json: id2label and {FORMAT_NAME} must be objects")
    has_anomaly = bool(ours.get("has_anomaly", False))
    names = [labels[key] for key in sorted(labels, key=int)]
    return {
        "heads": config.get("num_attention_heads", 16),
        "norm_eps": config.get("layer_norm_eps", 1e-6),
        "num_blocks": config.get("num_blocks", 4),
        "image_size": image,
        "grid": tuple(side // patch for side in image),
        "class_names": (names[:-1] if has_anomaly else names) or None,
        "has_anomaly": has_anomaly,
    }


def pixel_statistics(preprocessor: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return mean and deviation of RGB 0..255 that a Hugging Face image processor applies.

    Args:
        preprocessor: content of preprocessor_config.json.
    Raises:
        ValueError: its values are not numbers.
    """

    def applies(step: str) -> bool:
        return bool(preprocessor.get(f"do_{step}", True))

    factor = preprocessor.get("rescale_factor", 1 / 255) if applies("rescale") else 1.0
    factor = _positive(factor)
    statistics = {}
    for key, name, neutral, default in (
        ("pixel_mean", "image_mean", 0.0, PIXEL_MEAN),
        ("pixel_std", "image_std", 1.0, PIXEL_STD),
    ):
        values = (neutral,) * 3
        if applies("normalize"):
            values = _three(preprocessor.get(name, [v / 255 for v in default]))
        statistics[key] = [round(value / factor, 6) for value in values]
    return statistics
