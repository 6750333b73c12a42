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

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from anoseg_d2.checkpoint.names import _DINOV3, _HUGGINGFACE, _OFFICIAL, _VIT, _rename

__all__ = ["BARE_VITS", "FORMATS", "IMAGENET", "clean_names", "recognise", "to_anoseg"]

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
