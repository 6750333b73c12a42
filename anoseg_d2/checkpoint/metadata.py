"""Identify a model by hashes of its weights and by the metadata stored in our files."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anoseg_d2.checkpoint.spec import ARCHITECTURE_VERSION, FORMAT_NAME, FORMAT_VERSION, Checkpoint
from anoseg_d2.modeling.eomt import EoMT
from anoseg_d2.modeling.patch_heads import PATCH_PREFIX
from anoseg_d2.modeling.patch_heads.memory import backbone_hash
from anoseg_d2.modeling.patch_model import PatchModel
from anoseg_d2.modeling.vit import backbone_kind
from anoseg_d2.utils.files import file_hash
from anoseg_d2.utils.unwrap import unwrap


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by name, without `torch.compile`'s prefixes."""
    state = unwrap(model).state_dict(keep_vars=True)
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Hash tensors by name, dtype, shape and bytes.

    Args:
        state: names to tensors, on any device.
    Returns:
        sha256 in hex, the same for any order of the names.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        # As bytes, because numpy knows no bfloat16.
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def describe_weights(model: nn.Module, file: str | Path | None = None) -> dict[str, str | None]:
    """Describe which weights a model holds, so that figures can be traced to them.

    Args:
        model: the model as it is evaluated, wrapped or not.
        file: where its weights were read from or saved to, such as `LoadReport.file`; None if no
            file holds them.
    Returns:
        `weights_file`, `weights_file_sha256` (what `sha256sum` prints) and `weights_sha256`, the
        `weights_hash` of the tensors in the model. The last one does not depend on the file
        format, and changes when loading converted or initialised anything.
    """
    return {
        "weights_file": None if file is None else str(file),
        "weights_file_sha256": None if file is None else file_hash(file),
        "weights_sha256": weights_hash(model_tensors(model)),
    }


def head_name(model: EoMT) -> str | None:
    """Return the name that the type of the model's class head is registered under, or None."""
    # Its own name only: a subclass that nobody registered would inherit that of its parent.
    return vars(type(model.class_head)).get("name")


def model_grid(model: EoMT) -> tuple[int, int]:
    """Return (rows, columns) of the patches that the model sees."""
    return tuple(model.backbone.patch_embed.grid_size)


def model_meta(model: nn.Module) -> dict[str, Any]:
    """Collect, as plain values, what the tensors of a model do not show.

    Args:
        model: EoMT, wrapped or not, or a PatchModel.
    Returns:
        format, version, architecture (only of a PatchModel, which lacks what follows up to
        num_blocks), num_known, has_anomaly, head, head_options, num_queries, num_blocks,
        heads, backbone, norm_eps, image_size (H, W), patch_size, grid (rows, columns), pixel_mean
        and pixel_std (RGB 0..255), class_names, score_statistics, statistics_settings and
        thresholds (as in `ModelInfo`), averaged (whether the weights are a training's moving
        average), lora (None, or rank, alpha, dropout and modules), and with adapters frozen, the
        names of the tensors that did not train, and patch_heads and memory, what
        `PatchHead.from_state` needs.
    Raises:
        ValueError: adapters are merged into their weights, so that a reload would add them twice.
    """
    model: EoMT = unwrap(model)
    vit, info = model.backbone, model.info
    if isinstance(model, PatchModel):
        kind = {"version": ARCHITECTURE_VERSION, "architecture": "PatchModel"}
    else:
        kind = {
            "version": FORMAT_VERSION,
            "num_known": model.num_known,
            "has_anomaly": model.has_anomaly,
            "head": head_name(model),
            "head_options": model.class_head.stored_options(),
            "num_queries": model.num_queries,
            "num_blocks": model.num_blocks,
        }
    meta = {
        "format": FORMAT_NAME,
        **kind,
        "heads": vit.blocks[0].attn.num_heads,
        "backbone": backbone_kind(vit),
        "norm_eps": vit.norm.eps,
        "image_size": list(model.image_size),
        "patch_size": model.patch_size,
        "grid": list(model_grid(model)),
        "class_names": list(info.class_names) if info.class_names else None,
        "score_statistics": {name: list(pair) for name, pair in info.score_statistics.items()},
        "averaged": info.averaged,
        "lora": _lora_meta(model),
    }
    if info.score_statistics and info.statistics_settings is not None:
        meta["statistics_settings"] = dict(info.statistics_settings)
    if info.thresholds:
        meta["thresholds"] = {name: dict(record) for name, record in info.thresholds.items()}
    if meta["lora"]:  # what an adapter file leaves to its base
        tensors = model_tensors(model)
        meta["frozen"] = sorted(name for name, t in tensors.items() if not t.requires_grad)
    patch_heads = {name: head.state() for name, head in model.patch_maps.items()}
    patch_heads = {name: state for name, state in patch_heads.items() if state}
    if "memory" in patch_heads:  # a place of its own, from before there were others
        meta["memory"] = patch_heads.pop("memory")
    if patch_heads:
        meta["patch_heads"] = patch_heads
    for key in ("pixel_mean", "pixel_std"):
        meta[key] = getattr(model, key).flatten().tolist()
    return plain(meta, "meta")


