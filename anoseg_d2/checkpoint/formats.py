"""Key names of the checkpoint formats of the field, to ours. Pure: dictionaries in and out.

Shape letters: Q queries, C width, R class rows, P rows of the position embedding.

| format | recognised by |
|---|---|
| `anoseg` | `backbone.*` and `query.weight`: our own |
| `official` EoMT (Lightning, hub) | `encoder.backbone.*` and `q.weight`, mostly under `network.` |
| `huggingface` `EomtForUniversalSegmentation` | `embeddings.patch_embeddings.*`, `query.weight` |
| `dinov2` | the DINOv2 authors' ViT: `register_tokens`, `mask_token` or `mlp.w12` |
| `dinov3` | the DINOv3 authors' ViT: `storage_tokens`, or `embeddings.*` without queries |
| `timm_vit` | any other ViT with timm's names |

The official code takes its DINOv3 from transformers, so that its files name the ViT as those do.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from anoseg_d2.checkpoint.lora_state import lora_module_names

__all__ = [
    "BARE_VITS",
    "FORMATS",
    "IMAGENET",
    "clean_names",
    "has_swiglu",
    "recognise",
    "sizes_from_state",
    "to_anoseg",
]

# What images of RGB 0..255 are normalised with, where nothing else is said.
IMAGENET = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}
FORMATS = (
    "anoseg",
    "anoseg_adapter",
    "eomt_official",
    "huggingface",
    "timm_vit",
    "dinov2",
    "dinov3",
)

State = dict[str, Tensor]
Ignored = list[tuple[str, str]]

# (pattern, replacement) in order; ours on the right. `None` drops the tensor with the reason.
_OFFICIAL = (
    (r"encoder\.backbone\.", "backbone."),
    (r"q\.weight$", "query.weight"),
)
_HUGGINGFACE = (
    (r"embeddings\.cls_token$", "backbone.cls_token"),
    (r"embeddings\.register_tokens$", "backbone.reg_token"),
    (r"embeddings\.patch_embeddings\.(?:projection\.)?", "backbone.patch_embed.proj."),
    (r"embeddings\.position_embeddings\.weight$", "backbone.pos_embed"),
    (r"layernorm\.", "backbone.norm."),
    (r"class_predictor\.", "class_head."),
    (r"mask_head\.fc1\.", "mask_head.0."),
    (r"mask_head\.fc2\.", "mask_head.2."),
    (r"mask_head\.fc3\.", "mask_head.4."),
    (r"upscale_block\.block\.(\d+)\.layernorm2d\.", r"upscale.\1.norm."),
    (r"upscale_block\.block\.(\d+)\.", r"upscale.\1."),
    (r"layers\.(\d+)\.attention\.(q_proj|k_proj|v_proj)\.", r"backbone.blocks.\1.attn.\2."),
    (r"layers\.(\d+)\.attention\.out_proj\.", r"backbone.blocks.\1.attn.proj."),
    (r"layers\.(\d+)\.layer_scale([12])\.lambda1$", r"backbone.blocks.\1.ls\2.gamma"),
    (r"layers\.(\d+)\.mlp\.weights_in\.", r"backbone.blocks.\1.mlp.fc1."),
    (r"layers\.(\d+)\.mlp\.(?:weights_out|down_proj)\.", r"backbone.blocks.\1.mlp.fc2."),
    (r"layers\.(\d+)\.", r"backbone.blocks.\1."),
)
_VIT = (
    (r"register_tokens$", "backbone.reg_token"),
    (r"blocks\.(\d+)\.mlp\.w12\.", r"backbone.blocks.\1.mlp.fc1."),
    (r"blocks\.(\d+)\.mlp\.w3\.", r"backbone.blocks.\1.mlp.fc2."),
    (r"embeddings\.", "backbone.patch_embed."),
    (r"model\.", "backbone."),
    (r"", "backbone."),
)
# What is left to do for a ViT of DINOv3, whoever named it; timm's names on the right.
_BLOCK, _OURS = r"backbone\.(?:blocks|layer)\.(\d+)\.", r"backbone.blocks.\1."
_DINOV3 = (
    (r"backbone\.storage_tokens$", "backbone.reg_token"),
    (r"backbone\.patch_embed\.cls_token$", "backbone.cls_token"),
    (r"backbone\.patch_embed\.register_tokens$", "backbone.reg_token"),
    (r"backbone\.patch_embed\.patch_embeddings\.", "backbone.patch_embed.proj."),
    (_BLOCK + r"(?:attn|attention)\.([qv])_proj\.bias$", _OURS + r"attn.\2_bias"),
    (_BLOCK + r"attention\.o_proj\.", _OURS + "attn.proj."),
    (_BLOCK + r"attention\.", _OURS + "attn."),
    (_BLOCK + r"layer_scale([12])\.lambda1$", _OURS + r"gamma_\2"),
    (_BLOCK + r"ls([12])\.gamma$", _OURS + r"gamma_\2"),
    (_BLOCK + r"mlp\.up_proj\.", _OURS + "mlp.fc1."),
    (_BLOCK + r"mlp\.down_proj\.", _OURS + "mlp.fc2."),
    (_BLOCK, _OURS),
)
_GATED = (".mlp.gate_proj.", ".mlp.w1.", ".mlp.fc1_g.")
_RULES = {
    "anoseg": (),
    "eomt_official": _OFFICIAL,
    "huggingface": _HUGGINGFACE,
    "timm_vit": _VIT,
    "dinov2": _VIT,
    "dinov3": _VIT,
}
# Formats of a ViT alone.
BARE_VITS = ("timm_vit", "dinov2", "dinov3")
# Dimensions of the tensors that sizes are read from.
_DIMENSIONS = {
    "backbone.patch_embed.proj.weight": 4,
    "backbone.pos_embed": 3,
    "backbone.cls_token": 3,
    "backbone.reg_token": 3,
    "class_head.weight": 2,
    "query.weight": 2,
}
_NOT_WEIGHTS = (
    (r"attn_mask_probs$", "annealing state of masked attention; its length tells the query blocks"),
    (r"criterion\.", "weights of the loss, not of the model"),
    (r"metrics\.", "state of a metric"),
    (r"(encoder\.)?pixel_(mean|std)$", "input statistics; compared with the model's"),
)
_NOT_VIT = (
    (r"(embeddings\.)?mask_token$", "only used in pre-training"),
    (r"local_cls_norm\.", "only used in pre-training"),
    (r"(.*\.)?rope\w*\.", "constants of the rotary position embedding; computed"),
    (r".*\.bias_mask$", "keys have no bias"),
    (r"(head|head_drop|fc_norm|head_dist)\.", "classifier of the pre-training"),
)


def clean_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Strip what wrappers add: `module.` (DDP), `network.` (Lightning), `_orig_mod.` (compile).

    Raises:
        ValueError: two tensors end under one name.
    """
    cleaned: dict[str, Any] = {}
    for name, value in state.items():
        new = name.replace("_orig_mod.", "")
        while new.startswith(("module.", "network.")):
            new = new.split(".", 1)[1]
        if new in cleaned:
            raise ValueError(f"two tensors of the checkpoint are both named {new}, one is {name}")
        cleaned[new] = value
    return cleaned


