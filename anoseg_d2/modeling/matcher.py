"""Assignment of queries to targets.

Shape letters: Q queries, T targets of one image, P points, R class rows.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

__all__ = ["assign", "pair_costs"]

MAX_COST = 1e10


def pair_costs(
    point_logits: Tensor,
    point_targets: Tensor,
    class_logits: Tensor,
    target_classes: Tensor,
    weights: tuple[float, float, float],
    valid: Tensor | None = None,
) -> Tensor:
    """Cost of every query with every target: w0 BCE + w1 dice - w2 softmax(L)[y].

    As Mask2Former (arXiv:2112.01527); the class part uses logits without margin.

    Args:
        point_logits: (Q, P) mask logits at points that all queries and targets share.
        point_targets: (T, P) targets there, 0..1.
        class_logits: (Q, R).
        target_classes: (T,) int64.
        weights: of BCE, dice and class.
        valid: (P,) of 0 and 1, points that count; None for all.
    Returns:
        (Q, T) float32.
    """
    if valid is None:
        valid = torch.ones_like(point_logits[0])
    count = valid.sum().clamp(min=1.0)
    targets = point_targets * valid
    # softplus(x) - x t is the binary cross entropy of logit x against target t
    bce = ((F.softplus(point_logits) @ valid)[:, None] - point_logits @ targets.T) / count
    probs = point_logits.sigmoid() * valid
    overlap = 2 * probs @ targets.T + 1
    dice = 1 - overlap / (probs.sum(dim=1)[:, None] + targets.sum(dim=1)[None] + 1)
    class_cost = -class_logits.softmax(dim=-1)[:, target_classes]
    return weights[0] * bce + weights[1] * dice + weights[2] * class_cost


def assign(costs: Tensor) -> tuple[Tensor, Tensor]:
    """One-to-one assignment of least total cost (Hungarian, scipy).

    Infinite costs are clamped to +-1e10; the smaller side is assigned whole.

    Args:
        costs: (Q, T).
    Returns:
        query and target indices, each (min(Q, T),) int64 on the device of `costs`.
    Raises:
        FloatingPointError: a cost is NaN: the model has diverged.
    """
    matrix = costs.detach().double().cpu().numpy()
    if np.isnan(matrix).any():
        raise FloatingPointError(
            f"{int(np.isnan(matrix).sum())} of {matrix.size} matching costs are NaN: the model's "
            "outputs are not finite; lower SOLVER.BASE_LR or switch SOLVER.AMP.ENABLED off"
        )
    rows, columns = linear_sum_assignment(matrix.clip(-MAX_COST, MAX_COST))
    return (
        torch.as_tensor(rows, dtype=torch.int64, device=costs.device),
        torch.as_tensor(columns, dtype=torch.int64, device=costs.device),
    )
