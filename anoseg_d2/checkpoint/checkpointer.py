"""Saving and resuming: detectron2's checkpointer for our models, and adapter checkpoints.

An adapter checkpoint holds what a LoRA stage trained, tied to its base weights by a hash.
"""

import copy
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import detectron2.utils.comm as comm
import numpy as np
import torch
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from anoseg_d2.checkpoint.files import read_checkpoint, write_checkpoint
from anoseg_d2.checkpoint.identity import model_tensors, weights_hash
from anoseg_d2.checkpoint.report import LoadReport
from anoseg_d2.checkpoint.spec import FORMAT_NAME, FORMAT_VERSION, Checkpoint
from anoseg_d2.checkpoint.transfer import (
    head_name,
    load_into,
    load_same,
    model_grid,
    norm_eps,
)
from anoseg_d2.modeling.vit import backbone_kind
from anoseg_d2.utils.files import publish
from anoseg_d2.utils.unwrap import unwrap

__all__ = ["AnosegCheckpointer", "load_adapter", "model_meta", "save_adapter"]

logger = logging.getLogger(__name__)

# What a class head is made with, kept so that its logits can be reproduced without the config.
_HEAD_OPTIONS = ("scale", "fixed_scale", "margin", "tau", "form", "inference")


class AnosegCheckpointer(Checkpointer):
    """detectron2's checkpointer for our models: files appear whole, and are read safely.

    Args:
        model: EoMT, also wrapped by DistributedDataParallel or `torch.compile`.
        save_dir: folder of the run.
        save_to_disk: None writes on the main process alone.
        allow_unused: see `load_into`.
        seed: see `load_into`.
        checkpointables: objects with `state_dict` and `load_state_dict`.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        allow_unused: Iterable[str] = (),
        seed: int = 0,
        **checkpointables: Any,
    ):
        if save_to_disk is None:
            save_to_disk = comm.is_main_process()
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.model = unwrap(self.model)
        self.allow_unused, self.seed = tuple(allow_unused), seed

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `<save_dir>/<name>.pth` with weights, metadata and checkpointables.

        Args:
            name: file name without suffix.
            kwargs: plain values or tensors to keep beside (iteration).
        Raises:
            ValueError: a state holds something that could not be read back safely.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        tensors = {key: value.detach() for key, value in model_tensors(self.model).items()}
        payload: dict[str, Any] = {"model": tensors, "meta": model_meta(self.model)}
        for key, checkpointable in self.checkpointables.items():
            payload[key] = checkpointable.state_dict()
        payload |= kwargs
        file_name = f"{name}.pth"
        logger.info("Saving checkpoint to %s", os.path.join(self.save_dir, file_name))
        write_checkpoint(_plain(payload, "checkpoint"), Path(self.save_dir) / file_name)
        self.tag_last_checkpoint(file_name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note in `last_checkpoint`, atomically, which file a resumed run starts from."""
        handle, partial = tempfile.mkstemp(dir=self.save_dir, suffix=".tmp")
        with os.fdopen(handle, "w") as stream:
            stream.write(last_filename_basename)
        publish(partial, Path(self.save_dir) / "last_checkpoint")

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load weights of any known format; from our own files the checkpointables too.

        Args:
            path: see `read_checkpoint`; "" loads nothing.
            checkpointables: names to restore; None for all that the file has.
        Returns:
            what else one of our files holds (iteration).
        """
        if not path:
            logger.info("No checkpoint given: the model starts from its initialisation")
            return {}
        checkpoint = read_checkpoint(path)
        load_into(self.model, checkpoint, allow_unused=self.allow_unused, seed=self.seed)
        return self._restore(checkpoint, checkpointables)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Continue from the last checkpoint of the run, or load weights alone from `path`."""
        if not (resume and self.has_checkpoint()):
            return self.load(path, checkpointables=[])
        path = self.get_checkpoint_file()
        if not os.path.isfile(path):
            others = ", ".join(sorted(map(os.path.basename, self.get_all_checkpoint_files())))
            raise FileNotFoundError(
                f"{self.save_dir}/last_checkpoint names {os.path.basename(path)}, which is not "
                f"there; write one of [{others}] into it, or delete it to start anew"
            )
        checkpoint = read_checkpoint(path)
        load_same(self.model, checkpoint)
        logger.info("Resuming from %s", path)
        return self._restore(checkpoint, None)

    def _restore(self, checkpoint: Checkpoint, names: list[str] | None) -> dict[str, Any]:
        extra = dict(checkpoint.extra)
        for name in self.checkpointables if names is None else names:
            if name in extra:
                # A copy: states are used in place, and the file that they map may be deleted.
                self.checkpointables[name].load_state_dict(copy.deepcopy(extra.pop(name)))
            elif names is not None or extra:
                logger.warning("%s holds no state of %s", checkpoint.source, name)
        return extra


def model_meta(model: nn.Module) -> dict[str, Any]:
    """Describe a model by what its tensors do not tell. Plain values only.

    Returns:
        format, version, num_known, has_anomaly, head, head_options, num_queries, num_blocks,
        heads, backbone, norm_eps, image_size (H, W), patch_size, grid (rows, columns), pixel_mean
        and pixel_std (RGB 0..255), class_names, lora (None, or rank, alpha, dropout and modules).
    Raises:
        ValueError: adapters are merged into their weights, so that a reload would add them twice.
    """
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
        "lora": adapters,
    }
    for key in ("pixel_mean", "pixel_std"):
        statistics = getattr(model, key, None)
        meta[key] = None if statistics is None else statistics.flatten().tolist()
    return _plain(meta, "meta")


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


# ---- adapters -------------------------------------------------------------------------------


def save_adapter(model: nn.Module, path, base_hash: str | None = None) -> None:
    """Save what trains (adapters, queries, heads) without the frozen base.

    Args:
        model: EoMT whose frozen tensors have `requires_grad` off.
        path: target, `.pth` or `.safetensors`.
        base_hash: `weights_hash` of the frozen tensors; None computes it.
    Raises:
        ValueError: nothing trains.
    """
    model = unwrap(model)
    tensors = model_tensors(model)
    trained = {name: value.detach() for name, value in tensors.items() if value.requires_grad}
    if not trained:
        raise ValueError("no tensor of the model trains, so there is no adapter to save")
    frozen = {name: value for name, value in tensors.items() if name not in trained}
    meta = model_meta(model) | {"adapter": True, "frozen": sorted(frozen)}
    meta["base_hash"] = base_hash or weights_hash(frozen)
    payload = _plain({"model": trained, "meta": meta}, "adapter")
    write_checkpoint(payload, path)
    logger.info("Saved adapter %s: %d tensors", path, len(trained))


def load_adapter(model: nn.Module, path) -> LoadReport:
    """Put an adapter checkpoint onto the base weights that it belongs to.

    Args:
        model: EoMT with adapters injected and the base weights loaded.
        path: see `read_checkpoint`.
    Returns:
        LoadReport over the adapter's tensors.
    Raises:
        ValueError: not an adapter, other names or shapes, or other base weights.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.format != "anoseg_adapter":
        raise ValueError(f"{path} is no adapter checkpoint but {checkpoint.format}")
    return load_into(unwrap(model), checkpoint)


# ---- helpers --------------------------------------------------------------------------------


def _plain(value: Any, where: str) -> Any:
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
        return {_plain(k, where): _plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return type(value)(items) if type(value) in (list, tuple, set) else items
    raise ValueError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}: it could not be read "
        "back without unpickling code; keep tensors, numbers, strings, lists and dicts in states"
    )
