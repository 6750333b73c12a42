"""Write and join adapter files: the trained part of a LoRA stage and a hash of its frozen base.

A full checkpoint of such a stage is its base and its adapter file together, bit by bit. The base is
the checkpoint that the stage started from; it stays one file, however many adapters it has.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from anoseg_d2.checkpoint.formats import facts_of_file
from anoseg_d2.checkpoint.lora_state import lora_module_names, merge_lora_state
from anoseg_d2.checkpoint.metadata import plain, weights_hash
from anoseg_d2.checkpoint.spec import Checkpoint, ModelSpec

__all__ = ["adapter_payload", "join_adapter", "merge_adapters"]


def adapter_payload(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Extract what a LoRA stage trained (adapters, queries, heads) from a full checkpoint.

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
    if "frozen" not in meta:
        raise ValueError("the metadata does not state which tensors were frozen: save it again")
    frozen = set(meta["frozen"])
    # By name, not by what looks like a ViT: heads may be frozen, and blocks may train.
    trained = {name: tensor.detach() for name, tensor in state.items() if name not in frozen}
    if not trained:
        raise ValueError("no tensor of the model trains, so there is no adapter to save")
    base = {name: tensor for name, tensor in state.items() if name in frozen}
    meta = {**meta, "adapter": True, "frozen": sorted(base), "base_hash": weights_hash(base)}
    return plain({"model": trained, "meta": meta}, "adapter")


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
    # The base may hold more than the stage froze, such as a head that it then trained.
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
    spec = ModelSpec.from_state(state, facts_of_file("anoseg", state, meta))
    return Checkpoint(state, "anoseg", spec, f"{base.source} + {adapter.source}", [], meta)


def merge_adapters(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with its adapters added into their weights.

    Raises:
        ValueError: there are no adapters, or it is an adapter file without its base.
    """
    if not lora_module_names(checkpoint.state_dict):
        raise ValueError(f"{checkpoint.source} has no LoRA adapters: nothing to merge")
    if checkpoint.format == "anoseg_adapter":
        raise ValueError(f"{checkpoint.source} needs its base weights: give --base")
    state = merge_lora_state(checkpoint.state_dict, checkpoint.spec.adapters)
    gone = ("lora", "adapter", "base_hash", "frozen")
    meta = {key: value for key, value in checkpoint.meta.items() if key not in gone}
    # Nothing is frozen in a plain model, and it is nobody's adapter.
    spec = replace(checkpoint.spec, adapters={}, has_adapters=False)
    return replace(checkpoint, state_dict=state, spec=spec, meta=meta | {"lora": None})
