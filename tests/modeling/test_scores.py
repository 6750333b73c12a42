"""Score formulas by hand on 2 x 2 pixels, and what holds for all of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anoseg_d2.modeling.scores import (
    LINEAR_MAPS,
    SCORES,
    anomaly_scores,
    available_scores,
    combine_masks,
    is_implicit,
    known_distribution,
    linear_coefficients,
    register_score,
    scores_from_maps,
)

KNOWN = 2
NAMES = [
    "msp",
    "max_logit",
    "max_logit_raw",
    "energy",
    "entropy",
    "rba",
    "rba_sum",
    "anomaly",
    "uno",
]

# Two queries on 2 x 2 pixels; rows: road, car, anomaly, no-object.
CLASS_LOGITS = torch.tensor([[[2.0, 0.5, -1.0, 1.0], [-1.0, 0.0, 3.0, 0.5]]])
MASK_LOGITS = torch.tensor([[[[4.0, -4.0], [0.0, 1.0]], [[-3.0, 3.0], [0.0, -6.0]]]])


def softmax(values):
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def by_hand(name, masks):
    """A score at one pixel from the sigmoid masks of both queries, with scalars only."""
    logits = CLASS_LOGITS[0].tolist()
    probs = [softmax(row) for row in logits]
    pairs = list(zip(masks, probs, logits, strict=True))
    p = [sum(m * pr[c] for m, pr, _ in pairs) for c in range(KNOWN)]
    gap = [sum(m * max(lo[c] - lo[3], 0) for m, _, lo in pairs) for c in range(KNOWN)]
    raw = [sum(m * lo[c] for m, _, lo in pairs) for c in range(KNOWN)]
    total = sum(p)
    pi = [value / max(total, 1) + max(0, 1 - total) / KNOWN for value in p]
    return {
        "msp": 1 - max(p),
        "max_logit": -max(gap),
        "max_logit_raw": -max(raw),
        "energy": -math.log(sum(math.exp(value) for value in gap)),
        "entropy": -sum(value * math.log(value) for value in pi) / math.log(KNOWN),
        "rba": -sum(math.tanh(value) for value in p),
        "rba_sum": 1 - total,
        "anomaly": sum(m * pr[2] for m, pr, _ in pairs),
        "uno": sum(m * (pr[2] - max(pr[0], pr[1])) for m, pr, _ in pairs),
    }[name]


@pytest.mark.parametrize("name", NAMES)
def test_formula_by_hand_on_two_by_two_pixels(name):
    found = anomaly_scores(CLASS_LOGITS, MASK_LOGITS, KNOWN, [name])[name]
    assert found.shape == (1, 2, 2) and found.dtype == torch.float32
    for y in range(2):
        for x in range(2):
            masks = [sigmoid(MASK_LOGITS[0, q, y, x].item()) for q in range(2)]
            assert found[0, y, x].item() == pytest.approx(by_hand(name, masks), abs=1e-5)


def test_every_registered_score_is_checked_by_hand():
    # No functions of masks: test_memory.py and test_ratio.py check them.
    assert list(SCORES) == [*NAMES, "memory", "ratio", "odds", "joint"]


def sure(row, rows=4, strength=60.0):
    logits = torch.zeros(1, 1, rows)
    logits[0, 0, row] = strength
    return logits


ON, OFF = torch.full((1, 1, 1, 1), 60.0), torch.full((1, 1, 1, 1), -60.0)


@pytest.mark.parametrize(
    "name,claimed,unclaimed",
    [("msp", 0, 1), ("entropy", 0, 1), ("rba", -math.tanh(1), 0), ("rba_sum", 0, 1)],
)
def test_scores_of_a_confident_known_mask_and_of_a_pixel_that_nobody_claims(
    name, claimed, unclaimed
):
    for masks, expected in ((ON, claimed), (OFF, unclaimed)):
        found = anomaly_scores(sure(0), masks, KNOWN, [name])[name].item()
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_claimed_anomaly_scores_above_a_claimed_known_pixel(name):
    anomaly = anomaly_scores(sure(2), ON, KNOWN, [name])[name].item()
    known = anomaly_scores(sure(0), ON, KNOWN, [name])[name].item()
    assert anomaly > known + 0.5


@pytest.mark.parametrize("name", ["msp", "entropy", "rba", "rba_sum", "max_logit", "energy"])
def test_a_claim_of_no_object_is_no_claim(name):
    no_object = anomaly_scores(sure(3), ON, KNOWN, [name])[name].item()
    unclaimed = anomaly_scores(sure(0), OFF, KNOWN, [name])[name].item()
    assert no_object == pytest.approx(unclaimed, abs=1e-5)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "max_logit_raw"])
def test_a_constant_on_the_logits_of_a_query_changes_nothing(name):
    shift = torch.tensor([[[5.0], [-3.0]]])
    expected = anomaly_scores(CLASS_LOGITS, MASK_LOGITS, KNOWN, [name])[name]
    found = anomaly_scores(CLASS_LOGITS + shift, MASK_LOGITS, KNOWN, [name])[name]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_raw_paper_form_does_move_with_that_constant():
    name = "max_logit_raw"
    expected = anomaly_scores(CLASS_LOGITS, MASK_LOGITS, KNOWN, [name])[name]
    found = anomaly_scores(CLASS_LOGITS + 5, MASK_LOGITS, KNOWN, [name])[name]
    assert (found - expected).abs().max() > 1


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_known_distribution_is_a_distribution_and_entropy_is_in_0_to_1(seed):
    generator = torch.Generator().manual_seed(seed)
    probs = 2 * torch.rand(1, 5, 3, 3, generator=generator) ** 4
    pi = known_distribution(probs)
    assert (pi >= 0).all()
    torch.testing.assert_close(pi.sum(dim=1), torch.ones(1, 3, 3), rtol=0, atol=1e-5)
    entropy = scores_from_maps({"probs": probs}, 5, ["entropy"])["entropy"]
    assert (entropy >= -1e-6).all() and (entropy <= 1 + 1e-6).all()


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_queries_in_any_order_give_the_same_scores(seed):
    generator = torch.Generator().manual_seed(seed)
    class_logits = 3 * torch.randn(1, 4, KNOWN + 2, generator=generator)
    mask_logits = 3 * torch.randn(1, 4, 2, 2, generator=generator)
    order = torch.randperm(4, generator=generator)
    expected = anomaly_scores(class_logits, mask_logits, KNOWN)
    found = anomaly_scores(class_logits[:, order], mask_logits[:, order], KNOWN)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_scores_of_half_precision_predictions_are_computed_in_float32():
    half = anomaly_scores(CLASS_LOGITS.bfloat16(), MASK_LOGITS.bfloat16(), KNOWN)
    exact = anomaly_scores(CLASS_LOGITS, MASK_LOGITS, KNOWN)  # these inputs are exact in bf16
    for name, value in half.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name], rtol=0, atol=0)


def test_merging_maps_first_is_not_merging_scores():
    maps = {"probs": torch.tensor([[[[0.0, 2.0]], [[0.0, 0.0]]]])}
    merged = {"probs": maps["probs"].mean(dim=-1, keepdim=True)}
    formula = scores_from_maps(merged, KNOWN, ["rba"])["rba"].item()
    assert formula == pytest.approx(-math.tanh(1.0))
    assert formula < scores_from_maps(maps, KNOWN, ["rba"])["rba"].mean().item() - 0.1


def test_without_the_anomaly_class_its_scores_are_left_out_and_refused_by_name():
    class_logits = CLASS_LOGITS[..., [0, 1, 3]]
    found = anomaly_scores(class_logits, MASK_LOGITS, KNOWN)
    assert list(found) == [name for name in NAMES if name not in ("anomaly", "uno")]
    with pytest.raises(ValueError, match="'uno' needs .*ANOMALY_CLASS"):
        anomaly_scores(class_logits, MASK_LOGITS, KNOWN, ["uno"])


def test_wrong_rows_and_unknown_scores_are_refused():
    with pytest.raises(ValueError, match="4 rows; 5 known classes need 6 .* or 7"):
        anomaly_scores(CLASS_LOGITS, MASK_LOGITS, 5)
    with pytest.raises(ValueError, match="unknown.*'maxlogit'.*max_logit"):
        available_scores(True, ["maxlogit"])
    with pytest.raises(ValueError, match="unknown linear map 'prob'"):
        register_score("new", maps=("prob",))(None)


def test_a_user_registers_a_score_of_their_own():
    try:

        @register_score("second_best")
        def second_best(maps, num_known):
            return -maps["probs"][:, :num_known].topk(2, dim=1).values[:, 1]

        found = anomaly_scores(CLASS_LOGITS, MASK_LOGITS, KNOWN)
        assert (found["second_best"] >= found["rba_sum"] - 1).all()
        assert "second_best" in available_scores(False)
        with pytest.raises(ValueError, match="already registered"):
            register_score("second_best")(second_best)
    finally:
        SCORES.remove("second_best")


def test_asked_scores_compute_their_own_maps_only():
    found = linear_coefficients(CLASS_LOGITS, KNOWN, ["energy", "max_logit"])
    assert set(found) == {"probs", "logit_gap"}
    assert found["probs"].shape == (1, 2, KNOWN + 1)
    assert set(LINEAR_MAPS) >= set(found)


def test_combined_masks_are_a_sum_over_queries():
    coefficients = torch.randn(2, 3, 4)
    masks = torch.randn(2, 3, 2, 5)
    expected = sum(
        coefficients[:, q, :, None, None] * masks[:, q, None].sigmoid() for q in range(3)
    )
    torch.testing.assert_close(combine_masks(coefficients, masks), expected)


def test_an_ensemble_is_the_mean_of_the_z_scores_of_its_parts():
    parts = anomaly_scores(CLASS_LOGITS, MASK_LOGITS, KNOWN, ["rba", "anomaly"])
    statistics = {"rba": (-0.7, 0.2), "anomaly": (0.1, 0.05)}
    name = "rba+anomaly"
    found = anomaly_scores(CLASS_LOGITS, MASK_LOGITS, KNOWN, [name], statistics=statistics)
    expected = ((parts["rba"] + 0.7) / 0.2 + (parts["anomaly"] - 0.1) / 0.05) / 2
    assert list(found) == [name]
    torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name,message",
    [
        ("rba+anomaly", "'rba.anomaly' needs mean and spread of anomaly"),
        ("rba+maxlogit", "unknown score 'maxlogit'"),
    ],
)
def test_an_ensemble_without_statistics_or_with_unknown_parts_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        anomaly_scores(CLASS_LOGITS, MASK_LOGITS, KNOWN, [name], statistics={"rba": (0.0, 1.0)})


def test_every_score_states_its_formula_its_range_and_where_it_is_from():
    for name, score in SCORES.items():
        text = score.formula.__doc__ or ""
        assert "Range:" in text, name
        assert "arXiv" in text or "paper" in text or "trained by" in text or "See `" in text, name


def test_scores_that_read_the_learned_class_are_not_implicit_even_inside_an_ensemble():
    assert [name for name in SCORES if not is_implicit(name)] == [
        *("anomaly", "uno", "ratio", "odds", "joint"),
    ]
    assert is_implicit("rba+msp")
    assert not is_implicit("rba+anomaly")
    with pytest.raises(ValueError, match="unknown score 'rbaa'"):
        is_implicit("rba+rbaa")


def test_a_score_of_patch_tokens_is_offered_only_by_a_model_that_has_its_map():
    assert "memory" not in available_scores(True)
    assert "memory" in available_scores(False, patch_maps=["memory"])
    with pytest.raises(ValueError, match="'memory'.*anoseg memory"):
        available_scores(False, ["rba+memory"])


def test_scores_are_the_same_within_a_callers_autocast():
    class_logits, mask_logits = torch.randn(1, 9, KNOWN + 2), torch.randn(1, 9, 20, 30)
    expected = anomaly_scores(class_logits, mask_logits, KNOWN)
    with torch.autocast("cpu", torch.bfloat16):
        found = anomaly_scores(class_logits, mask_logits, KNOWN)
    assert list(found) == list(expected) and "anomaly" in found
    for name, score in expected.items():
        assert torch.equal(found[name], score), name
