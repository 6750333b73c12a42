"""Names of the formats, against a table of each as its files have them."""

import pytest
import torch
from format_names import TABLES, from_ours, split_fused

from anoseg_d2.checkpoint.formats import recognise, to_anoseg
from anoseg_d2.checkpoint.names import BARE_VITS, to_ours
from anoseg_d2.checkpoint.spec import ModelSpec
from anoseg_d2.modeling import EoMT
from anoseg_d2.modeling.vit import build_vit

KEYS = sorted(TABLES)


def example(side):
    name = side.format(n=12, i=2)
    return name if name and not name.endswith(".") else f"{name}weight"


@pytest.mark.parametrize("key", KEYS, ids="-".join)
def test_each_name_of_a_format_leads_to_ours(key):
    fmt, variant = key
    for row in TABLES[key]:
        assert to_ours(example(row.theirs), fmt, variant == "dinov3") == example(row.ours)


def state_of(variant):
    size = "G" if variant == "dinov2_gated" else "S"
    backbone = "dinov3" if variant == "dinov3" else "dinov2"
    vit = build_vit(size, image_size=(64, 64), backbone=backbone, depth=2, width=24, heads=3)
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter)
    return EoMT(backbone=vit, num_known=5, num_queries=6, num_blocks=2).state_dict()


@pytest.mark.parametrize("key", KEYS, ids="-".join)
def test_every_tensor_of_a_model_survives_the_round_trip(key):
    fmt, variant = key
    state = state_of(variant)
    assert ModelSpec.from_state(state, {}).swiglu == (variant == "dinov2_gated")
    if fmt in BARE_VITS:
        state = {name: tensor for name, tensor in state.items() if name.startswith("backbone.")}
    # Only transformers stores the parts of fused layers one by one.
    fused = fmt in ("anoseg", "timm_vit", "dinov2", "dinov3") or (
        fmt == "eomt_official" and variant != "dinov3"
    )
    stored = state if fused else split_fused(state, variant == "dinov2_gated")
    theirs = {from_ours(name, TABLES[key]): tensor for name, tensor in stored.items()}
    assert len(theirs) == len(stored)
    assert recognise(theirs) == fmt
    back, ignored = to_anoseg(theirs, fmt)
    assert not ignored
    if fmt == "huggingface" and variant != "dinov3":
        assert back["backbone.pos_embed"].dim() == 3
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "facts, message",
    [
        ({"heads": "six"}, "heads as 'six'"),
        ({"grid": "44"}, "grid as '44'.*list"),
        ({"class_names": "road"}, "class_names"),
        ({"adapters": {"a": {"rank": 2}}}, "adapters"),
        ({"grid": (4, 0)}, "grid"),
    ],
)
def test_metadata_of_a_wrong_type_are_named(facts, message):
    with pytest.raises(ValueError, match=message):
        ModelSpec.from_state({}, facts)


def test_blocks_that_are_missing_in_the_middle_are_noticed():
    state = {
        "backbone.patch_embed.proj.weight": torch.zeros(8, 3, 16, 16),
        "backbone.blocks.0.norm1.weight": torch.zeros(8),
        "backbone.blocks.999999999.norm1.weight": torch.zeros(8),
    }
    with pytest.raises(ValueError, match="2 ViT blocks.*999999999"):
        ModelSpec.from_state(state, {})
