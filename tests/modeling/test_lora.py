"""Adapters: identities, what trains, what they count."""

import copy
import itertools

import loralib
import pytest
import timm
import torch
from torch import nn

from anoseg_d2.modeling.lora import (
    LORA_TARGETS,
    LoRALinear,
    LoRAMergedLinear,
    draw_kept,
    inject_lora,
    lora_modules,
    lora_state_dict,
    merge_lora,
)
from anoseg_d2.modeling.vit import build_vit

SUBSETS = [
    LORA_TARGETS,
    ("q",),
    ("k", "v"),
    ("q", "v"),
    ("proj",),
    ("fc1", "fc2"),
    ("v", "proj", "fc2"),
]


def fill_b(model):
    """Give every adapter an effect."""
    with torch.no_grad():
        for _, module in lora_modules(model):
            module.lora_B.normal_(std=0.1)
    return model


def images(count=2):
    return torch.rand(count, 3, 32, 32) * 255


@pytest.mark.slow
@pytest.mark.parametrize("targets", SUBSETS)
@pytest.mark.parametrize("training", [False, True])
def test_b_zero_is_the_base_model_bit_for_bit(tiny_eomt, targets, training):
    base = tiny_eomt(masked_attention=False).train(training)
    adapted = copy.deepcopy(base)
    inject_lora(adapted.backbone, targets)
    x = images()
    for ours, theirs in zip(adapted.predict_masks(x), base.predict_masks(x), strict=True):
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("targets", SUBSETS)
def test_merged_equals_unmerged(tiny_eomt, targets):
    model = tiny_eomt().eval()
    base = copy.deepcopy(model)
    inject_lora(model.backbone, targets, rank=3, alpha=5.0)
    fill_b(model)
    merged = merge_lora(copy.deepcopy(model))
    x = images()
    unmerged_logits, merged_logits = model.predict_masks(x)[-1], merged.predict_masks(x)[-1]
    torch.testing.assert_close(merged_logits, unmerged_logits, rtol=1e-5, atol=1e-5)
    assert (merged_logits[0] - base.predict_masks(x)[-1][0]).abs().max() > 1e-3
    assert list(merged.state_dict()) == list(base.state_dict())
    assert not list(lora_modules(merged))


@pytest.mark.parametrize("enabled", list(itertools.product([True, False], repeat=3))[:-1])
def test_the_qkv_adapter_equals_that_of_loralib(enabled):
    linear = nn.Linear(12, 36)
    ours = LoRAMergedLinear(linear, 4, 8.0, 0.0, list(enabled))
    theirs = loralib.MergedLinear(
        12, 36, r=4, lora_alpha=8, enable_lora=list(enabled), merge_weights=False
    )
    nn.init.normal_(ours.lora_B)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_the_plain_adapter_equals_that_of_loralib():
    ours = LoRALinear(nn.Linear(12, 7), 4, 8.0, 0.0)
    theirs = loralib.Linear(12, 7, r=4, lora_alpha=8, merge_weights=False)
    nn.init.normal_(ours.lora_B)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def in_plain_operations(layer, x, dropout, seed):
    """W x + b + s B A dropout(x), part by part."""
    low = x
    if dropout:  # what is kept is kept as exactly as 16 random bits can say it
        low = x * draw_kept(x, dropout, seed) / (1 - round(dropout * 2**16) / 2**16)
    low = nn.functional.linear(low, layer.lora_A).chunk(len(layer.parts), dim=-1)
    result = nn.functional.linear(x, layer.weight, layer.bias)
    pieces, end = [], 0
    for columns, part, factor in zip(
        layer.parts, low, layer.lora_B.chunk(len(layer.parts)), strict=True
    ):
        added = layer.scaling * nn.functional.linear(part, factor)
        pieces += [result[..., end : columns.start], result[..., columns] + added]
        end = columns.stop
    return torch.cat([*pieces, result[..., end:]], dim=-1)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("enabled", [None, [True, True, True], [True, False, True]])
