"""Recognise the public checkpoint formats, and translate names and settings to ours.

Pure functions on dictionaries; the names of the tensors are in `names`.

| format | recognised by |
|---|---|
| `anoseg` | `backbone.*`: our own |
| `eomt_official` (Lightning, hub) | `encoder.backbone.*` and `q.weight`, mostly under `network.` |
| `huggingface` `EomtForUniversalSegmentation` | `embeddings.patch_embeddings.*`, `query.weight` |
| `dinov2` | the DINOv2 authors' ViT: `register_tokens`, `mask_token` or `mlp.w12` |
| `dinov2_transformers` | the same ViT in transformers: `embeddings.position_embeddings` |
| `dinov3` | the DINOv3 authors' ViT: `storage_tokens` |
| `dinov3_transformers` | the same ViT in transformers: `embeddings.*` without queries |
| `timm_vit` | any other ViT with timm's names |
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from anoseg_d2.checkpoint.names import BARE_VITS, FUSED, is_dinov3, to_ours
from anoseg_d2.checkpoint.spec import FACTS, FORMAT_NAME, read_fact
from anoseg_d2.utils.constants import PIXEL_MEAN, PIXEL_STD

FORMATS = (
    "anoseg",
    "anoseg_adapter",
    "eomt_official",
    "huggingface",
    "timm_vit",
    "dinov2",
    "dinov2_transformers",
    "dinov3",
    "dinov3_transformers",
)

State = dict[str, Tensor]
Ignored = list[tuple[str, str]]

# Tensors that are not weights of the model, and why they are left out.
_NOT_WEIGHTS = (
    (r"attn_mask_probs$", "annealing state of masked attention; its length is the query blocks"),
    (r"criterion\.", "weights of the loss, not of the model"),
    (r"metrics\.", "state of a metric"),
    (r"(encoder\.)?pixel_(mean|std)$", "input statistics; compared with the model's"),
)
_NOT_VIT = (
    (r"(embeddings\.)?mask_token$", "only used in pre-training"),
    (r"local_cls_norm\.", "only used in pre-training"),
    (r"(.*\.)?rope\w*\.", "constants of the rotary position embedding; computed"),
    (r".*\.bias_mask$", "keys have no bias"),
    (r"(head|head_drop|fc_norm|head_dist|classifier)\.", "classifier of the pre-training"),
)
_DINOV3_GATED = (".mlp.gate_proj.", ".mlp.w1.", ".mlp.fc1_g.")


# What wrappers put in front of names: DDP, Lightning, and transformers around its DINOv2 ...
_PREFIXES = ("module.", "network.", "dinov2.", "dinov2_with_registers.")
# ... and between their parts: `torch.compile`, FSDP, activation checkpointing.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def clean_names(state: Mapping[Any, Any]) -> dict[str, Any]:
    """Strip what wrappers add to names: DDP, Lightning, compile, FSDP, activation checkpointing.

    Raises:
        ValueError: a name is not a string, or two tensors end up under one name.
    """
    cleaned: dict[str, Any] = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise ValueError(f"tensor name {name!r} is not a string but {type(name).__name__}")
        new = name
        for wrapper in _WRAPPERS:
            new = new.replace(wrapper, "")
        while new.startswith(_PREFIXES):
            new = new.split(".", 1)[1]
        if new in cleaned:
            raise ValueError(f"two tensors of the checkpoint are both named {new}, one is {name}")
        cleaned[new] = value
    return cleaned


def recognise(names: Iterable[str]) -> str:
    """Recognise a format by its (cleaned) tensor names.

    Returns:
        One of `FORMATS`, except `anoseg_adapter`, which only the metadata reveal.
    Raises:
        ValueError: the names match no format; the message lists the known ones and some names.
    """
    names = set(names)
    if "query.weight" in names and any(n.startswith("embeddings.patch_embed") for n in names):
        return "huggingface"
    if "q.weight" in names and any(name.startswith("encoder.backbone.") for name in names):
        return "eomt_official"
    if any(name.startswith("backbone.") for name in names):
        return "anoseg"
    if "storage_tokens" in names:
        return "dinov3"
    if "embeddings.patch_embeddings.projection.weight" in names:
        return "dinov2_transformers"
    if "embeddings.patch_embeddings.weight" in names:
        return "dinov3_transformers"
    if "patch_embed.proj.weight" in names and any(n.startswith("blocks.0.") for n in names):
        official = {"register_tokens", "mask_token", "blocks.0.mlp.w12.weight"} & names
        return "dinov2" if official else "timm_vit"
    sample = ", ".join(sorted(names)[:5]) or "no tensor at all"
    raise ValueError(
        f"the tensor names fit no known format ({', '.join(FORMATS)}); found {sample}, ..."
    )


def to_anoseg(state: Mapping[str, Tensor], fmt: str) -> tuple[State, Ignored]:
    """Rename the tensors of a format to our names, and fuse the layers that we keep fused.

    Args:
        state: cleaned names to tensors.
        fmt: what `recognise` returned.
    Returns:
        Our names to tensors, and (name, reason) for each tensor that is not a weight of the model.
    Raises:
        ValueError: a part of a fused layer is missing, or the ViT is not supported.
    """
    drop = _NOT_WEIGHTS + (_NOT_VIT if fmt in BARE_VITS else ())
    dinov3 = is_dinov3(state)
    renamed: State = {}
    ignored: Ignored = []
    for name, tensor in state.items():
        if dinov3 and any(mark in name for mark in _DINOV3_GATED):
            raise ValueError(f"{name}: DINOv3 ViTs with SwiGLU (S+, H+, 7B) are not supported")
        reason = next((why for pattern, why in drop if re.match(pattern, name)), None)
        if reason is not None:
            ignored.append((name, reason))
            continue
        ours = to_ours(name, fmt, dinov3)
        if ours in renamed:
            raise ValueError(f"two tensors of the checkpoint are both {ours}, one is {name}")
        renamed[ours] = tensor
    if dinov3:
        _drop_key_bias(renamed)
    for fused, parts in FUSED.items():
        _fuse(renamed, fused, parts)
    embed = renamed.get("backbone.pos_embed")
    if fmt == "huggingface" and embed is not None and embed.dim() == 2:
        renamed["backbone.pos_embed"] = embed[None]
    registers = renamed.get("backbone.reg_token")
    if registers is not None and registers.numel() == 0:
        del renamed["backbone.reg_token"]
    return renamed, ignored


def _drop_key_bias(state: State) -> None:
    """Replace DINOv3's fused bias, whose key third is masked away, by those of query and value."""
    for name in [name for name in state if name.endswith(".attn.qkv.bias")]:
        bias, stem = state.pop(name), name.removesuffix("qkv.bias")
        if bias.dim() != 1 or len(bias) % 3:
            raise ValueError(f"{name} must hold three biases, is {tuple(bias.shape)}")
        state[f"{stem}q_bias"], _, state[f"{stem}v_bias"] = bias.chunk(3)


