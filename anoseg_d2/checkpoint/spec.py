"""What a checkpoint is: its weights, sizes and metadata."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from anoseg_d2.checkpoint.formats import IMAGENET, _is_dinov3
from anoseg_d2.checkpoint.lora_state import lora_module_names

__all__ = [
    "Checkpoint",
    "FORMAT_NAME",
    "FORMAT_VERSION",
    "attention_heads",
    "has_swiglu",
    "sizes_from_state",
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
    "query.weight": 2,
}

# DINOv2's and DINOv3's ViTs, whose files do not tell their attention heads: width to heads.
_HEADS = {384: 6, 768: 12, 1024: 16, 1536: 24}


@dataclass
class Checkpoint:
    """Weights under our names, and what their file says of them.

    Attributes:
        state_dict: our names to tensors, as stored (dtype and shapes of the file).
        format: one of `formats.FORMATS`.
        spec: sizes, see `formats.sizes_from_state`.
        source: where it was read from.
        ignored: (name, reason) of stored tensors that are no weights of the model.
        meta: metadata of our own files, or the Hugging Face config.
        extra: other entries of our own files (optimizer, trainer, iteration).
        file: the file itself, of the folder or hub that `source` names; None for timm's weights.
    """

    state_dict: dict[str, Tensor]
    format: str
    spec: dict[str, Any]
    source: str
    ignored: list[tuple[str, str]] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None


def _hints(meta: Mapping[str, Any]) -> dict[str, Any]:
    names = "heads num_blocks has_anomaly head head_options class_names image_size grid lora"
    names += " backbone norm_eps"
    hints = {key: meta[key] for key in names.split() if meta.get(key) is not None}
    for key in ("pixel_mean", "pixel_std"):
        if meta.get(key) is not None:
            hints[key] = [float(value) for value in meta[key]]
    return hints


def _hints_of(fmt: str, state: Mapping[str, Tensor], config) -> dict[str, Any]:
    """What an official or Hugging Face file tells beside its weights."""
    hints: dict[str, Any] = {}
    if fmt in ("eomt_official", "huggingface"):
        hints |= {"head": "linear", "has_anomaly": False}
        probabilities = state.get("attn_mask_probs")
        hints["num_blocks"] = None if probabilities is None else len(probabilities)
        for key in ("pixel_mean", "pixel_std"):
            statistics = state.get(f"encoder.{key}", state.get(key))
            if statistics is not None and statistics.any():  # all 0 in a delta
                hints[key] = [255.0 * float(value) for value in statistics.flatten()]
    if fmt == "huggingface" and config:
        hints |= _huggingface_hints(config)
    return hints


def _huggingface_hints(config: Mapping[str, Any]) -> dict[str, Any]:
    model_type = config.get("model_type", "eomt")
    if model_type not in ("eomt", "eomt_dinov3"):
        raise ValueError(
            f"config.json says model_type {model_type!r}; supported are 'eomt' and 'eomt_dinov3'"
        )
    image, patch = config.get("image_size", 640), config.get("patch_size", 16)
    image = (image, image) if isinstance(image, int) else tuple(image)
    patch = patch if isinstance(patch, int) else patch[0]
    labels = config.get("id2label") or {}
    ours = config.get(FORMAT_NAME) or {}
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


def _pixel_statistics(preprocessor: Mapping[str, Any]) -> dict[str, list[float]]:
    """Mean and deviation of RGB 0..255 that a Hugging Face image processor takes off."""
    factor = preprocessor.get("rescale_factor", 1 / 255) if _on(preprocessor, "rescale") else 1.0
    statistics = {}
    for key, name, neutral in (("pixel_mean", "image_mean", 0.0), ("pixel_std", "image_std", 1.0)):
        values = [neutral] * 3
        if _on(preprocessor, "normalize"):
            values = preprocessor.get(name, [v / 255 for v in IMAGENET[key]])
        statistics[key] = [round(float(value) / factor, 6) for value in values]
    return statistics


def _on(preprocessor: Mapping[str, Any], step: str) -> bool:
    return bool(preprocessor.get(f"do_{step}", True))


def sizes_from_state(state: Mapping[str, Tensor], hints: Mapping[str, Any]) -> dict[str, Any]:
    """Read the sizes of a model off its tensors (our names).

    Args:
        state: our names to tensors.
        hints: what the file says besides (metadata, config.json); they win where both speak.
    Returns:
        `backbone swiglu width depth heads patch_size image_size grid pos_prefix num_registers
        num_queries num_blocks num_rows num_known has_anomaly has_bias head class_names norm_eps
        pixel_mean pixel_std lora`; what neither weights nor hints tell is None. `grid` is (rows,
        columns) of the patches, `pos_prefix` how many rows of the position embedding come before
        them.
    Raises:
        ValueError: a tensor has not the number of dimensions that its name promises.
    """
    for name, dims in _DIMENSIONS.items():
        if name in state and state[name].dim() != dims:
            raise ValueError(f"{name} must have {dims} dimensions, is {tuple(state[name].shape)}")
    spec: dict[str, Any] = {"heads": None, "num_blocks": None, "has_anomaly": None, "head": None}
    spec |= {"class_names": None, "pixel_mean": None, "pixel_std": None, "image_size": None}
    spec["norm_eps"] = None
    spec |= _backbone_sizes(state) | _head_sizes(state)
    spec |= {key: value for key, value in hints.items() if value is not None}
    spec |= _position_grid(state, spec)
    if spec["image_size"] is None and spec["grid"] and spec["patch_size"]:
        spec["image_size"] = tuple(side * spec["patch_size"] for side in spec["grid"])
    if spec["has_anomaly"] is not None and spec["num_rows"] is not None:
        spec["num_known"] = spec["num_rows"] - 1 - int(spec["has_anomaly"])
    spec["lora"] = spec.get("lora") or (bool(lora_module_names(state)) or None)
    return spec


def _backbone_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    kernel = state.get("backbone.patch_embed.proj.weight")
    registers = state.get("backbone.reg_token")
    blocks = {int(m[1]) for m in (re.match(r"backbone\.blocks\.(\d+)\.", n) for n in state) if m}
    return {
        "backbone": None if kernel is None else "dinov3" if _is_dinov3(state) else "dinov2",
        "swiglu": has_swiglu(state),
        "width": None if kernel is None else kernel.shape[0],
        "patch_size": None if kernel is None else kernel.shape[-1],
        "depth": max(blocks) + 1 if blocks else None,
        "num_registers": 0 if registers is None else registers.shape[1],
    }


def has_swiglu(state: Mapping[str, Tensor]) -> bool:
    """Whether the MLPs are gated (DINOv2's giant): the first layer holds two halves."""
    first, second = (state.get(f"backbone.blocks.0.mlp.fc{i}.weight") for i in (1, 2))
    return first is not None and second is not None and first.shape[0] == 2 * second.shape[1]


def _head_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    rows, query = state.get("class_head.weight"), state.get("query.weight")
    return {
        "num_queries": None if query is None else query.shape[0],
        "num_rows": None if rows is None else rows.shape[0],
        "num_known": None,
        "has_bias": None if rows is None else "class_head.bias" in state,
    }


def _position_grid(state: Mapping[str, Tensor], spec: Mapping[str, Any]) -> dict[str, Any]:
    """Find how the P rows of the position embedding split into prefix and grid."""
    embed = state.get("backbone.pos_embed")
    if embed is None:
        grid = spec.get("grid")
        return {"grid": grid and tuple(int(side) for side in grid), "pos_prefix": 0}
    rows = embed.shape[1]
    if spec.get("grid"):
        grid = tuple(int(side) for side in spec["grid"])
        return {"grid": grid, "pos_prefix": rows - grid[0] * grid[1]}
    for prefix in (0, 1, 1 + spec["num_registers"]):
        side = math.isqrt(max(rows - prefix, 0))
        if side > 0 and side * side == rows - prefix:
            return {"grid": (side, side), "pos_prefix": prefix}
    return {"grid": None, "pos_prefix": None}


def attention_heads(spec: Mapping[str, Any]) -> int:
    """Attention heads that the checkpoint tells, or those of the ViT of its width."""
    heads = spec.get("heads") or _HEADS.get(spec.get("width"))
    if heads is None:
        raise ValueError(
            f"the checkpoint does not tell its attention heads, and width {spec.get('width')} is "
            "none of DINOv2's or DINOv3's; give them (--num-heads)"
        )
    return heads
