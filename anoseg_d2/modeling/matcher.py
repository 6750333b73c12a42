"""Assign queries to targets.

Shape letters: Q queries, T targets of one image, P points, R class rows.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

MAX_COST = 1e10


def pair_costs(
    point_logits: Tensor,
    point_targets: Tensor,
    class_logits: Tensor,
    target_classes: Tensor,
    weights: tuple[float, float, float],
    valid: Tensor | None = None,
) -> Tensor:
    """Return the cost of each query with each target: w0 BCE + w1 dice - w2 softmax(L)[y].

    As in Mask2Former (arXiv:2112.01527); the class part uses logits without margin.

    Args:
        point_logits: (Q, P) mask logits at points that all queries and targets share.
        point_targets: (T, P) targets there, 0..1.
        class_logits: (Q, R).
        target_classes: (T,) int64.
        weights: weights of BCE, dice and class.
        valid: (P,) of 0 and 1, points that count; None for all.
    Returns:
        (Q, T) float32.
    """
    if valid is None:
        valid = torch.ones_like(point_logits[0])
    count = valid.sum().clamp(min=1.0)
    targets = point_targets * valid
    # softplus(x) - x t is the binary cross entropy of logit x against target t. As it is written
    # here, a CPU computes softplus six times as fast as torch's own; it differs by less than 1e-7.
    softplus = point_logits.abs().neg_().exp_().add_(1).log_().add_(point_logits.clamp(min=0))
    bce = ((softplus @ valid)[:, None] - point_logits @ targets.T) / count
    probs = point_logits.sigmoid() * valid
    overlap = 2 * probs @ targets.T + 1
    dice = 1 - overlap / (probs.sum(dim=1)[:, None] + targets.sum(dim=1)[None] + 1)
    class_cost = -class_logits.softmax(dim=-1)[:, target_classes]
    return weights[0] * bce + weights[1] * dice + weights[2] * class_cost


def assign(costs: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Find one-to-one assignments of least total cost (Hungarian, scipy), one per matrix.

    All matrices reach the host in a single transfer. Infinite costs are clamped to +-1e10; the
    smaller side is assigned completely.

    Args:
        costs: matrices (Q, T), each with its own Q and T, on one device.
    Returns:
        for each matrix, query and target indices, each (min(Q, T),) int64, on the host.
    Raises:
        FloatingPointError: a cost is NaN: the model has diverged.
    """
    flat = torch.cat([matrix.detach().flatten() for matrix in costs]).cpu().double().numpy()
    if np.isnan(flat).any():
        raise FloatingPointError(
            f"{int(np.isnan(flat).sum())} of {flat.size} matching costs are NaN: the model's "
            "outputs are not finite; lower SOLVER.BASE_LR or switch SOLVER.AMP.ENABLED off"
        )
    # scipy refuses infinities; 1e10 is far beyond any finite cost and still adds without overflow.
    flat = flat.clip(-MAX_COST, MAX_COST)
    result, start = [], 0
    for matrix in costs:
        part = flat[start : start + matrix.numel()].reshape(matrix.shape)
        start += matrix.numel()
        rows, columns = linear_sum_assignment(part)
        result.append((torch.from_numpy(rows), torch.from_numpy(columns)))
    return result
