"""What of a model trains, and the memory that a training step needs."""

from tabulate import tabulate
from torch import nn

from anoseg_d2.modeling.lora import lora_state_dict
from anoseg_d2.utils.unwrap import unwrap

__all__ = ["memory_needs", "parameter_table", "ways_to_need_less"]

MIB = 2**20


def parameter_table(model: nn.Module) -> str:
    """Return a table of total, trainable and adapter parameters and their training memory.

    Gradients and AdamW's two moments are counted at 4 bytes each; activations are not.
    """
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    adapters = sum(value.numel() for value in lora_state_dict(model).values())
    rows = [
        [name, f"{count:,}", f"{100 * count / max(total, 1):.2f} %", memory]
        for name, count, memory in (
            ("all parameters", total, ""),
            ("trainable", trainable, f"{12 * trainable / MIB:,.1f} MiB"),
            ("only LoRA adapters", adapters, f"{12 * adapters / MIB:,.1f} MiB"),
        )
    ]
    return tabulate(rows, headers=["", "parameters", "fraction", "gradients + AdamW state"])


def memory_needs(model: nn.Module, cfg, activation_bytes: int) -> str:
    """Say in words what memory a step takes on one process.

    Args:
        model: that is trained.
        cfg: config node; reads SOLVER.EMA and MODEL.EOMT.RECOMPUTE.
        activation_bytes: what autograd saved in the first step.
    """
    parameters = list(unwrap(model).parameters())
    everything = sum(p.nbytes for p in parameters)
    trained = sum(p.nbytes for p in parameters if p.requires_grad)
    parts = {
        "parameters": everything,
        "gradients": trained,
        "optimiser": 2 * trained,
        "averaged copy": everything if cfg.SOLVER.EMA.ENABLED else 0,
        "activations": activation_bytes,
    }
    words = [f"{name} {size / MIB:,.1f} MiB" for name, size in parts.items() if size]
    total = f"{sum(parts.values()) / MIB:,.1f} MiB per process ({', '.join(words)})"
    if cfg.MODEL.EOMT.RECOMPUTE != "none":
        # Pieces that are not kept come and go, which the count after the forward pass misses.
        total += ", and for a moment one prediction's or block's activations"
    return total


def ways_to_need_less(cfg) -> str:
    """Name the keys that reduce a step's memory, leaving out those that are set already."""
    ways = [f"SOLVER.ACCUMULATION {2 * cfg.SOLVER.ACCUMULATION} halves the activations"]
    if cfg.MODEL.EOMT.RECOMPUTE != "all":
        more = "heads or all" if cfg.MODEL.EOMT.RECOMPUTE == "none" else "all"
        ways.append(f"MODEL.EOMT.RECOMPUTE {more} keeps fewer of them")
    if not cfg.MODEL.LORA.ENABLED:
        ways.append("MODEL.LORA.ENABLED True drops most gradients and optimiser state")
    elif not cfg.MODEL.LORA.BLOCKS:
        ways.append("MODEL.LORA.BLOCKS [first, last] keeps nothing of the blocks before the first")
    return f"{', '.join(ways)}, and a smaller INPUT.CROP_SIZE takes less of everything"
