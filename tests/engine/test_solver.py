"""Learning rates and weight decay of every parameter, against the closed form."""

import pytest
import torch

from anoseg_d2.engine.solver import build_optimizer, build_scheduler, learning_rate_factor
from anoseg_d2.modeling import EoMT

TOTAL, A, B = 200, 20, 40  # steps, warm-up of new parameters, of the ViT
BASE, DECAY, DEPTH = 2e-4, 0.8, 3


def config(tiny_cfg, *overrides):
    cfg = tiny_cfg("SOLVER.MAX_ITER", TOTAL, "SOLVER.BASE_LR", BASE)
    cfg.merge_from_list(["SOLVER.WARMUP_NEW", A / TOTAL, "SOLVER.WARMUP_VIT", B / TOTAL])
    cfg.merge_from_list(list(overrides))
    return cfg


def new_rate(t, a=A):
    return t / a if t < a else max(0.0, 1 - (t - a) / (TOTAL - a)) ** 0.9


def vit_rate(t, a=A, b=B):
    if t < a:
        return 0.0
    if t < a + b:
        return (t - a) / b
    return max(0.0, 1 - (t - a - b) / (TOTAL - a - b)) ** 0.9


def settings_of(optimizer, model):
    """Learning rate and weight decay by parameter name; every parameter in exactly one group."""
    names = {id(p): name for name, p in model.named_parameters()}
    result = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in result
            result[name] = (group["lr"], group["weight_decay"])
    return result


