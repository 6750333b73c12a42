"""Optimiser groups and the two-stage warm-up of EoMT.

Letters: T length of the run in steps, a and b lengths of the warm-ups of new parameters and of
the ViT, N number of ViT blocks.
"""

import re
from typing import NamedTuple

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from anoseg_d2.modeling.patch_heads import PATCH_HEADS, PATCH_PREFIX


class ParameterRule(NamedTuple):
    """How one parameter is trained.

    kind: "vit" follows the delayed warm-up, "new", "lora" and "ratio" the first one.
    lr_scale: on BASE_LR.
    weight_decay: of AdamW.
    """

    kind: str
    lr_scale: float
    weight_decay: float


def learning_rate_factor(
    kind: str, step: int, total: int, warmup_new: int, warmup_vit: int, power: float = 0.9
) -> float:
    """Fraction of a group's peak learning rate at a step.

    New parameters: t / a up to a, then (1 - (t - a) / (T - a))^power. ViT: 0 up to a, then
    (t - a) / b up to a + b, then (1 - (t - a - b) / (T - a - b))^power. Bases are clamped at 0.

    Args:
        kind: "vit", or anything else for new parameters and adapters.
        step: t, from 0.
        total: T.
        warmup_new, warmup_vit: a and b in steps, 0 for none.
        power: of the polynomial decay.
    """
    begin, length = (warmup_new, warmup_vit) if kind == "vit" else (0, warmup_new)
    if step < begin:
        return 0.0
    if step < begin + length:
        return (step - begin) / length
    # Both decays end with the run, whenever they begin.
    decay = total - begin - length
    return max(0.0, 1 - (step - begin - length) / max(decay, 1)) ** power


def parameter_rule(name: str, cfg, num_blocks: int, num_query_blocks: int) -> ParameterRule:
    """Return the rule for the parameter `name` of an EoMT.

    ViT block i of N has lr * decay^(N - 1 - i), patch, position and prefix tokens decay^(N - 1),
    the final norm lr. Adapters count as new: no layer decay, no weight decay, a factor of their
    own. Patch heads, such as `ratio`, are groups of their own, each with its factor.

    Args:
        name: as in `EoMT.named_parameters()`.
        cfg: config node.
        num_blocks: N.
        num_query_blocks: last blocks that see the queries.
    """
    solver = cfg.SOLVER
    if "lora_" in name:
        return ParameterRule("lora", cfg.MODEL.LORA.LR_FACTOR, 0.0)
    if name.startswith(PATCH_PREFIX):
        head = name.removeprefix(PATCH_PREFIX).split(".")[0]
        factor = PATCH_HEADS[head].learning_rate_factor(cfg)
        return ParameterRule(head, factor, solver.WEIGHT_DECAY)
    if not name.startswith("backbone."):
        return ParameterRule("new", 1.0, solver.WEIGHT_DECAY)
    block = re.match(r"backbone\.blocks\.(\d+)\.", name)
    if block:
        index = int(block.group(1))
        exponent = num_blocks - 1 - index  # the first blocks are the most general ones
        if not solver.DECAY_QUERY_BLOCKS and index >= num_blocks - num_query_blocks:
            exponent = 0
    else:
        exponent = 0 if name.startswith("backbone.norm.") else num_blocks - 1
    return ParameterRule("vit", solver.LAYER_DECAY**exponent, solver.WEIGHT_DECAY)


def build_optimizer(cfg, model: nn.Module) -> torch.optim.Optimizer:
    """Build AdamW over the trainable parameters, one group per distinct rule.

    Each group carries `kind` and `initial_lr`, which `build_scheduler` reads.

    Raises:
        ValueError: nothing is trainable.
    """
    groups: dict[ParameterRule, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rule = parameter_rule(name, cfg, len(model.backbone.blocks), model.num_blocks)
            groups.setdefault(rule, []).append(parameter)  # few groups make a fast step
    if not groups:
        raise ValueError("no parameter of the model is trainable")
    devices = {parameter.device.type for parameters in groups.values() for parameter in parameters}
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": cfg.SOLVER.BASE_LR * rule.lr_scale,
                "weight_decay": rule.weight_decay,
                "kind": rule.kind,
            }
            for rule, parameters in groups.items()
        ],
        lr=cfg.SOLVER.BASE_LR,
        # One pass over each tensor instead of a dozen, where torch has such a kernel.
        fused=devices <= {"cpu", "cuda"},
    )


def build_scheduler(cfg, optimizer: torch.optim.Optimizer) -> LambdaLR:
    """`learning_rate_factor` for every group; warm-ups are fractions of SOLVER.MAX_ITER."""
    total = cfg.SOLVER.MAX_ITER
    warmup_new = round(cfg.SOLVER.WARMUP_NEW * total)
    warmup_vit = round(cfg.SOLVER.WARMUP_VIT * total)

    def factor(kind):
        return lambda step: learning_rate_factor(
            kind, step, total, warmup_new, warmup_vit, cfg.SOLVER.POLY_POWER
        )

    return LambdaLR(optimizer, [factor(group["kind"]) for group in optimizer.param_groups])
