"""Take the losses of each prediction as the network makes it, with their gradient or without.

A prediction of EoMT is a leaf of the network: its features are used for its own losses and nothing
else. So its backward pass does not have to wait for the rest of the network. Taken at once, the
gradient of what went in replaces everything that led to the losses, and unlike activation
checkpointing nothing is computed twice.

Shape letters: B images, Q queries, C width, N tokens, R class rows, (h, w) mask grid.
"""

import functools
import logging
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from anoseg_d2.modeling.criterion import LossNormalizers, SetCriterion, Target, of_layer
from anoseg_d2.modeling.heads import ClassHead

__all__ = ["KeepsGraph", "LayerLosses", "reason_to_keep", "say_once", "with_gradient"]

logger = logging.getLogger(__name__)

Losses = dict[str, Tensor]


class KeepsGraph(Exception):  # noqa: N818 - it ends no program
    """The gradient of a prediction cannot be taken at once; says why."""


class LayerLosses:
    """Losses of all predictions of one forward pass.

    Args:
        criterion: matches and weighs; everything else of it is left to it.
        targets, class_head, normalizers: see `SetCriterion.forward`.
        num_layers: number of predictions to come.
        at_once: take the gradient of each prediction before the next block runs, and keep nothing
            of it; else the predictions are kept, and `criterion` is called with all of them.
        scale: what the losses will be multiplied by before the backward pass: see `with_gradient`.
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
        Raises:
            KeepsGraph: see `with_gradient`.
        """
        if not self.at_once:
            self._predictions.append(heads(x))
            return self._predictions[-1]
        layer = len(self._predictions)
        final = layer == self.num_layers - 1
        # Not `self`, which holds the losses, whose graph holds this function: a circle.
        criterion, targets, last = self.criterion, self.targets, (self.normalizers, final)
        class_head = self.class_head

        def run(x: Tensor) -> tuple[Losses, Tensor]:
            prediction = heads(x)
            with torch.autocast(x.device.type, enabled=False):
                (matches,) = criterion.match_layers([prediction], targets)
                return criterion.layer_losses(
                    prediction, targets, matches, class_head, *last
                ), prediction[0]

        losses, mask_logits = with_gradient(run, x, self.scale)
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


def reason_to_keep(criterion: nn.Module, modules: Iterable[nn.Module]) -> str:
    """Say why gradients may not be taken at once; empty if they may.

    Hooks would run within the forward pass, those of parameters once more in the backward pass, and
    what the criterion does with all predictions together has to wait for the last of them.

    Args:
        criterion: of the model.
        modules: all that a prediction and its losses may use.
    """
    for name in ("forward", "match_layers"):
        method = getattr(getattr(criterion, name, None), "__func__", None)
        if method is not getattr(SetCriterion, name):
            return f"{type(criterion).__name__} has a `{name}` of its own"
    for module in modules:
        for part in module.modules():
            # torch has no public way to ask for hooks.
            if part._forward_hooks or part._backward_hooks or part._backward_pre_hooks:
                return f"{type(part).__name__} has hooks"
            if any(parameter._backward_hooks for parameter in part.parameters(recurse=False)):
                return f"a parameter of {type(part).__name__} has hooks"
    return ""


@functools.cache
def say_once(text: str) -> None:
    """Log a warning, the first time in this process."""
    logger.warning(text)