def _fuse(state: State, fused: str, parts: tuple[str, ...]) -> None:
    """Concatenate the parts of each fused layer along dimension 0, in place.

    Raises:
        ValueError: a part is missing, or their shapes do not fit.
    """
    found = [(name, part) for name in state for part in parts if part in name]
    for layer in dict.fromkeys(name.replace(part, fused) for name, part in found):
        names = [layer.replace(fused, part) for part in parts]
        missing = [name for name in names if name not in state]
        if missing:
            raise ValueError(f"found a part of {layer}, but not {', '.join(missing)}")
        tensors = [state.pop(name) for name in names]
        if len({t.shape[1:] for t in tensors}) > 1 or any(t.dim() == 0 for t in tensors):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
            raise ValueError(f"{', '.join(names)} cannot be fused: their shapes are {shapes}")
        state[layer] = torch.cat(tensors)


# ---- what a file states about its model -----------------------------------------------------


def facts_of_file(
    fmt: str,
    state: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Collect what a file states about its model beyond the shapes of its weights.

    Args:
        fmt: its format.
        state: cleaned names of the file to tensors.
        meta: metadata of our own files, else empty.
        config: config.json next to a Hugging Face file.
        settings: `hyper_parameters` of a Lightning file.
    Returns:
        fields of `ModelSpec` by name, unchecked.
    Raises:
        ValueError: config.json requires something that our network does not support.
    """
    if meta:
        facts = {name: meta.get(name) for name in FACTS}
        lora = meta.get("lora")
        return facts | {"adapters": lora.get("modules") if isinstance(lora, Mapping) else None}
    facts = {}
    if fmt in ("eomt_official", "huggingface"):
        facts |= {"head": "linear", "has_anomaly": False}
        if (masks := state.get("attn_mask_probs")) is not None:  # one for each query block
            facts["num_blocks"] = masks.numel()
            # Masks that are on when the model is used; annealing ends with 0.
            facts["mask_probs"] = masks.flatten().tolist() if masks.any() else None
        size = settings.get("img_size") if isinstance(settings, Mapping) else None
        facts["image_size"] = size if isinstance(size, (list, tuple)) else None
        for key in ("pixel_mean", "pixel_std"):
            statistics = state.get(f"encoder.{key}", state.get(key))
            if statistics is not None and statistics.any():  # all 0 in a delta
                facts[key] = [255.0 * float(value) for value in statistics.flatten()]
    if fmt in _CONFIGS and config:
        facts |= _facts_of_config(fmt, config)
    return facts


# Formats of transformers to the model_type that their config.json may name, and what it leaves out
# of the file because it is the default there: heads, eps, image size, patch size.
_CONFIGS = {
    "huggingface": (("eomt", "eomt_dinov3"), 16, 1e-6, 640, 16),
    "dinov2_transformers": (("dinov2", "dinov2_with_registers"), 12, 1e-6, 224, 14),
    "dinov3_transformers": (("dinov3_vit",), 6, 1e-5, 224, 16),
}


def _facts_of_config(fmt: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Read the config.json of transformers' EoMT, DINOv2 or DINOv3."""
    types, heads, eps, image, patch = _CONFIGS[fmt]
    model_type = config.get("model_type", types[0])
    if model_type not in types:
        raise ValueError(
            f"config.json says model_type {model_type!r}; supported with these weights: "
            f"{', '.join(types)}"
        )
    # Settings that no tensor shows, and that our network has only one value of.
    rotary = config.get("rope_parameters") or {}
    theta = rotary.get("rope_theta") if isinstance(rotary, Mapping) else rotary
    theta = config.get("rope_theta", 100.0) if theta is None else theta
    fixed = {"hidden_act": (config.get("hidden_act", "gelu"), "gelu"), "rope_theta": (theta, 100.0)}
    for name, (found, ours) in fixed.items():
        if found != ours:
            raise ValueError(f"config.json says {name} {found!r}; only {ours!r} is supported")
    image, patch = config.get("image_size", image), config.get("patch_size", patch)
    image = read_fact("image_size", [image, image] if isinstance(image, int) else image)
    patch, _ = read_fact("grid", [patch, patch] if isinstance(patch, int) else patch)
    facts = {
        "heads": config.get("num_attention_heads", heads),
        "norm_eps": config.get("layer_norm_eps", eps),
        "image_size": image,
        "grid": tuple(side // patch for side in image),
    }
    if fmt != "huggingface":
        return facts  # what a bare ViT is trained for is no matter of the EoMT that it starts
    labels = config.get("id2label") or {}
    ours = config.get(FORMAT_NAME) or {}
    if not isinstance(labels, Mapping) or not isinstance(ours, Mapping):
        raise ValueError(f"config.json: id2label and {FORMAT_NAME} must be objects")
    has_anomaly = bool(ours.get("has_anomaly", False))
    names = [labels[key] for key in sorted(labels, key=int)]
    return facts | {
        "num_blocks": config.get("num_blocks", 4),
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
    factor = 1.0
    if preprocessor.get("do_rescale", True):
        factor = preprocessor.get("rescale_factor", 1 / 255)
    if not isinstance(factor, (int, float)) or not factor > 0:
        raise ValueError(f"preprocessor_config.json gives rescale_factor {factor!r}")
    mean, std = (0.0,) * 3, (1.0,) * 3
    if preprocessor.get("do_normalize", True):
        mean = preprocessor.get("image_mean", [v / 255 for v in PIXEL_MEAN])
        std = preprocessor.get("image_std", [v / 255 for v in PIXEL_STD])
    # The processor rescales, then normalises; the model normalises values of 0..255.
    return {
        key: [round(value / factor, 6) for value in read_fact(key, values)]
        for key, values in (("pixel_mean", mean), ("pixel_std", std))
    }
