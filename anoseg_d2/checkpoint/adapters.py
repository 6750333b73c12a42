"""Write, join and merge adapters: the trained part of a LoRA stage and a hash of its frozen base.

A full checkpoint of such a stage is its base and its adapter file together, bit by bit. The base is
the checkpoint that the stage started from; it stays one file, however many adapters it has.

The base may also be a bare ViT that everybody can get, which the stage resampled to its patch and
crop. Then the hash is of the ViT as it was published, because resampling rounds differently on
other machines.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from timm.layers import resample_patch_embed
from torch import Tensor

from anoseg_d2.checkpoint.formats import facts_of_file
from anoseg_d2.checkpoint.metadata import plain, weights_hash
from anoseg_d2.checkpoint.rules import fold_position_prefix, resample_position_embedding
from anoseg_d2.checkpoint.spec import Checkpoint, ModelSpec
from anoseg_d2.modeling.lora import merged_weight
from anoseg_d2.modeling.patch_heads import PATCH_PREFIX
from anoseg_d2.modeling.patch_heads.memory import backbone_hash

PLAIN = f"{PATCH_PREFIX}memory.plain."


def adapter_payload(
    state: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    vit: Checkpoint | None = None,
    vit_name: str = "",
    half: bool = False,
) -> dict[str, Any]:
    """Extract what a LoRA stage trained (adapters, queries, heads) from a full checkpoint.

    Args:
        state: all tensors of the model.
        meta: its metadata, see `model_meta`.
        vit: the bare ViT that the stage started from, if that shall be the base.
        vit_name: the name that everybody can get it by, so that it need not be given again.
        half: write the tensors in float16.
    Returns:
        what `write_checkpoint` takes.
    Raises:
        ValueError: the model has no adapters, everything in it is frozen, or its frozen weights
            are not those of `vit`.
    """
    if not meta.get("lora"):
        raise ValueError("the model has no LoRA adapters, so there is no adapter file to write")
    if "frozen" not in meta:
        raise ValueError("the metadata does not state which tensors were frozen: save it again")
    frozen = set(meta["frozen"])
    # By name, not by what looks like a ViT: heads may be frozen, and blocks may train.
    fitted = {} if vit is None else fit_vit(vit, meta)
    # A memory's copies of blocks come from the ViT as well, if that is where it has them from.
    frozen |= {
        n for n in fitted if n.startswith(PLAIN) and n in state and _alike(state[n], fitted[n])
    }
    if vit is not None:
        other = [n for n in state if n in frozen and not _alike(state[n], fitted.get(n))]
        # An earlier stage may have trained biases and norms, which are small enough to be stored.
        if matrices := [n for n in other if state[n].ndim > 1]:
            raise ValueError(f"{vit.source} is not what the stage froze: {matrices[0]} differs")
        frozen -= set(other)
    trained = {name: tensor.detach() for name, tensor in state.items() if name not in frozen}
    if not trained:
        raise ValueError("no tensor of the model trains, so there is no adapter to save")
    base = {name: tensor for name, tensor in state.items() if name in frozen}
    meta = {**meta, "adapter": True, "frozen": sorted(base), "base_hash": weights_hash(base)}
    if vit is not None:
        meta |= {"base_is_vit": True, "base_hash": weights_hash(vit.state_dict)}
        if vit_name:
            meta["base_name"] = vit_name
    if half:
        trained = {name: t.half() if t.is_floating_point() else t for name, t in trained.items()}
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
    names, is_vit = set(adapter.meta["frozen"]), adapter.meta.get("base_is_vit")
    # The base may hold more than the stage froze, such as a head that it then trained.
    frozen = {name: tensor for name, tensor in base.state_dict.items() if name in names}
    if weights_hash(base.state_dict if is_vit else frozen) != adapter.meta["base_hash"]:
        raise ValueError(
            f"{base.source} is not the base that {adapter.source} was trained on: the hash of the "
            "frozen weights differs. The base must have the same crop, patch size and tensors as "
            "the trained model; give the checkpoint that the stage started from, saved at that "
            "size"
        )
    if is_vit:
        fitted = fit_vit(base, adapter.meta)
        frozen = {name: fitted[name] for name in names}
    # Whatever is stored in half precision is computed with in float32.
    trained = {n: t.float() if t.dtype == torch.half else t for n, t in adapter.state_dict.items()}
    state = {**frozen, **trained}
    gone = ("adapter", "base_hash", "base_is_vit", "base_name")
    meta = {key: value for key, value in adapter.meta.items() if key not in gone}
    if is_vit and meta.get("memory"):
        # The published ViT has been checked by its hash; this one is of its resampled tensors.
        blocks = meta["memory"].get("blocks") or [meta["memory"].get("block")]
        last = max(blocks) - len({n.split(".")[3] for n in state if n.startswith(PLAIN)})
        meta["memory"] = {**meta["memory"], "backbone_sha256": backbone_hash(state, last)}
    spec = ModelSpec.from_state(state, facts_of_file("anoseg", state, meta))
    return Checkpoint(state, "anoseg", spec, f"{base.source} + {adapter.source}", [], meta)


def _alike(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and torch.allclose(one, other)


def fit_vit(vit: Checkpoint, meta: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a bare ViT, with positions and patch kernel as the model has them.

    Those of its last blocks are there twice: as they are, and as the plain blocks of a memory.
    """
    embed, kernel = "backbone.pos_embed", "backbone.patch_embed.proj.weight"
    state = {name: tensor.float() for name, tensor in vit.state_dict.items()}
    state |= fold_position_prefix(state, vit.spec.pos_prefix)
    grid = tuple(meta["grid"])
    state[embed] = resample_position_embedding(state[embed], vit.spec.grid, grid)
    state[kernel] = resample_patch_embed(state[kernel], [meta["patch_size"]] * 2)
    numbers = sorted({int(n.split(".")[2]) for n in state if n.startswith("backbone.blocks.")})
    for copied, block in enumerate(numbers[-meta["num_blocks"] :]):
        start = f"backbone.blocks.{block}."
        own = {n.removeprefix(start): t for n, t in state.items() if n.startswith(start)}
        state |= {f"{PLAIN}{copied}.{n}": tensor for n, tensor in own.items()}
    return state


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


