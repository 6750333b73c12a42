"""Losses of the predictions: whatever is kept, every parameter gets its gradient exactly once."""

import copy

import pytest
import torch
from torch import nn

from anoseg_d2.modeling import EoMT, SetCriterion, matcher
from anoseg_d2.modeling.heads import LinearHead


def both_ways(model):
    """The model as it is given, which keeps all predictions, and a copy that keeps none."""
    kept = model.train()
    kept.set_progress(1.0)  # attention masks would draw random numbers in another order
    kept.recompute = "none"
    at_once = copy.deepcopy(kept)
    at_once.recompute = "heads"
    return kept, at_once


def gradients(model, batch, weigh=lambda losses: sum(losses.values())):
    model.zero_grad()
    weigh(model(batch)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_gradients(models, batch, **options):
    expected, found = (gradients(model, batch, **options) for model in models)
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=1e-7, msg=lambda text, n=name: f"{n}: {text}"
        )
    return found


class WithExtra(SetCriterion):
    """A criterion that looks at all predictions together."""

    def forward(self, predictions, targets, head, normalizers=None):
        losses = super().forward(predictions, targets, head, normalizers)
        losses["loss_extra"] = (predictions[-1][0] - predictions[0][0]).square().mean()
        return losses


class LearnedWeight(SetCriterion):
    """A criterion with a parameter of its own."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.log_variance = nn.Parameter(torch.zeros(()))

    def layer_losses(self, *arguments):
        found = super().layer_losses(*arguments)
        found["loss_class"] = found["loss_class"] * (-self.log_variance).exp() + self.log_variance
        return found


class ExtraHead(EoMT):
    """A model with one more module in its predictions, which it uses for every one of them."""

    def __init__(self, **parts):
        super().__init__(**parts)
        self.extra = nn.Linear(self.backbone.embed_dim, self.num_known + 1)

    def _apply_heads(self, x):
        masks, classes = super()._apply_heads(x)
        return masks, classes + self.extra(x[:, : self.num_queries])


class SharedHead(LinearHead):
    """A class head that uses the mask head's module, `trunk`."""

    def forward(self, features):
        return super().forward(features + self.trunk(features))


def parts_of(model):
    names = ("backbone", "num_known", "num_queries", "num_blocks", "criterion")
    return {name: getattr(model, name) for name in names}


def test_a_criterion_with_its_own_forward_is_called_with_all_predictions(tiny_eomt, tiny_batch):
    criterion = WithExtra(3, match_points=0, loss_points=0)
    models = both_ways(tiny_eomt(criterion=criterion))
    assert "loss_extra" in models[1](tiny_batch())
    assert_equal_gradients(models, tiny_batch())


def test_parameters_of_the_criterion_and_of_other_modules_get_their_gradient_once(
    tiny_eomt, tiny_batch
):
    criterion = LearnedWeight(3, match_points=0, loss_points=0)
    model = ExtraHead(**parts_of(tiny_eomt(criterion=criterion)))
    found = assert_equal_gradients(both_ways(model), tiny_batch())
    assert {"extra.weight", "criterion.log_variance"} <= set(found)


def test_a_module_of_two_heads_gets_its_gradient_once(tiny_eomt, tiny_batch):
    model = tiny_eomt()
    head = SharedHead(32, 3)
    head.trunk, model.class_head = model.mask_head, head
    assert_equal_gradients(both_ways(model), tiny_batch())


def test_hooks_of_parameters_act_once_and_of_modules_in_the_backward_pass(tiny_eomt, tiny_batch):
    models = both_ways(tiny_eomt())
    for model in models:
        model.class_head.weight.register_hook(lambda gradient: 0.5 * gradient)
    assert_equal_gradients(models, tiny_batch())
    seen = []
    for model in both_ways(tiny_eomt()):
        seen.append([])
        model.mask_head[1].register_full_backward_hook(
            lambda module, given, received, norms=seen[-1]: norms.append(received[0].norm())
        )
        losses = model(tiny_batch())
        assert not seen[-1]
        (0.25 * sum(losses.values())).backward()
    torch.testing.assert_close(seen[1], seen[0])


@pytest.mark.parametrize("trained", ["blocks.2", "query", "class_head"])
def test_frozen_parts_train_nothing_and_stop_nothing(tiny_eomt, tiny_batch, trained):
    model = tiny_eomt()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    found = assert_equal_gradients(both_ways(model), tiny_batch())
    assert found and all(trained in name for name in found)


def test_losses_that_are_weighted_one_by_one_after_the_model_are_refused(tiny_eomt, tiny_batch):
    losses = tiny_eomt().train()(tiny_batch())
    with pytest.raises(RuntimeError, match="one by one.*RECOMPUTE none"):
        (2 * losses.pop("loss_mask") + sum(losses.values())).backward()


def test_costs_of_all_kept_predictions_reach_the_host_together(tiny_eomt, tiny_batch, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "anoseg_d2.modeling.criterion.assign",
        lambda costs: calls.append(len(costs)) or matcher.assign(costs),
    )
    kept, at_once = both_ways(tiny_eomt())
    kept(tiny_batch(2))
    assert calls == [2 * 3]
    calls.clear()
    at_once(tiny_batch(2))
    assert calls == [2, 2, 2]  # each prediction has to be matched before the next one is made
