"""Losses whose gradient is taken in the forward pass, so that nothing is kept for the backward one.

A prediction of EoMT is a leaf of the network: its features are used for its own losses and nothing
else. So its backward pass does not have to wait for the rest of the network. Taken at once, the
gradient of what went in replaces everything that led to the losses, and unlike activation
checkpointing nothing is computed twice.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["losses_at_once"]

Function = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]


class _AtOnce(torch.autograd.Function):
    """Run a function and its backward pass; the backward pass of this only hands out results."""

    @staticmethod
    def forward(ctx, function, scale, x, *parameters):
        with torch.enable_grad():
            inner = x.detach().requires_grad_(x.requires_grad)
            losses, output = function(inner)
            inputs = [inner, *parameters]
            wanted = [tensor for tensor in inputs if tensor.requires_grad]
            # Each operation's backward pass runs in the type of its forward pass, not of autocast.
            with torch.autocast(x.device.type, enabled=False):
                found = torch.autograd.grad(losses.sum() * scale, wanted, allow_unused=True)
        found = iter(found)
        ctx.scale = scale
        ctx.save_for_backward(*(next(found) if t.requires_grad else None for t in inputs))
        output = output.detach()
        ctx.mark_non_differentiable(output)
        return losses.detach(), output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_losses, _):
        factor = common_factor(grad_losses / ctx.scale)
        gradients = ctx.saved_tensors
        if factor != 1:
            gradients = [None if gradient is None else gradient * factor for gradient in gradients]
        return None, None, *gradients


def common_factor(factors: Tensor) -> float:
    """Return the one value of all factors; RuntimeError if there are several."""
    first, *others = factors.tolist()
    if any(other != first and not math.isnan(other) for other in others):
        raise RuntimeError(
            "the gradient of a prediction's losses is taken of their sum, so they cannot be "
            "weighted one by one; use the weights in MODEL.CRITERION, or MODEL.EOMT.RECOMPUTE none"
        )
    return first


def losses_at_once(
    function: Function, x: Tensor, modules: Iterable[nn.Module], scale: Tensor | float = 1.0
) -> tuple[dict[str, Tensor], Tensor]:
    """Compute losses and, in the same call, the gradient of their sum.

    Args:
        function: maps x to scalar losses by name, and to an output of any shape.
        x: input that gets a gradient.
        modules: all whose parameters `function` uses.
        scale: what the losses will be multiplied by before the backward pass. The gradient is taken
            of losses that are multiplied by it, because small ones vanish in float16.
    Returns:
        losses, which have a gradient, but only as their sum; and the output, which has none.
    Raises:
        RuntimeError: in the backward pass, if the losses arrive with different weights.
    """
    names: list[str] = []

    def stacked(inner: Tensor) -> tuple[Tensor, Tensor]:
        losses, output = function(inner)
        names.extend(losses)
        return torch.stack(list(losses.values())), output

    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    values, output = _AtOnce.apply(stacked, scale, x, *parameters)
    return dict(zip(names, values, strict=True)), output
