"""Compute the losses of each prediction when it is made, with or without their gradient.

A prediction of EoMT is a leaf of the network: its features are used for its own losses and nothing
else. So its backward pass does not have to wait for the rest of the network. Taken at once, the
gradient of what went in replaces everything that led to the losses, and unlike activation
checkpointing nothing is computed twice.

Shape letters: B images, Q queries, C width, N tokens, R class rows, (h, w) mask grid.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from anoseg_d2.modeling.criterion import LossNormalizers, SetCriterion, Target, of_layer
from anoseg_d2.modeling.heads import ClassHead

Losses = dict[str, Tensor]


class LayerLosses:
    """Losses of all predictions of one forward pass.

    Args:
        criterion: matches and weighs; everything else of it is left to it.
        targets, class_head, normalizers: see `SetCriterion.forward`.
        num_layers: number of predictions to come.
        at_once: take the gradient of each prediction before the next block runs, and keep nothing
            of it; else the predictions are kept, and `criterion` is called with all of them.
        scale: what the losses will be multiplied by before the backward pass. Gradients that are
            taken at once are those of losses times this: small ones vanish in float16.
    """

    def __init__(
        self,
        criterion: nn.Module,
        targets: list[Target],
        class_head: ClassHead,
        normalizers: LossNormalizers,
        *,
        num_layers: int,
        at_once: bool,
        scale: Tensor | float = 1.0,
    ):
        self.criterion, self.targets, self.class_head = criterion, targets, class_head
        self.normalizers, self.num_layers = normalizers, num_layers
        self.at_once, self.scale = at_once, scale
        self._predictions: list[tuple[Tensor, Tensor | None]] = []
        self._losses: Losses = {}

    def predict(
        self, heads: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Make the next prediction.

        Args:
            heads: gives mask logits (B, Q, h, w) and class logits (B, Q, R) of x.
            x: tokens (B, N, C) of the network.
        Returns:
            the prediction; with its gradient taken, mask logits without a graph, and None.
        """
        if not self.at_once:
            self._predictions.append(heads(x))
            return self._predictions[-1]
        layer = len(self._predictions)
        final = layer == self.num_layers - 1

        def run(x: Tensor) -> tuple[Losses, Tensor]:
            prediction = heads(x)
            with torch.autocast(x.device.type, enabled=False):
                (matches,) = self.criterion.match_layers([prediction], self.targets)
                options = self.targets, matches, self.class_head, self.normalizers, final
                return self.criterion.layer_losses(prediction, *options), prediction[0]

        losses, mask_logits = _with_gradient(run, x, self.scale)
        self._losses |= of_layer(losses, layer, final)
        self._predictions.append((mask_logits, None))
        return self._predictions[-1]

    def losses(self) -> Losses:
        """Return the weighted losses of all predictions, named as `SetCriterion.forward` does."""
        if self.at_once:
            return self._losses
        with torch.autocast(self._predictions[0][0].device.type, enabled=False):
            return self.criterion(
                self._predictions, self.targets, self.class_head, self.normalizers
            )


def can_be_taken_at_once(criterion: nn.Module, modules: Iterable[nn.Module]) -> bool:
    """Return whether immediate gradients equal those of a backward pass.

    Hooks would run within the forward pass, those of parameters once more in the backward pass, and
    what a criterion does with all predictions together has to wait for the last of them.

    Args:
        criterion: of the model.
        modules: all that a prediction and its losses may use.
    """
    kind = type(criterion)
    ours = kind.forward is SetCriterion.forward and kind.match_layers is SetCriterion.match_layers
    # torch has no public way to ask for hooks.
    parts = [part for module in modules for part in module.modules()]
    hooked = any(p._forward_hooks or p._backward_hooks or p._backward_pre_hooks for p in parts)
    parameters = (p for part in parts for p in part.parameters(recurse=False))
    return ours and not hooked and not any(p._backward_hooks for p in parameters)


def _with_gradient(
    function: Callable[[Tensor], tuple[Losses, Tensor]], x: Tensor, scale: Tensor | float
) -> tuple[Losses, Tensor]:
    """Compute losses and, in the same call, the gradient of their sum.

    The gradient is that of x and of everything that trains and was used, whatever module it is in.

    Args:
        function: maps x to scalar losses by name, and to an output of any shape.
        x: input that gets a gradient.
        scale: see `LayerLosses`.
    Returns:
        losses, whose backward pass only hands out what is known, and the output without a graph.
    """
    # Cut off here, the graph of the prediction is freed as soon as its gradient is known.
    inner = x.detach().requires_grad_(x.requires_grad)
    with torch.enable_grad():
        losses, output = function(inner)
        values = torch.stack(list(losses.values()))
    if values.requires_grad:  # else nothing trains
        leaves = _leaves(values)
        # Each operation's backward pass runs in the type of its forward pass, not of autocast.
        with torch.autocast(x.device.type, enabled=False):
            gradients = torch.autograd.grad(values.sum() * scale, leaves, allow_unused=True)
        given = [x if leaf is inner else leaf for leaf in leaves]
        values = _HandOut.apply(values.detach(), scale, gradients, *given)
    return dict(zip(losses, values, strict=True)), output.detach()


def _leaves(values: Tensor) -> list[Tensor]:
    """Return the tensors that the graph of `values` begins with, each once."""
    # By the graph and not by module: a head may share parameters with anything.
    leaves, seen, waiting = [], set(), [values.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            leaves.append(node.variable)
        waiting += [before for before, _ in node.next_functions]
    return leaves


class _HandOut(torch.autograd.Function):
    """Losses whose gradient is known: the backward pass multiplies it by a number."""

    @staticmethod
    def forward(ctx, values, scale, gradients, *leaves):
        ctx.scale = scale
        ctx.save_for_backward(*gradients)
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_values):
        factor = common_factor(grad_values / ctx.scale)
        gradients = ctx.saved_tensors
        if factor != 1:
            gradients = [None if g is None else g * factor for g in gradients]
        return None, None, None, *gradients


def common_factor(factors: Tensor) -> float:
    """Return the one value of all factors; RuntimeError if there are several."""
    first, *others = factors.tolist()
    if any(other != first and not math.isnan(other) for other in others):
        raise RuntimeError(
            "the gradient of a prediction's losses is taken of their sum, so they cannot be "
            "weighted one by one after the model: weigh them in the criterion, or set "
            "MODEL.EOMT.RECOMPUTE none"
        )
    return first