def _lora_meta(model: EoMT) -> dict[str, Any] | None:
    modules, dropout = {}, 0.0
    for name, module in model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        name = name.replace("_orig_mod.", "")
        if module.merged:
            raise ValueError(
                f"{name}: its adapter is merged into the weight; unmerge before saving"
            )
        enable = getattr(module, "enable_lora", None)  # only of fused layers
        modules[name] = {
            "rank": int(module.r),
            "alpha": float(module.lora_alpha),
            "enable": None if enable is None else [bool(p) for p in enable],
        }
        # loralib puts a function here where nothing is dropped.
        dropout = float(getattr(module.lora_dropout, "p", 0.0))
    if not modules:
        return None
    first = next(iter(modules.values()))
    return {"rank": first["rank"], "alpha": first["alpha"], "dropout": dropout, "modules": modules}


def meta_of_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the metadata under which a checkpoint of any format is saved as one of ours.

    Raises:
        ValueError: a whole EoMT does not say its attention heads.
    """
    spec = checkpoint.spec
    if checkpoint.format in ("anoseg", "anoseg_adapter") and checkpoint.meta:
        return {**checkpoint.meta, "num_blocks": spec.num_blocks}
    keys = "num_known has_anomaly head num_queries image_size patch_size grid class_names"
    keys += " num_blocks backbone norm_eps pixel_mean pixel_std"
    meta = {key: getattr(spec, key) for key in keys.split()}
    meta = {key: list(v) if isinstance(v, tuple) else v for key, v in meta.items()}
    if spec.mask_probs:  # only of others' files: our own models are always used without masks
        meta["mask_probs"] = list(spec.mask_probs)
    # A bare ViT is completed by the model that it is loaded into; an EoMT must be built from this.
    meta["heads"] = spec.heads if spec.num_queries is None else spec.attention_heads()
    meta |= {"format": FORMAT_NAME, "version": FORMAT_VERSION, "lora": None}
    return plain(meta, "meta")


def with_memory(checkpoint: Checkpoint, model: nn.Module) -> dict[str, Any]:
    """Return a checkpoint of ours with the memory of a model that was loaded from it.

    The model has merged the adapters; here they stay adapters, on the same base.

    Args:
        checkpoint: with adapters.
        model: with a memory, otherwise unchanged.
    Returns:
        what `write_checkpoint` takes.
    """
    prefix = f"{PATCH_PREFIX}memory."
    # All of an earlier memory goes: it may have had blocks of its own, which this one does not.
    state = {n: t for n, t in checkpoint.state_dict.items() if not n.startswith(prefix)}
    state |= {n: t for n, t in model_tensors(model).items() if n.startswith(prefix)}
    found = model_meta(model)
    meta = {key: value for key, value in checkpoint.meta.items() if key != "statistics_settings"}
    keys = ("memory", "score_statistics", "statistics_settings")
    meta |= {key: found[key] for key in keys if key in found}
    made_by = backbone_hash(state, model.patch_maps["memory"].plain_from - 1)
    meta["memory"] = {**meta["memory"], "backbone_sha256": made_by}
    if "frozen" in meta:
        meta["frozen"] = [name for name in meta["frozen"] if not name.startswith(prefix)]
    return {"model": state, "meta": meta}


def plain(value: Any, where: str) -> Any:
    """Rebuild a state from types that `torch.load(weights_only=True)` reads.

    Raises:
        ValueError: something else is in it; names the place.
    """
    if value is None or isinstance(value, (bool, int, float, str, torch.Tensor)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.copy())
    if isinstance(value, Mapping):
        return {plain(k, where): plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return type(value)(items) if type(value) in (list, tuple, set) else items
    raise ValueError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}: it could not be read "
        "back without unpickling code; keep tensors, numbers, strings, lists and dicts in states"
    )
