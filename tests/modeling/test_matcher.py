"""Assignment of queries to targets."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from anoseg_d2.modeling.criterion import Target
from anoseg_d2.modeling.heads import ArcFaceHead
from anoseg_d2.modeling.matcher import MAX_COST, assign, pair_costs


def least_cost(costs):
    """Least total cost over all ways to assign the smaller side whole."""
    if costs.shape[0] < costs.shape[1]:
        costs = costs.T
    rows, columns = costs.shape
    return min(
        sum(costs[row, column] for column, row in enumerate(chosen))
        for chosen in itertools.permutations(range(rows), columns)
    )


def check_one_to_one(queries, targets, shape):
    assert len(queries) == len(targets) == min(shape)
    assert len(set(queries.tolist())) == len(queries)
    assert len(set(targets.tolist())) == len(targets)


@given(
    arrays(
        np.float64,
        st.tuples(st.integers(1, 6), st.integers(1, 4)),
        elements=st.integers(-3, 3).map(float),  # few values: many ties and duplicates
    )
)
@settings(max_examples=80, deadline=None)
def test_assignment_costs_what_brute_force_finds(costs):
    ((queries, targets),) = assign([torch.tensor(costs)])
    check_one_to_one(queries, targets, costs.shape)
    found = costs[queries.numpy(), targets.numpy()].sum()
    assert found == pytest.approx(least_cost(costs))


@pytest.mark.parametrize("shape", [(6, 6), (6, 3), (2, 5)])
def test_assignment_is_the_brute_force_one_when_it_is_unique(shape):
    costs = torch.randn(shape, dtype=torch.float64)
    ((queries, targets),) = assign([costs])
    check_one_to_one(queries, targets, shape)
    assert costs[queries, targets].sum().item() == pytest.approx(least_cost(costs.numpy()))


def test_more_targets_than_queries_leaves_the_dearest_targets_out():
    ((queries, targets),) = assign([torch.tensor([[0.0, 9.0, 1.0], [9.0, 9.0, 0.0]])])
    assert dict(zip(queries.tolist(), targets.tolist(), strict=True)) == {0: 0, 1: 2}


def test_nan_costs_are_refused():
    costs = torch.zeros(3, 2)
    costs[1, 1] = math.nan
    with pytest.raises(FloatingPointError, match="1 of 6 matching costs are NaN"):
        assign([torch.zeros(1, 0), costs])


def test_infinite_costs_are_clamped_and_avoided():
    costs = torch.tensor([[math.inf, 1.0], [1.0, math.inf], [-math.inf, 0.0]])
    ((queries, targets),) = assign([costs])
    assert dict(zip(queries.tolist(), targets.tolist(), strict=True)) == {2: 0, 0: 1}
    assert MAX_COST == 1e10


def explicit_costs(logits, targets, class_logits, classes, weights, valid):
    result = np.zeros((len(logits), len(targets)))
    for q, t in itertools.product(range(len(logits)), range(len(targets))):
        bce, overlap, size, count = 0.0, 0.0, 0.0, 0.0
        for x, y, counts in zip(logits[q].tolist(), targets[t].tolist(), valid, strict=True):
            if not counts:
                continue
            p = 1 / (1 + math.exp(-x))
            bce -= y * math.log(p) + (1 - y) * math.log(1 - p)
            overlap, size, count = overlap + p * y, size + p + y, count + 1
        dice = 1 - (2 * overlap + 1) / (size + 1)
        prob = class_logits[q].softmax(dim=0)[classes[t]].item()
        result[q, t] = weights[0] * bce / count + weights[1] * dice - weights[2] * prob
    return result


@pytest.mark.parametrize("valid", [[1] * 6, [1, 0, 1, 1, 0, 1]])
def test_costs_equal_explicit_loops(valid):
    logits, class_logits = 3 * torch.randn(4, 6), torch.randn(4, 5)
    targets = torch.tensor([[1, 1, 0, 0, 1, 0], [0, 0.25, 1, 0.5, 0, 1], [0, 0, 0, 0, 0, 0]])
    classes, weights = torch.tensor([3, 0, 3]), (5.0, 4.0, 2.0)
    mask = None if all(valid) else torch.tensor(valid).float()
    found = pair_costs(logits, targets, class_logits, classes, weights, mask)
    expected = explicit_costs(logits, targets, class_logits, classes, weights, valid)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_costs_of_enormous_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4]])
    costs = pair_costs(
        logits, torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2), torch.tensor([0]), (5, 5, 2)
    )
    assert costs.isfinite().all()


def empty_target(height=4, width=4):
    return Target(
        torch.zeros(0, dtype=torch.int64),
        torch.full((height, width), 255, dtype=torch.uint8),
    )


def test_an_image_without_targets_matches_nothing(tiny_eomt):
    criterion = tiny_eomt().criterion
    (matches,) = criterion.match_layers(
        [(torch.randn(1, 5, 4, 4), torch.randn(1, 5, 4))], [empty_target()]
    )
    assert all(len(column) == 0 for column in matches)


def test_duplicate_targets_get_different_queries():
    ((queries, targets),) = assign([torch.randn(5, 1).expand(5, 2)])
    check_one_to_one(queries, targets, (5, 2))


def test_matrices_of_many_shapes_are_assigned_as_each_alone():
    costs = [torch.randn(shape) for shape in ((5, 2), (5, 0), (1, 1), (3, 4), (5, 5))]
    for matrix, (queries, targets) in zip(costs, assign(costs), strict=True):
        ((alone_queries, alone_targets),) = assign([matrix])
        assert torch.equal(queries, alone_queries) and torch.equal(targets, alone_targets)


class Spy(ArcFaceHead):
    """Remembers the targets that the class loss sees."""

    def loss_logits(self, class_logits, targets):
        self.seen = targets
        return super().loss_logits(class_logits, targets)


@pytest.mark.parametrize("has_anomaly", [False, True])
def test_unmatched_queries_are_no_object_the_last_row(tiny_eomt, has_anomaly):
    criterion = tiny_eomt(has_anomaly=has_anomaly).criterion
    head = Spy(8, 3, has_anomaly)
    target = Target(torch.tensor([0, 2]), torch.tensor([[0, 0], [2, 2]], dtype=torch.uint8))
    class_logits = torch.zeros(1, 5, head.num_rows)
    mask_logits = torch.full((1, 5, 2, 2), -5.0)
    mask_logits[0, 3, 0], mask_logits[0, 1, 1] = 5.0, 5.0
    criterion([(mask_logits, class_logits)], [target], head)
    no_object = head.num_rows - 1
    assert head.seen.tolist() == [[no_object, 2, no_object, 0, no_object]]


class Contrary(Spy):
    """Shows the loss the opposite of its logits."""

    def loss_logits(self, class_logits, targets):
        return -super().loss_logits(class_logits, targets)


def test_matching_uses_the_logits_of_inference_not_those_of_the_loss(tiny_eomt):
    criterion = tiny_eomt().criterion
    head = Contrary(8, 3)
    class_logits = torch.tensor([[[3.0, 0, 0, 0], [2.0, 0, 0, 0]]])
    target = Target(torch.tensor([0]), torch.zeros(2, 2, dtype=torch.uint8))
    criterion([(torch.zeros(1, 2, 2, 2), class_logits)], [target], head)
    assert head.seen.tolist() == [[0, 3]]
