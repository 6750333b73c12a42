"""Metadata that our files store next to the tensors, and a check that no file needs pickle."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from anoseg_d2.checkpoint.identity import model_tensors
from anoseg_d2.checkpoint.spec import FORMAT_NAME, FORMAT_VERSION
from anoseg_d2.checkpoint.transfer import head_name, model_grid, norm_eps
from anoseg_d2.modeling.vit import backbone_kind
from anoseg_d2.utils.unwrap import unwrap

__all__ = ["model_meta", "plain"]

# Arguments of a class head that its logits depend on, so that they need no config.
_HEAD_OPTIONS = ("scale", "fixed_scale", "margin", "tau", "form", "inference")


def model_meta(model: nn.Module) -> dict[str, Any]:
    """Collect, as plain values, what the tensors of a model do not show.

    Returns:
        format, version, num_known, has_anomaly, head, head_options, num_queries, num_blocks,
        heads, backbone, norm_eps, image_size (H, W), patch_size, grid (rows, columns), pixel_mean
        and pixel_std (RGB 0..255), class_names,
        score_statistics, averaged (whether the weights are a training's moving average), lora
        (None, or rank, alpha, dropout and modules), and with adapters frozen, the names of the
        tensors that did not train.
    Raises:
        ValueError: adapters are merged into their weights, so that a reload would add them twice.
    """
    model = unwrap(model)
    adapters = _lora_meta(model)
    head = model.class_head
    options = {key: getattr(head, key) for key in _HEAD_OPTIONS if hasattr(head, key)}
    if options.get("fixed_scale") is not None:
        options["scale"] = options.pop("fixed_scale")
    attention = getattr(model.backbone.blocks[0], "attn", None)
    names = getattr(model, "class_names", None)
    meta = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "num_known": model.num_known,
        "has_anomaly": model.has_anomaly,
        "head": head_name(model),
        "head_options": {k: v for k, v in options.items() if isinstance(v, (int, float, str))},
        "num_queries": model.num_queries,
        "num_blocks": model.num_blocks,
        "heads": getattr(attention, "num_heads", None),
        "backbone": backbone_kind(model.backbone),
        "norm_eps": norm_eps(model),
        "image_size": list(model.image_size),
        "patch_size": model.patch_size,
        "grid": list(model_grid(model)),
        "class_names": list(names) if names else None,
        "score_statistics": {
            name: list(pair) for name, pair in getattr(model, "score_statistics", {}).items()
        },
        "averaged": bool(getattr(model, "averaged", False)),
        "lora": adapters,
    }
    if adapters:  # what an adapter file leaves to its base
        tensors = model_tensors(model)
        meta["frozen"] = sorted(name for name, t in tensors.items() if not t.requires_grad)
    for key in ("pixel_mean", "pixel_std"):
        statistics = getattr(model, key, None)
        meta[key] = None if statistics is None else statistics.flatten().tolist()
    return plain(meta, "meta")


def _lora_meta(model: nn.Module) -> dict[str, Any] | None:
    modules = {}
    dropout = 0.0
    for name, module in model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        name = name.replace("_orig_mod.", "")
        if getattr(module, "merged", False):
            raise ValueError(
                f"{name}: its adapter is merged into the weight; unmerge before saving"
            )
        enable = getattr(module, "enable_lora", None)
        modules[name] = {
            "rank": int(module.r),
            "alpha": float(module.lora_alpha),
            "enable": None if enable is None else [bool(p) for p in enable],
        }
        dropout = float(getattr(module.lora_dropout, "p", 0.0))
    if not modules:
        return None
    first = next(iter(modules.values()))
    return {"rank": first["rank"], "alpha": first["alpha"], "dropout": dropout, "modules": modules}


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
