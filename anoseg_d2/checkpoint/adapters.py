"""Adapter files: what a LoRA stage trained, tied by a hash to the base weights that it froze.

A full checkpoint of such a stage is its base and its adapter file together, bit by bit. The base is
the checkpoint that the stage started from; it stays one file, however many adapters it has.
"""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from anoseg_d2.checkpoint.files import read_checkpoint, write_checkpoint
from anoseg_d2.checkpoint.identity import model_tensors, weights_hash
from anoseg_d2.checkpoint.metadata import model_meta, plain
from anoseg_d2.checkpoint.report import LoadReport
from anoseg_d2.checkpoint.spec import Checkpoint, ModelSpec, facts_of_file
from anoseg_d2.checkpoint.transfer import load_into
from anoseg_d2.utils.unwrap import unwrap

__all__ = ["adapter_payload", "join_adapter", "load_adapter", "save_adapter"]

logger = logging.getLogger(__name__)


def adapter_payload(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Take what a LoRA stage trained (adapters, queries, heads) out of a full checkpoint.

    Args:
        state: all tensors of the model.
        meta: its metadata, see `model_meta`.
    Returns:
        what `write_checkpoint` takes.
    Raises:
        ValueError: the model has no adapters, or everything in it is frozen.
    """
    if not meta.get("lora"):
        raise ValueError("the model has no LoRA adapters, so there is no adapter file to write")
    frozen = set(meta.get("frozen") or ())
    if not frozen:  # written before the names were kept: the ViT, as MODEL.LORA freezes it
        frozen = {n for n in state if n.startswith("backbone.") and ".lora_" not in n}
    trained = {name: tensor.detach() for name, tensor in state.items() if name not in frozen}
    if not trained:
        raise ValueError("no tensor of the model trains, so there is no adapter to save")
    base = {name: tensor for name, tensor in state.items() if name in frozen}
    meta = {**meta, "adapter": True, "frozen": sorted(base), "base_hash": weights_hash(base)}
    return plain({"model": trained, "meta": meta}, "adapter")


def save_adapter(model: nn.Module, path) -> None:
    """Save what trains in a model (adapters, queries, heads) without the frozen base.

    Args:
        model: EoMT with adapters, whose frozen tensors have `requires_grad` off.
        path: target, `.pth` or `.safetensors`.
    Raises:
        ValueError: the model has no adapters, or nothing in it trains.
    """
    payload = adapter_payload(model_tensors(model), model_meta(model))
    write_checkpoint(payload, path)
    logger.info("Saved adapter %s: %d tensors", path, len(payload["model"]))


def load_adapter(model: nn.Module, path) -> LoadReport:
    """Put an adapter file onto the base weights that it belongs to.

    Args:
        model: EoMT with adapters injected and the base weights loaded.
        path: see `read_checkpoint`.
    Returns:
        LoadReport over the adapter's tensors.
    Raises:
        ValueError: not an adapter file, other names or shapes, or other base weights.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.format != "anoseg_adapter":
        raise ValueError(f"{path} is not an adapter file (found {checkpoint.format})")
    return load_into(unwrap(model), checkpoint)


def join_adapter(adapter: Checkpoint, base: Checkpoint | None) -> Checkpoint:
    """Make the full checkpoint of a LoRA stage from its adapter file and its base.

    Args:
        adapter: of `read_checkpoint`; a checkpoint that is whole already is returned as it is.
        base: the checkpoint that the stage started from.
    Raises:
        ValueError: the base is missing, not needed, or not the one that the adapter was trained
            on.
    """
    if (adapter.format == "anoseg_adapter") != (base is not None):
        needs = "needs its base weights: give --base" if base is None else "is whole: drop --base"
        raise ValueError(f"{adapter.source} {needs}")
    if base is None:
        return adapter
    names = set(adapter.meta["frozen"])
    frozen = {name: tensor for name, tensor in base.state_dict.items() if name in names}
    if weights_hash(frozen) != adapter.meta["base_hash"]:
        raise ValueError(
            f"{base.source} is not the base that {adapter.source} was trained on: the hash of the "
            "frozen weights differs. The base must have the same crop, patch size and tensors as "
            "the trained model; give the checkpoint that the stage started from, saved at that "
            "size"
        )
    state = {**frozen, **adapter.state_dict}
    meta = {k: v for k, v in adapter.meta.items() if k not in ("adapter", "base_hash")}
    spec = ModelSpec.from_state(state, facts_of_file("anoseg", state, meta, None))
    return Checkpoint(state, "anoseg", spec, f"{base.source} + {adapter.source}", [], meta)
