"""Class heads: margin, normalisation, and a head of the user's own."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from anoseg_d2.modeling.heads import (
    CLASS_HEADS,
    ArcFaceHead,
    LinearHead,
    LogitNormHead,
    add_angular_margin,
    build_head,
    normalize_logits,
)

WIDTH, KNOWN = 16, 4
ANOMALY, NO_OBJECT = KNOWN, KNOWN + 1
ALL_HEADS = [
    ("linear", {}),
    ("logit_norm", {}),
    ("logit_norm", {"form": "cosine"}),
    ("arcface", {}),
    ("arcface", {"learn_scale": True}),
]
MARGINS = [0.1, 0.3, 0.5, 1.0, math.pi / 2]


def arcface(**options):
    return ArcFaceHead(WIDTH, KNOWN, has_anomaly=True, **{"margin_ramp": 0.0, **options})


def at_angle(row, theta):
    """Unit vector at the angle theta (radians) from `row`."""
    row = F.normalize(row.double(), dim=-1)
    other = torch.randn(row.shape, dtype=torch.float64)
    other = F.normalize(other - (other * row).sum() * row, dim=-1)
    return math.cos(theta) * row + math.sin(theta) * other


@pytest.mark.parametrize("name,options", ALL_HEADS)
@pytest.mark.parametrize("has_anomaly", [False, True])
def test_logits_are_float32_whatever_the_features(name, options, has_anomaly):
    head = CLASS_HEADS[name](WIDTH, KNOWN, has_anomaly, **options)
    features = torch.randn(2, 3, WIDTH)
    expected = head(features)
    assert expected.shape == (2, 3, KNOWN + 1 + has_anomaly)
    with torch.autocast("cpu", torch.bfloat16):
        inside = head(features)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name,options", ALL_HEADS)
def test_training_and_evaluation_share_rows_scale_and_normalisation(name, options):
    head = CLASS_HEADS[name](WIDTH, KNOWN, True, **options)
    features = torch.randn(2, 3, WIDTH)
    rows = head.weight
    trained = head.train()(features)
    evaluated = head.eval()(features)
    assert head.weight is rows
    torch.testing.assert_close(trained, evaluated, rtol=0, atol=0)


def test_margin_zero_is_scaled_cosine_softmax():
    head = arcface(margin=0.0)
    features = torch.randn(7, WIDTH)
    targets = torch.tensor([0, 1, 2, 3, ANOMALY, NO_OBJECT, 2])
    logits = head.loss_logits(head(features), targets)
    cosine = F.cosine_similarity(features[:, None], head.weight[None], dim=-1)
    expected = F.cross_entropy(30 * cosine, targets)
    torch.testing.assert_close(F.cross_entropy(logits, targets), expected, rtol=1e-5, atol=1e-5)


def test_vanishing_margin_tends_to_margin_zero():
    features, targets = torch.randn(7, WIDTH), torch.randint(KNOWN, (7,))
    head = arcface(margin=1e-6)
    logits = head(features)
    torch.testing.assert_close(head.loss_logits(logits, targets), logits, rtol=0, atol=1e-3)


@pytest.mark.parametrize("margin", MARGINS)
def test_margin_lowers_the_target_logit_and_no_other(margin):
    head = arcface(margin=margin)
    logits = head(torch.randn(200, WIDTH))
    targets = torch.randint(KNOWN, (200,))
    changed = head.loss_logits(logits, targets)
    own = F.one_hot(targets, NO_OBJECT + 1).bool()
    assert (changed[own] < logits[own]).all()
    assert torch.equal(changed[~own], logits[~own])


@pytest.mark.parametrize("margin", MARGINS)
def test_margin_adds_to_the_angle(margin):
    theta = torch.linspace(0.01, math.pi - margin - 0.01, 500, dtype=torch.float64)
    expected = (theta + margin).cos()
    found = add_angular_margin(theta.cos().float(), margin)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("margin", MARGINS)
def test_beyond_pi_minus_margin_the_linear_continuation_takes_over(margin):
    theta = torch.linspace(math.pi - margin + 0.01, math.pi - 0.01, 100, dtype=torch.float64)
    expected = theta.cos() - margin * math.sin(margin)
    found = add_angular_margin(theta.cos().float(), margin)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("margin", MARGINS)
def test_margin_logit_falls_with_the_angle_on_all_of_zero_to_pi(margin):
    theta = torch.linspace(0, math.pi, 4001, dtype=torch.float64)
    steps = add_angular_margin(theta.cos().float(), margin).diff()
    assert (steps <= 0).all()
    inner = (theta[:-1] > 0.02) & (theta[1:] < math.pi - 0.02)
    assert (steps[inner] < 0).all()


@given(margin=st.floats(0, math.pi / 2), first=st.floats(0, math.pi), second=st.floats(0, math.pi))
@settings(max_examples=50, deadline=None)
def test_a_larger_angle_never_has_a_larger_logit(margin, first, second):
    low, high = sorted((first, second))
    cosines = torch.tensor([math.cos(low), math.cos(high)])
    near, far = add_angular_margin(cosines, margin)
    assert far <= near


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("theta", [0.0, math.pi, math.pi - 0.5])
def test_gradients_are_finite_at_the_ends_of_the_angle(dtype, theta):
    head = arcface(margin=0.5).to(dtype)
    features = at_angle(head.weight[1].detach(), theta).to(dtype)[None].requires_grad_()
    target = torch.tensor([1])
    loss = F.cross_entropy(head.loss_logits(head(features), target), target)
    loss.backward()
    assert loss.isfinite()
    assert features.grad.isfinite().all() and head.weight.grad.isfinite().all()
    assert head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("target", [ANOMALY, NO_OBJECT])
def test_no_margin_on_the_anomaly_row_nor_on_no_object(target):
    head = arcface(margin=0.5)
    logits = head(torch.randn(9, WIDTH))
    assert torch.equal(head.loss_logits(logits, torch.full((9,), target)), logits)


def test_unmatched_queries_have_the_gradient_of_plain_softmax():
    head = arcface(margin=0.5)
    features = torch.randn(1, 6, WIDTH)
    targets = torch.tensor([[0, NO_OBJECT, 3, NO_OBJECT, ANOMALY, NO_OBJECT]])

    def gradient(with_margin):
        inputs = features.clone().requires_grad_()
        logits = head(inputs)
        logits = head.loss_logits(logits, targets) if with_margin else logits
        F.cross_entropy(logits[0], targets[0], reduction="sum").backward()
        return inputs.grad[0]

    plain, margin = gradient(False), gradient(True)
    same = targets[0] >= ANOMALY
    torch.testing.assert_close(margin[same], plain[same], rtol=0, atol=0)
    assert (margin[~same] - plain[~same]).abs().amax(dim=1).min() > 1e-3


def test_without_the_anomaly_class_row_k_is_no_object_and_has_no_margin():
    head = ArcFaceHead(WIDTH, KNOWN, has_anomaly=False, margin=0.5)
    logits = head(torch.randn(5, WIDTH))
    assert torch.equal(head.loss_logits(logits, torch.full((5,), KNOWN)), logits)


@pytest.mark.parametrize("progress,share", [(0, 0), (0.05, 0.5), (0.1, 1), (0.7, 1), (1, 1)])
def test_margin_ramps_over_its_share_of_the_run(progress, share):
    head = arcface(margin=0.4, margin_ramp=0.1)
    head.set_progress(progress)
    assert head.current_margin() == pytest.approx(0.4 * share)
    without = arcface(margin=0.4, margin_ramp=0.0)
    without.set_progress(progress)
    assert without.current_margin() == 0.4


def test_learned_scale_is_a_parameter_with_the_true_gradient():
    head = arcface(learn_scale=True, scale=20.0)
    features, targets = torch.randn(8, WIDTH), torch.randint(KNOWN, (8,))

    def loss(scale):
        with torch.no_grad():
            head.scale.fill_(scale)
        return F.cross_entropy(head.loss_logits(head(features), targets), targets)

    slope = (loss(20.5).item() - loss(19.5).item()) / 1.0
    loss(20.0).backward()
    assert head.scale.grad.item() == pytest.approx(slope, rel=1e-2)
    assert "scale" not in dict(arcface().named_parameters())


def test_arcface_has_no_bias_and_ignores_the_length_of_features_and_rows():
    head = arcface()
    assert [name for name, _ in head.named_parameters()] == ["weight"]
    features = torch.randn(5, WIDTH)
    before = head(features)
    with torch.no_grad():
        head.weight *= 3
    torch.testing.assert_close(head(7 * features), before, rtol=1e-5, atol=1e-5)
    assert before.abs().max() <= 30 * (1 + 1e-6)


@given(st.integers(0, 1000), st.floats(0.01, 1000))
@settings(max_examples=50, deadline=None)
def test_logit_norm_is_invariant_to_the_scale_of_the_logits(seed, factor):
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)) + 0.1
    expected = normalize_logits(logits, 0.04)
    torch.testing.assert_close(normalize_logits(factor * logits, 0.04), expected, rtol=1e-4, atol=0)


def test_logit_norm_has_norm_one_over_tau_over_all_rows():
    head = LogitNormHead(WIDTH, KNOWN, True, tau=0.05)
    norms = head(torch.randn(3, 7, WIDTH)).norm(dim=-1)
    torch.testing.assert_close(norms, torch.full_like(norms, 20.0), rtol=1e-5, atol=0)


def test_logit_norm_gradient_as_finite_differences():
    logits = torch.randn(6, dtype=torch.float64)
    target, tau, step = 2, 0.5, 1e-6

    def loss(z):
        scaled = z / (tau * (np.linalg.norm(z) + 1e-7))
        return np.log(np.exp(scaled).sum()) - scaled[target]

    numeric = [
        (loss(logits.numpy() + step * e) - loss(logits.numpy() - step * e)) / (2 * step)
        for e in np.eye(6)
    ]
    inputs = logits.float().requires_grad_()
    F.cross_entropy(normalize_logits(inputs, tau)[None], torch.tensor([target])).backward()
    np.testing.assert_allclose(inputs.grad.numpy(), numeric, rtol=1e-4, atol=1e-6)


def test_logit_norm_of_zero_logits_has_a_finite_gradient():
    inputs = torch.zeros(1, 5, requires_grad=True)
    F.cross_entropy(normalize_logits(inputs, 0.04), torch.tensor([1])).backward()
    assert inputs.grad.isfinite().all()


def test_raw_and_trained_inference_differ_by_one_positive_factor_per_query():
    head = LogitNormHead(WIDTH, KNOWN, True, inference="raw")
    features = torch.randn(2, 5, WIDTH)
    trained, raw = head.train()(features), head.eval()(features)
    ratio = raw / trained
    assert (ratio > 0).all()
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio), rtol=1e-4, atol=0)
    torch.testing.assert_close(raw, F.linear(features, head.weight, head.bias))
    assert ratio[..., 0].std() > 0


def test_cosine_form_is_cosine_over_tau_without_bias():
    head = LogitNormHead(WIDTH, KNOWN, True, form="cosine", tau=0.1)
    features = torch.randn(3, WIDTH)
    cosine = F.cosine_similarity(features[:, None], head.weight[None], dim=-1)
    torch.testing.assert_close(head(features), cosine / 0.1, rtol=1e-5, atol=1e-5)
    assert not head.bias.requires_grad


@pytest.mark.parametrize("name,options", ALL_HEADS)
def test_every_trainable_parameter_of_a_head_receives_a_gradient(name, options):
    head = CLASS_HEADS[name](WIDTH, KNOWN, True, **options)
    head.set_progress(1.0)
    targets = torch.randint(NO_OBJECT + 1, (9,))
    F.cross_entropy(head.loss_logits(head(torch.randn(9, WIDTH)), targets), targets).backward()
    for name, parameter in head.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize("name,options", ALL_HEADS)
def test_zero_features_give_finite_logits_and_gradients(name, options):
    head = CLASS_HEADS[name](WIDTH, KNOWN, True, **options)
    features = torch.zeros(2, WIDTH, requires_grad=True)
    head(features).sum().backward()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize(
    "build,words",
    [
        (lambda: arcface(margin=2.0), ["margin", "2.0", "1.57"]),
        (lambda: arcface(margin=-0.1), ["margin", "-0.1"]),
        (lambda: arcface(scale=0.0), ["scale", "0.0"]),
        (lambda: LogitNormHead(WIDTH, KNOWN, tau=0.0), ["tau", "0.0"]),
        (lambda: LogitNormHead(WIDTH, KNOWN, form="l2"), ["form", "l2", "cosine"]),
        (lambda: LogitNormHead(WIDTH, KNOWN, inference="no"), ["inference", "no", "raw"]),
        (lambda: CLASS_HEADS["arcfase"], ["arcfase", "linear", "logit_norm", "arcface"]),
        (lambda: CLASS_HEADS.register("linear")(LinearHead), ["linear", "already"]),
    ],
)
def test_wrong_choices_name_key_value_and_what_is_allowed(build, words):
    with pytest.raises(ValueError) as error:
        build()
    for word in words:
        assert word in str(error.value)


def test_config_reaches_every_option_of_a_head(tiny_cfg):
    cfg = tiny_cfg("MODEL.HEAD.NAME", "arcface", "MODEL.HEAD.ARCFACE.SCALE", 12.0)
    cfg.merge_from_list(["MODEL.HEAD.ARCFACE.MARGIN", 0.3, "MODEL.HEAD.ARCFACE.MARGIN_RAMP", 0.2])
    head = build_head(cfg, WIDTH, KNOWN, True)
    assert vars(head.options) == {
        "scale": 12.0,
        "learn_scale": False,
        "margin": 0.3,
        "margin_ramp": 0.2,
    }
    cfg = tiny_cfg("MODEL.HEAD.NAME", "logit_norm", "MODEL.HEAD.LOGIT_NORM.TAU", 0.2)
    cfg.merge_from_list(["MODEL.HEAD.LOGIT_NORM.FORM", "cosine"])
    cfg.merge_from_list(["MODEL.HEAD.LOGIT_NORM.INFERENCE", "raw"])
    head = build_head(cfg, WIDTH, KNOWN, True)
    assert vars(head.options) == {"tau": 0.2, "form": "cosine", "inference": "raw"}
