"""Key names and sizes of the formats, on made-up dictionaries."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loralib import MergedLinear

from anoseg_d2.checkpoint.adapters import merge_lora_state
from anoseg_d2.checkpoint.formats import clean_names, recognise, to_anoseg
from anoseg_d2.checkpoint.metadata import weights_hash
from anoseg_d2.checkpoint.rules import fold_position_prefix
from anoseg_d2.checkpoint.spec import ModelSpec

C = 8


def official_state(num_blocks=3):
    """An official-style dictionary, with the prefixes that training leaves on it."""
    backbone = {
        "cls_token": torch.randn(1, 1, C),
        "reg_token": torch.randn(1, 4, C),
        "pos_embed": torch.randn(1, 16, C),
        "patch_embed.proj.weight": torch.randn(C, 3, 16, 16),
        "blocks.0.attn.qkv.weight": torch.randn(3 * C, C),
    }
    state = {f"network._orig_mod.encoder.backbone.{k}": v for k, v in backbone.items()}
    state["network._orig_mod.encoder.pixel_mean"] = torch.tensor([0.485, 0.456, 0.406])
    state["network._orig_mod.q.weight"] = torch.randn(5, C)
    state["network._orig_mod.class_head.weight"] = torch.randn(20, C)
    state["network._orig_mod.class_head.bias"] = torch.randn(20)
    state["network._orig_mod.attn_mask_probs"] = torch.zeros(num_blocks)
    state["criterion.empty_weight"] = torch.ones(20)
    state["metrics.0.confmat"] = torch.zeros(19, 19)
    return state


def test_official_names_lose_their_prefixes_and_keep_every_weight():
    state = clean_names(official_state())
    assert recognise(state) == "eomt_official"
    ours, ignored = to_anoseg(state, "eomt_official")
    assert sorted(ours) == [
        "backbone.blocks.0.attn.qkv.weight",
        "backbone.cls_token",
        "backbone.patch_embed.proj.weight",
        "backbone.pos_embed",
        "backbone.reg_token",
        "class_head.bias",
        "class_head.weight",
        "query.weight",
    ]
    assert {name for name, _ in ignored} == {
        "attn_mask_probs",
        "criterion.empty_weight",
        "encoder.pixel_mean",
        "metrics.0.confmat",
    }
    assert len(ours) + len(ignored) == len(official_state())


def test_every_timm_name_of_dinov2_survives():
    model = timm.create_model(
        "vit_small_patch14_reg4_dinov2", img_size=56, depth=2, embed_dim=12, num_heads=2
    )
    state = model.state_dict()
    assert recognise(state) == "timm_vit"
    ours, ignored = to_anoseg(state, "timm_vit")
    assert {f"backbone.{name}" for name in state if not name.startswith("head")} == set(ours)
    assert all(name.startswith("head") for name, _ in ignored)


def test_names_of_the_dinov2_authors_become_timm_names():
    state = {
        "register_tokens": torch.zeros(1, 4, C),
        "mask_token": torch.zeros(1, C),
        "patch_embed.proj.weight": torch.zeros(C, 3, 14, 14),
        "blocks.0.mlp.w12.weight": torch.zeros(4 * C, C),
        "blocks.0.mlp.w3.weight": torch.zeros(C, 2 * C),
    }
    assert recognise(state) == "dinov2"
    ours, ignored = to_anoseg(state, "dinov2")
    assert set(ours) == {
        "backbone.reg_token",
        "backbone.patch_embed.proj.weight",
        "backbone.blocks.0.mlp.fc1.weight",
        "backbone.blocks.0.mlp.fc2.weight",
    }
    assert ignored == [("mask_token", "only used in pre-training")]


@pytest.mark.parametrize("gate, down", [("weights_in", "weights_out"), (None, "down_proj")])
def test_both_swiglu_layouts_of_hugging_face_become_one(gate, down):
    first, second, last = torch.randn(6, C), torch.randn(6, C), torch.randn(C, 6)
    state = {f"layers.0.mlp.{down}.weight": last}
    if gate:
        state[f"layers.0.mlp.{gate}.weight"] = torch.cat([first, second])
    else:
        state["layers.0.mlp.gate_proj.weight"] = first
        state["layers.0.mlp.up_proj.weight"] = second
    ours, _ = to_anoseg(state, "huggingface")
    assert torch.equal(ours["backbone.blocks.0.mlp.fc1.weight"], torch.cat([first, second]))
    assert torch.equal(ours["backbone.blocks.0.mlp.fc2.weight"], last)


def test_a_lone_third_of_qkv_is_refused():
    state = {"layers.0.attention.q_proj.weight": torch.zeros(C, C)}
    with pytest.raises(ValueError, match="k_proj"):
        to_anoseg(state, "huggingface")


def test_unknown_names_are_refused_and_shown():
    with pytest.raises(ValueError, match=r"fit no known format.*conv1\.weight"):
        recognise(["conv1.weight", "fc.bias"])


def test_two_tensors_under_one_name_are_refused():
    with pytest.raises(ValueError, match="both named q.weight"):
        clean_names({"network.q.weight": 1, "q.weight": 2})


@pytest.mark.parametrize(
    "rows, registers, hints, grid, prefix",
    [
        (16, 4, {}, (4, 4), 0),
        (17, 0, {}, (4, 4), 1),
        (21, 4, {}, (4, 4), 5),
        (24, 4, {"grid": (4, 6)}, (4, 6), 0),
        (25, 0, {"grid": (4, 6)}, (4, 6), 1),
        (23, 0, {}, None, None),
        (16, 0, {"grid": (2, 8)}, (2, 8), 0),
    ],
)
def test_the_grid_of_positions_is_found(rows, registers, hints, grid, prefix):
    state = {"backbone.pos_embed": torch.zeros(1, rows, C)}
    if registers:
        state["backbone.reg_token"] = torch.zeros(1, registers, C)
    spec = ModelSpec.from_state(state, hints)
    assert (spec.grid, spec.pos_prefix) == (grid, prefix)


def test_sizes_are_read_off_the_weights():
    state, _ = to_anoseg(clean_names(official_state()), "eomt_official")
    spec = ModelSpec.from_state(state, {"has_anomaly": False, "num_blocks": 3, "head": "linear"})
    expected = {
        "width": C,
        "depth": 1,
        "patch_size": 16,
        "num_registers": 4,
        "num_queries": 5,
        "num_rows": 20,
        "num_known": 19,
        "has_bias": True,
        "grid": (4, 4),
        "image_size": (64, 64),
        "has_adapters": False,
    }
    assert {key: getattr(spec, key) for key in expected} == expected


def test_a_tensor_with_too_few_dimensions_is_refused():
    with pytest.raises(ValueError, match="pos_embed must have 3 dimensions"):
        ModelSpec.from_state({"backbone.pos_embed": torch.zeros(7)}, {})


def test_folding_keeps_the_sum_of_token_and_position():
    state = {
        "backbone.pos_embed": torch.randn(1, 9 + 5, C),
        "backbone.cls_token": torch.randn(1, 1, C),
        "backbone.reg_token": torch.randn(1, 4, C),
    }
    folded = fold_position_prefix(state, 5)
    tokens = torch.cat([state["backbone.cls_token"], state["backbone.reg_token"]], dim=1)
    new = torch.cat([folded["backbone.cls_token"], folded["backbone.reg_token"]], dim=1)
    assert torch.equal(new, tokens + state["backbone.pos_embed"][:, :5])
    assert torch.equal(folded["backbone.pos_embed"], state["backbone.pos_embed"][:, 5:])
    assert fold_position_prefix(state, 0) == {}
    with pytest.raises(ValueError, match="3 rows before its patches"):
        fold_position_prefix(state, 3)


@settings(deadline=None, max_examples=40)
@given(
    enable=st.lists(st.booleans(), min_size=1, max_size=4).filter(any),
    rank=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_the_lora_update_equals_loralib(enable, rank, seed):
    torch.manual_seed(seed)
    layer = MergedLinear(5, 6 * len(enable), r=rank, lora_alpha=7, enable_lora=enable)
    torch.nn.init.normal_(layer.lora_B)
    expected = layer.weight + layer.merge_AB() * layer.scaling
    state = {f"a.{name}": tensor.detach() for name, tensor in layer.named_parameters()}
    found = merge_lora_state(state, {"a": {"rank": rank, "alpha": 7.0, "enable": enable}})
    torch.testing.assert_close(found["a.weight"], expected.detach())


def test_adapters_that_do_not_fit_are_refused():
    shapes = {"weight": (18, 5), "lora_A": (4, 5), "lora_B": (12, 2)}
    state = {f"a.{name}": torch.zeros(shape) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match="do not fit"):
        merge_lora_state(state, {"a": {"rank": 2, "alpha": 1.0, "enable": [True, True, True]}})


def test_merging_without_alpha_is_refused():
    state = {"a.weight": torch.zeros(2, 2), "a.lora_A": torch.zeros(1, 2)}
    with pytest.raises(ValueError, match="no alpha"):
        merge_lora_state(state, {})


def test_the_hash_sees_every_bit_and_name_but_not_the_order():
    state = {"a": torch.zeros(3), "b": torch.ones(2, dtype=torch.bfloat16)}
    same = {"b": state["b"].clone(), "a": state["a"].clone()}
    assert weights_hash(state) == weights_hash(same)
    changed = [
        {"a": state["a"], "c": state["b"]},
        {"a": state["a"].reshape(3, 1), "b": state["b"]},
        {"a": state["a"].double(), "b": state["b"]},
        {"a": torch.tensor([0.0, 0.0, 1e-45]), "b": state["b"]},
        {"a": state["a"]},
    ]
    assert len({weights_hash(other) for other in [state, *changed]}) == 6
