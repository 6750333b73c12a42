"""Find and merge LoRA adapters inside a state dict. Pure, on tensors by name.

"LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685), in the layout of loralib:
next to its `weight` (N, M) a module has `lora_A` (G r, M) and `lora_B` (N G / T, r), where a fused
layer of T equal parts carries adapters on G of them (T = G = 1 for a plain linear layer). The
update of part g is alpha / r * B_g A_g.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["lora_delta", "lora_module_names", "merge_lora_state"]


def lora_module_names(names: Iterable[str]) -> list[str]:
    """Return the names of the modules that have a `lora_A` among the tensor names, in order."""
    return [name[: -len(".lora_A")] for name in names if name.endswith(".lora_A")]


def lora_delta(
    lora_a: Tensor, lora_b: Tensor, out_features: int, alpha: float, enable: Sequence[bool] | None
) -> Tensor:
    """Compute the weight update of one module.

    Args:
        lora_a: (G r, M).
        lora_b: (rows, r).
        out_features: N, rows of the weight.
        alpha: LoRA's alpha; the update is scaled by alpha / r.
        enable: which of the T parts of a fused layer have an adapter; None for a plain layer.
    Returns:
        (N, M) float32.
    Raises:
        ValueError: the shapes do not fit each other.
    """
    if lora_a.dim() != 2 or lora_b.dim() != 2 or lora_b.shape[1] < 1:
        raise ValueError(
            f"lora_A {tuple(lora_a.shape)} and lora_B {tuple(lora_b.shape)} are not matrices"
        )
    rank = lora_b.shape[1]
    parts = list(enable) if enable else [True]
    groups = sum(parts)
    size = out_features // len(parts)
    if lora_a.shape[0] != groups * rank or lora_b.shape[0] != groups * size:
        raise ValueError(
            f"lora_A {tuple(lora_a.shape)} and lora_B {tuple(lora_b.shape)} do not fit "
            f"{out_features} outputs in {len(parts)} parts, {groups} of them adapted"
        )
    # One product per adapted part; the others stay zero, as their rows have no adapter.
    products = torch.bmm(
        lora_b.float().reshape(groups, size, rank), lora_a.float().reshape(groups, rank, -1)
    )
    delta = products.new_zeros(len(parts), size, lora_a.shape[1])
    delta[torch.tensor(parts)] = products
    return delta.reshape(out_features, -1) * (alpha / rank)


def merge_lora_state(
    state: Mapping[str, Tensor],
    modules: Mapping[str, Mapping[str, Any]],
    only: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    """Add every adapter to its weight and drop it.

    Args:
        state: tensors by name.
        modules: module name to `{"rank": r, "alpha": a, "enable": [...] or None}`, as stored in
            the metadata of our checkpoints.
        only: names of the modules to merge; None for all that have adapters.
    Returns:
        A new state dict without the merged adapters; weights keep their dtype.
    Raises:
        ValueError: a module's metadata or weight is missing.
    """
    merged = dict(state)
    for name in lora_module_names(state) if only is None else only:
        if name not in modules:
            raise ValueError(
                f"{name} has LoRA tensors, but the checkpoint does not say their alpha; "
                "save it with AnosegCheckpointer, which stores it"
            )
        # An adapter file has no weights: its base must be joined first.
        weight = merged.get(f"{name}.weight")
        if weight is None:
            raise ValueError(f"{name} has LoRA tensors but no weight to merge them into")
        lora_a, lora_b = merged.pop(f"{name}.lora_A"), merged.pop(f"{name}.lora_B")
        entry = modules[name]
        delta = lora_delta(lora_a, lora_b, weight.shape[0], entry["alpha"], entry["enable"])
        # Added in float32: in half precision a small update would vanish.
        merged[f"{name}.weight"] = (weight.float() + delta.to(weight.device)).to(weight.dtype)
    return merged