def recognise(names: Iterable[str]) -> str:
    """Tell the format by (cleaned) tensor names.

    Returns:
        One of `FORMATS`, without `anoseg_adapter`, which only its metadata tell.
    Raises:
        ValueError: the names fit no format; says which are known and what was found.
    """
    names = set(names)
    if "query.weight" in names and any(n.startswith("embeddings.patch_embed") for n in names):
        return "huggingface"
    if "q.weight" in names and any(name.startswith("encoder.backbone.") for name in names):
        return "eomt_official"
    if any(name.startswith("backbone.") for name in names):
        return "anoseg"
    if "storage_tokens" in names or "embeddings.patch_embeddings.weight" in names:
        return "dinov3"
    if "patch_embed.proj.weight" in names and any(n.startswith("blocks.0.") for n in names):
        official = {"register_tokens", "mask_token", "blocks.0.mlp.w12.weight"} & names
        return "dinov2" if official else "timm_vit"
    sample = ", ".join(sorted(names)[:5]) or "no tensor at all"
    raise ValueError(
        f"the tensor names fit no known format ({', '.join(FORMATS)}); found {sample}, ..."
    )


def to_anoseg(state: Mapping[str, Tensor], fmt: str) -> tuple[State, Ignored]:
    """Rename the tensors of a format to our names and fuse what we keep fused.

    Args:
        state: cleaned names to tensors.
        fmt: what `recognise` said.
    Returns:
        Our names to tensors, and (name, reason) of each tensor that is no weight of the model.
    """
    drop = _NOT_WEIGHTS + (_NOT_VIT if fmt in BARE_VITS else ())
    renamed: State = {}
    ignored: Ignored = []
    for name, tensor in state.items():
        reason = next((why for pattern, why in drop if re.match(pattern, name)), None)
        if reason is not None:
            ignored.append((name, reason))
        else:
            renamed[_rename(name, _RULES[fmt])] = tensor
    if _is_dinov3(state):
        _refuse_gated(state)
        renamed = _dinov3_names(renamed)
    if any(name.endswith(".q_proj.weight") for name in renamed):
        renamed = _stack(renamed, ("q_proj", "k_proj", "v_proj"), "qkv")
    if fmt == "huggingface":
        renamed = _stack(renamed, ("gate_proj", "up_proj"), "fc1")
        embed = renamed.get("backbone.pos_embed")
        if embed is not None and embed.dim() == 2:
            renamed["backbone.pos_embed"] = embed[None]
    registers = renamed.get("backbone.reg_token")
    if registers is not None and registers.numel() == 0:
        del renamed["backbone.reg_token"]
    return renamed, ignored