def at_steps(cfg, model):
    """Settings at steps 0, a, a + b, T / 2 and T."""
    optimizer = build_optimizer(cfg, model)
    scheduler = build_scheduler(cfg, optimizer)
    found = {}
    for step in range(TOTAL + 1):
        if step in (0, 1, A, A + B, TOTAL // 2, TOTAL):
            found[step] = settings_of(optimizer, model)
        optimizer.step()
        scheduler.step()
    return found


def vit_scale(name):
    """Layer decay of METHOD's table: blocks 0.8^(N-1-i), embeddings 0.8^(N-1), final norm 1."""
    if name.startswith("backbone.blocks."):
        return DECAY ** (DEPTH - 1 - int(name.split(".")[2]))
    return 1.0 if name.startswith("backbone.norm.") else DECAY ** (DEPTH - 1)


def test_full_training_follows_the_closed_form_for_every_parameter(tiny_cfg):
    cfg = config(tiny_cfg)
    model = EoMT(cfg)
    for step, found in at_steps(cfg, model).items():
        assert set(found) == {name for name, _ in model.named_parameters()}
        for name, (rate, decay) in found.items():
            if name.startswith("backbone."):
                expected = BASE * vit_scale(name) * vit_rate(step)
            else:
                expected = BASE * new_rate(step)
            assert rate == pytest.approx(expected, rel=1e-9, abs=1e-15), (step, name)
            assert decay == 0.05, name


def test_the_groups_of_the_table_by_hand(tiny_cfg):
    cfg = config(tiny_cfg)
    found = settings_of(build_optimizer(cfg, model := EoMT(cfg)), model)
    expected = {
        "backbone.blocks.0.attn.qkv.weight": BASE * 0.64,
        "backbone.blocks.1.norm1.bias": BASE * 0.8,
        "backbone.blocks.2.ls2.gamma": BASE,
        "backbone.patch_embed.proj.weight": BASE * 0.64,
        "backbone.pos_embed": BASE * 0.64,
        "backbone.cls_token": BASE * 0.64,
        "backbone.reg_token": BASE * 0.64,
        "backbone.norm.weight": BASE,
        "query.weight": BASE,
        "class_head.weight": BASE,
        "class_head.bias": BASE,
        "mask_head.4.bias": BASE,
        "upscale.1.conv2.weight": BASE,
    }
    for name, rate in expected.items():
        assert found[name][0] == pytest.approx(rate), name


@pytest.mark.parametrize("factor", [1.0, 10.0])
def test_adapters_are_new_parameters_with_a_factor_and_without_decay(tiny_cfg, factor):
    cfg = config(tiny_cfg, "MODEL.LORA.ENABLED", True, "MODEL.LORA.LR_FACTOR", factor)
    model = EoMT(cfg)
    for step, found in at_steps(cfg, model).items():
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        assert set(found) == trainable
        for name, (rate, decay) in found.items():
            adapter = "lora_" in name
            expected = BASE * new_rate(step) * (factor if adapter else 1.0)
            assert rate == pytest.approx(expected, rel=1e-9, abs=1e-15), (step, name)
            assert decay == (0.0 if adapter else 0.05), name


def test_query_blocks_keep_the_base_rate_when_asked(tiny_cfg):
    cfg = config(tiny_cfg, "SOLVER.DECAY_QUERY_BLOCKS", False)
    found = settings_of(build_optimizer(cfg, model := EoMT(cfg)), model)
    assert found["backbone.blocks.0.norm1.weight"][0] == pytest.approx(BASE * 0.64)
    assert found["backbone.blocks.1.norm1.weight"][0] == pytest.approx(BASE)
    assert found["backbone.blocks.2.norm1.weight"][0] == pytest.approx(BASE)


@pytest.mark.parametrize("a,b", [(0, 0), (0, 10), (500, 1000), (3, 0)])
@pytest.mark.parametrize("total", [2000, 19902])
def test_factor_is_the_closed_form_for_official_and_fine_tuning_warm_ups(a, b, total):
    for t in sorted({0, a, a + 1, a + b, total // 2, total - 1, total}):
        new = t / a if t < a else (1 - (t - a) / (total - a)) ** 0.9
        assert learning_rate_factor("new", t, total, a, b) == pytest.approx(new)
        assert learning_rate_factor("lora", t, total, a, b) == pytest.approx(new)
        if t < a + b:
            vit = 0.0 if t < a else (t - a) / b
        else:
            vit = (1 - (t - a - b) / (total - a - b)) ** 0.9
        assert learning_rate_factor("vit", t, total, a, b) == pytest.approx(vit)


def test_rates_never_turn_negative_or_complex_past_the_end():
    for kind in ("new", "vit"):
        for step in (100, 101, 1000):
            assert learning_rate_factor(kind, step, 100, 10, 20) == 0


def test_warm_ups_as_long_as_the_run_do_not_divide_by_zero():
    for step in range(11):
        assert 0 <= learning_rate_factor("vit", step, 10, 5, 5) <= 1
        assert 0 <= learning_rate_factor("new", step, 10, 10, 0) <= 1


def test_official_warm_ups_come_out_of_the_default_shares(tiny_cfg):
    cfg = tiny_cfg("SOLVER.MAX_ITER", 19902)
    optimizer = build_optimizer(cfg, EoMT(cfg))
    lambdas = {
        group["kind"]: factor
        for group, factor in zip(
            optimizer.param_groups, build_scheduler(cfg, optimizer).lr_lambdas, strict=True
        )
    }
    assert lambdas["new"](249) == pytest.approx(249 / 498)
    assert lambdas["new"](498) == 1
    assert lambdas["vit"](498) == 0
    assert lambdas["vit"](498 + 995) == 1


def test_frozen_parameters_are_in_no_group_and_nothing_to_train_is_refused(tiny_cfg):
    cfg = config(tiny_cfg)
    model = EoMT(cfg)
    model.query.weight.requires_grad_(False)
    assert "query.weight" not in settings_of(build_optimizer(cfg, model), model)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="trainable"):
        build_optimizer(cfg, model)


def test_it_is_adamw_decay_does_not_enter_the_moments(tiny_cfg):
    cfg = config(tiny_cfg)
    optimizer = build_optimizer(cfg, EoMT(cfg))
    assert type(optimizer) is torch.optim.AdamW
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.999)}