def lora_module_names(names: Iterable[str]) -> list[str]:
    """Return the names of the modules that have a `lora_A` among the tensor names, in order."""
    return [name[: -len(".lora_A")] for name in names if name.endswith(".lora_A")]


def merge_lora_state(
    state: Mapping[str, Tensor],
    modules: Mapping[str, Mapping[str, Any]],
    only: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    """Add every adapter to its weight and drop it.

    Args:
        state: tensors by name.
        modules: module name to `{"rank": r, "alpha": a, "enable": [...] or None}`, as stored in
            the metadata of our checkpoints; `enable` says which parts of a fused layer are adapted.
        only: names of the modules to merge; None for all that have adapters.
    Returns:
        A new state dict without the merged adapters; weights keep their dtype.
    Raises:
        ValueError: a module's metadata or weight is missing, or its shapes do not fit.
    """
    merged = dict(state)
    for name in lora_module_names(state) if only is None else only:
        # An adapter file has no weights: its base must be joined first.
        weight, entry = merged.get(f"{name}.weight"), modules.get(name)
        if weight is None or entry is None:
            lacks = "weight to merge them into" if weight is None else "alpha in the metadata"
            raise ValueError(f"{name} has LoRA tensors but no {lacks}")
        lora_a, lora_b = merged.pop(f"{name}.lora_A"), merged.pop(f"{name}.lora_B")
        enable, rank = entry["enable"] or [True], lora_b.shape[-1]
        size = len(weight) // len(enable)
        parts = [slice(i * size, (i + 1) * size) for i, on in enumerate(enable) if on]
        if (len(lora_a), len(lora_b)) != (len(parts) * rank, len(parts) * size):
            raise ValueError(
                f"{name}: lora_A {tuple(lora_a.shape)} and lora_B {tuple(lora_b.shape)} do not fit "
                f"{len(weight)} outputs in {len(enable)} parts, {len(parts)} of them adapted"
            )
        # In float32: in half precision a small update would vanish.
        factors = lora_a.float(), lora_b.float(), entry["alpha"] / rank, parts
        merged[f"{name}.weight"] = merged_weight(weight.float(), *factors).to(weight.dtype)
    return merged