def with_gradient(
    function: Callable[[Tensor], tuple[Losses, Tensor]], x: Tensor, scale: Tensor | float = 1.0
) -> tuple[Losses, Tensor]:
    """Compute losses and, in the same call, the gradient of their sum.

    The gradient is that of x and of everything that trains and was used, whatever module it is in.

    Args:
        function: maps x to scalar losses by name, and to an output of any shape.
        x: input that gets a gradient.
        scale: what the losses will be multiplied by before the backward pass. The gradient is taken
            of losses that are multiplied by it, because small ones vanish in float16.
    Returns:
        losses, whose backward pass only hands out what is known (if they arrive there with
        different weights, `function` runs once more); and the output, which has no graph.
    Raises:
        KeepsGraph: a loss depends on what was computed before, other than x.
    """
    again = _Again(function, x)
    inner = x.detach().requires_grad_(x.requires_grad)
    with torch.enable_grad():
        # Operations are numbered in their order: those from before have a lower number.
        first = torch.ones((), requires_grad=True).neg().grad_fn._sequence_nr()
        losses, output = function(inner)
        values = torch.stack(list(losses.values()))
    output = output.detach()
    if not values.requires_grad:  # nothing trains
        return dict(zip(losses, values, strict=True)), output
    leaves = [leaf for leaf in _leaves(values, first) if leaf is not inner]
    wanted = [inner, *leaves] if x.requires_grad else leaves
    # Each operation's backward pass runs in the type of its forward pass, not of autocast.
    with torch.autocast(x.device.type, enabled=False):
        gradients = torch.autograd.grad(values.sum() * scale, wanted, allow_unused=True)
    if not x.requires_grad:
        gradients = (None, *gradients)
    values = _HandOut.apply(values.detach(), scale, again, gradients, x, *leaves)
    return dict(zip(losses, values, strict=True)), output


def _leaves(values: Tensor, first: int) -> list[Tensor]:
    """Return the tensors that the graph of `values` begins with, each once.

    Raises:
        KeepsGraph: an operation has a number below `first`.
    """
    leaves, seen, waiting = [], set(), [values.grad_fn]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if _is_leaf(node):
            leaves.append(node.variable)
            continue
        before = [other for other, _ in node.next_functions if other is not None]
        # Autocast casts a weight once for all predictions; such an operation leads to leaves only.
        if node._sequence_nr() < first and not all(map(_is_leaf, before)):
            raise KeepsGraph("the losses of a prediction depend on more than its own tokens")
        waiting += before
    return leaves


def _is_leaf(node) -> bool:
    return type(node).__name__ == "AccumulateGrad"


class _HandOut(torch.autograd.Function):
    """Losses whose gradient is known: the backward pass multiplies it by a number."""

    @staticmethod
    def forward(ctx, values, scale, again, gradients, x, *leaves):
        ctx.scale, ctx.again = scale, again
        ctx.save_for_backward(x, *leaves, *gradients)
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_values):
        half = len(ctx.saved_tensors) // 2
        (x, *leaves), gradients = ctx.saved_tensors[:half], ctx.saved_tensors[half:]
        factor = common_factor(grad_values / ctx.scale)
        if factor is None:
            say_once(
                "the losses of a prediction are weighted one by one after the model, so each "
                "prediction is computed twice; MODEL.EOMT.RECOMPUTE none avoids that"
            )
            gradients = ctx.again.gradients(x, leaves, grad_values)
        elif factor != 1:
            gradients = [None if g is None else g * factor for g in gradients]
        return None, None, None, None, *gradients


def common_factor(factors: Tensor) -> float | None:
    """Return the one value of all factors; None if there are several."""
    first, *others = factors.tolist()
    return None if any(o != first and not math.isnan(o) for o in others) else first


class _Again:
    """A function of x that can run once more, with the same random numbers and precision."""

    def __init__(self, function, x: Tensor):
        self.function = function
        self.random = torch.get_rng_state()
        self.device_random = torch.cuda.get_rng_state(x.device) if x.is_cuda else None
        kind = x.device.type
        self.precision = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)

    def gradients(self, x: Tensor, leaves: list[Tensor], weights: Tensor) -> list[Tensor | None]:
        """Return the gradients of the weighted losses with respect to x and leaves."""
        inner = x.detach().requires_grad_(x.requires_grad)
        with torch.random.fork_rng([x.device] if x.is_cuda else []):
            torch.set_rng_state(self.random)
            if x.is_cuda:
                torch.cuda.set_rng_state(self.device_random, x.device)
            with torch.enable_grad(), torch.autocast(*self.precision):
                losses, _ = self.function(inner)
                values = torch.stack(list(losses.values()))
        wanted = [inner, *leaves] if x.requires_grad else leaves
        found = torch.autograd.grad(values, wanted, weights, allow_unused=True)
        return [*found] if x.requires_grad else [None, *found]