def _rename(name: str, rules) -> str:
    for pattern, replacement in rules:
        match = re.match(pattern, name)
        if match:
            return match.expand(replacement) + name[match.end() :]
    return name


def _is_dinov3(names: Iterable[str]) -> bool:
    """Whether these tensors, of whatever format, are of a ViT with rotary positions."""
    marks = (".gamma_1", "storage_tokens", ".attention.o_proj.weight")
    return any(name.endswith(marks) for name in names)


def _refuse_gated(names: Iterable[str]) -> None:
    gated = next((name for name in names if any(mark in name for mark in _GATED)), None)
    if gated:
        raise ValueError(f"{gated}: DINOv3 ViTs with SwiGLU (S+, H+, 7B) are not supported")


def _dinov3_names(state: State) -> State:
    """Name a DINOv3 ViT as timm does, with biases of query and value, but none of the key."""
    named: State = {}
    for name, tensor in state.items():
        if name.endswith(".attn.qkv.bias"):
            query, _, value = tensor.chunk(3)
            stem = name.removesuffix("qkv.bias")
            named |= {f"{stem}q_bias": query, f"{stem}v_bias": value}
        else:
            named[_rename(name, _DINOV3)] = tensor
    return named


def _stack(state: State, parts: tuple[str, ...], fused: str) -> State:
    """Concatenate sibling tensors on dim 0, `x.<part>.weight` for each part, as `x.<fused>.weight`.

    Raises:
        ValueError: a sibling is missing.
    """
    stacked: State = {}
    first, others = f".{parts[0]}.", [f".{part}." for part in parts[1:]]
    for name, tensor in state.items():
        lone = next((o for o in others if o in name and name.replace(o, first) not in state), None)
        if lone:
            raise ValueError(f"{name} has no {name.replace(lone, first)} beside it")
        if first in name:
            siblings = [name.replace(first, f".{part}.") for part in parts]
            missing = [sibling for sibling in siblings if sibling not in state]
            if missing:
                raise ValueError(f"{name} has no {', '.join(missing)} beside it")
            tensor = torch.cat([state[sibling] for sibling in siblings])
            stacked[name.replace(first, f".{fused}.")] = tensor
        elif not any(other in name for other in others):
            stacked[name] = tensor
    return stacked


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