@pytest.mark.parametrize("bias", [True, False])
def test_the_lean_backward_equals_plain_autograd(enabled, dropout, bias):
    linear = nn.Linear(12, 36, bias=bias)
    if enabled is None:
        layer = LoRALinear(linear, 4, 8.0, dropout)
    else:
        layer = LoRAMergedLinear(linear, 4, 8.0, dropout, enabled)
    nn.init.normal_(layer.double().lora_B)
    x = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    trained = [x, layer.lora_A, layer.lora_B]
    weights = torch.randn(2, 5, 36)
    torch.manual_seed(5)
    found = layer(x)
    torch.manual_seed(5)
    seed = int(torch.randint(2**31, ()))
    expected = in_plain_operations(layer, x, dropout, seed)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad((found * weights).sum(), trained),
        torch.autograd.grad((expected * weights).sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_lean_layer_under_autocast_is_near_float32_and_keeps_parameter_gradients_in_float32():
    layer = LoRALinear(nn.Linear(64, 32), 4, 8.0, 0.0)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(6, 64, requires_grad=True)
    expected = torch.autograd.grad(layer(x).square().sum(), [x, layer.lora_A, layer.lora_B])
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    found = torch.autograd.grad(out.float().square().sum(), [x, layer.lora_A, layer.lora_B])
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.999


def test_dropout_thins_out_the_expected_fraction_and_keeps_the_mean():
    layer = LoRALinear(nn.Linear(20000, 1), 1, 1.0, 0.25)
    with torch.no_grad():
        layer.weight.zero_(), layer.bias.zero_()
        layer.lora_A.fill_(1 / 20000), layer.lora_B.fill_(1.0)
    # The output is the mean of dropout(1): 1 up to the spread of 20,000 draws.
    assert layer(torch.ones(1, 20000)).item() == pytest.approx(1.0, abs=4 * 0.58 / 20000**0.5)


def test_dropout_draws_every_value_independently_and_the_same_again():
    x = torch.empty(1001, 999)
    kept = draw_kept(x, 0.1, 7)
    assert torch.equal(kept, draw_kept(x, 0.1, 7)) and not torch.equal(kept, draw_kept(x, 0.1, 8))
    spread = (0.1 * 0.9 / x.numel()) ** 0.5
    assert kept.float().mean().item() == pytest.approx(0.9, abs=4 * spread)
    # Four neighbours come from one random number: no two of them know of each other.
    rows = kept.flatten()[: x.numel() // 4 * 4].view(-1, 4).float()
    assert (torch.corrcoef(rows.T) - torch.eye(4)).abs().max() < 4 / len(rows) ** 0.5


def test_each_of_q_k_v_touches_its_own_third():
    for index, target in enumerate("qkv"):
        enabled = [part == target for part in "qkv"]
        layer = LoRAMergedLinear(nn.Linear(6, 18), 2, 4.0, 0.0, enabled)
        nn.init.ones_(layer.lora_B)
        x = torch.randn(3, 6)
        change = (layer(x) - nn.functional.linear(x, layer.weight, layer.bias)).chunk(3, dim=-1)
        assert [part.abs().max() > 1e-4 for part in change] == [i == index for i in range(3)]


def test_scaling_is_alpha_over_rank():
    layer = LoRALinear(nn.Linear(6, 4), 2, 16.0, 0.0)
    nn.init.ones_(layer.lora_B)
    x = torch.randn(3, 6)
    change = layer(x) - nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(
        change, 8.0 * (x @ layer.lora_A.T).sum(-1, keepdim=True).expand(3, 4)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "size,rank,count",
    [
        ("S", 8, 663_552),
        ("B", 8, 1_327_104),
        ("B", 16, 2_654_208),
        ("L", 8, 3_538_944),
        ("G", 8, 8_847_360),
    ],
)
def test_adapters_have_the_known_number_of_parameters(size, rank, count):
    with torch.device("meta"):
        vit = build_vit(size, image_size=(64, 64))
        inject_lora(vit, rank=rank)
    assert sum(value.numel() for value in lora_state_dict(vit).values()) == count


@pytest.mark.parametrize("rank", [4, 16])
def test_a_is_gaussian_with_deviation_one_over_rank_and_b_is_zero(rank):
    layer = LoRALinear(nn.Linear(4000, 8), rank, 16.0, 0.0)
    assert layer.lora_A.std().item() == pytest.approx(1 / rank, rel=0.05)
    assert (layer.lora_B == 0).all()


def test_wrapping_keeps_weight_bias_dtype_mode_and_freezes():
    linear = nn.Linear(4, 12).double().eval()
    for layer in (
        LoRALinear(linear, 2, 4.0, 0.1),
        LoRAMergedLinear(linear, 2, 4.0, 0.1, [True, False, True]),
    ):
        assert torch.equal(layer.weight, linear.weight) and torch.equal(layer.bias, linear.bias)
        assert {p.dtype for p in layer.parameters()} == {torch.float64}
        assert not layer.training
        trains = [name for name, p in layer.named_parameters() if p.requires_grad]
        assert sorted(trains) == ["lora_A", "lora_B"]


def test_layers_without_bias_are_wrapped_too():
    linear = nn.Linear(4, 12, bias=False)
    x = torch.randn(2, 4)
    for layer in (
        LoRALinear(linear, 2, 4.0, 0.0),
        LoRAMergedLinear(linear, 2, 4.0, 0.0, [True, True, True]),
    ):
        assert layer.bias is None
        assert torch.equal(layer(x), linear(x))
        assert layer.merged_linear().bias is None


def test_targets_and_blocks_choose_the_layers(tiny_vit):
    vit = tiny_vit()
    replaced = inject_lora(vit, ("k", "fc2"), blocks=(1, 2))
    assert replaced == [
        "blocks.1.attn.qkv",
        "blocks.1.mlp.fc2",
        "blocks.2.attn.qkv",
        "blocks.2.mlp.fc2",
    ]
    assert [name for name, _ in lora_modules(vit)] == replaced
    assert type(vit.blocks[0].attn.qkv) is nn.Linear
    assert type(vit.blocks[1].attn.proj) is nn.Linear


def test_qkv_stays_plain_when_none_of_it_is_a_target(tiny_vit):
    vit = tiny_vit()
    inject_lora(vit, ("proj",))
    assert all(type(block.attn.qkv) is nn.Linear for block in vit.blocks)


def test_dropout_acts_only_in_training():
    layer = LoRALinear(nn.Linear(50, 4), 4, 8.0, 0.5)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(2, 50)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_train_and_eval_return_the_model_and_never_merge(tiny_vit):
    vit = tiny_vit()
    inject_lora(vit)
    fill_b(vit)
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    for module in (vit.blocks[0].attn.qkv, vit.blocks[0].mlp.fc1, vit):
        assert module.eval() is module
        assert module.train() is module
    vit.eval()
    for name, value in vit.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_saved_in_eval_mode_and_loaded_gives_the_same_output(tiny_eomt, tmp_path):
    model = fill_b(tiny_eomt(lora={"rank": 2})).eval()
    x = images()
    expected = model.predict_masks(x)[-1]
    torch.save(model.state_dict(), tmp_path / "model.pth")
    for mode in (True, False):
        other = tiny_eomt(lora={"rank": 2}).train(mode)
        other.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
        found = other.eval().predict_masks(x)[-1]
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_lora_state_dict_holds_only_the_adapters(tiny_eomt):
    model = tiny_eomt(lora={"rank": 2})
    names = set(lora_state_dict(model))
    assert names == {name for name in model.state_dict() if "lora_" in name}
    assert len(names) == 3 * 4 * 2


def test_one_step_moves_b_and_leaves_the_base_bit_equal(tiny_eomt, tiny_batch):
    model = tiny_eomt(lora={"rank": 2}).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    sum(model(tiny_batch()).values()).backward()
    optimizer.step()
    for name, value in model.state_dict().items():
        if name.endswith("lora_B"):
            assert not torch.equal(value, before[name]), name
        elif name.startswith("backbone."):  # A has no gradient while B is 0
            assert torch.equal(value, before[name]), name


def test_config_chooses_what_trains(tiny_cfg):
    from anoseg_d2.modeling import EoMT

    model = EoMT(tiny_cfg("MODEL.LORA.ENABLED", True, "MODEL.LORA.RANK", 2))
    for name, parameter in model.named_parameters():
        expected = "lora_" in name or not name.startswith("backbone.")
        assert parameter.requires_grad == expected, name
    norms = EoMT(tiny_cfg("MODEL.LORA.ENABLED", True, "MODEL.LORA.TRAIN_NORMS", True))
    extra = {name for name, p in norms.named_parameters() if p.requires_grad} - {
        name for name, p in model.named_parameters() if p.requires_grad
    }
    expected = {f"backbone.norm.{kind}" for kind in ("weight", "bias")}
    for block in range(3):
        for norm, kind in itertools.product(("norm1", "norm2"), ("weight", "bias")):
            expected.add(f"backbone.blocks.{block}.{norm}.{kind}")
    assert extra == expected


def test_config_reaches_rank_alpha_dropout_targets_and_blocks(tiny_cfg):
    from anoseg_d2.modeling import EoMT

    cfg = tiny_cfg("MODEL.LORA.ENABLED", True, "MODEL.LORA.RANK", 3, "MODEL.LORA.ALPHA", 12.0)
    cfg.merge_from_list(["MODEL.LORA.DROPOUT", 0.25, "MODEL.LORA.TARGETS", ["v", "fc1"]])
    cfg.merge_from_list(["MODEL.LORA.BLOCKS", [0, 1]])
    found = dict(lora_modules(EoMT(cfg).backbone))
    assert list(found) == [f"blocks.{i}.{n}" for i in (0, 1) for n in ("attn.qkv", "mlp.fc1")]
    for module in found.values():
        assert (module.r, module.scaling, module.lora_dropout.p) == (3, 4.0, 0.25)
    assert found["blocks.0.attn.qkv"].enable_lora == [False, False, True]


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3_qkvb", "beit_base_patch16_224"])
def test_adapters_act_in_attention_that_reads_the_weight_of_qkv(name):
    vit = timm.create_model(name, img_size=32, depth=1, embed_dim=48, num_heads=3, num_classes=0)
    inject_lora(vit, rank=2, dropout=0.0)
    fill_b(vit)
    vit(torch.randn(1, 3, 32, 32)).square().sum().backward()
    adapters = [p.grad for n, p in vit.named_parameters() if "lora_" in n]
    assert len(adapters) == 8 and all(grad is not None and grad.any() for grad in adapters)


def test_adapters_that_would_do_nothing_are_refused(tiny_vit):
    vit = tiny_vit()
    vit.blocks[0].attn.q_bias = torch.zeros(1)
    with pytest.raises(ValueError, match="Attention reads attn.qkv.weight itself"):
        inject_lora(vit, targets=("q",))
    inject_lora(vit, targets=("proj",))


@pytest.mark.parametrize(
    "options,words",
    [
        ({"targets": ("q", "mlp")}, ["mlp", "q, k, v, proj, fc1, fc2"]),
        ({"targets": ()}, ["q, k, v, proj, fc1, fc2"]),
        ({"rank": 0}, ["rank", "0"]),
        ({"dropout": 1.0}, ["dropout", "1.0"]),
        ({"blocks": (1, 3)}, ["[1, 3]", "0..2"]),
        ({"blocks": (2, 1)}, ["(2, 1)", "smaller first"]),
    ],
)
def test_wrong_options_are_refused_by_name(tiny_vit, options, words):
    with pytest.raises(ValueError) as error:
        inject_lora(tiny_vit(), **options)
    for word in words:
        assert word in str(error.value)


def test_a_model_without_vit_blocks_and_a_second_injection_are_refused(tiny_vit):
    with pytest.raises(ValueError, match="no timm ViT block"):
        inject_lora(nn.Sequential(nn.Linear(2, 2)))
    vit = tiny_vit()
    inject_lora(vit)
    with pytest.raises(ValueError, match="already has an adapter; call merge_lora"):
        inject_lora(vit)
