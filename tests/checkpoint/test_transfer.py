"""Loading into models that differ: crop, patch, head, classes, adapters."""

import os
from pathlib import Path

import pytest
import timm
import torch
from checkpoint_models import adapted, assert_same_outputs, outputs, saved, tiny
from torch.nn import functional as F

from anoseg_d2.checkpoint import build_config_overrides, load_into, read_checkpoint
from anoseg_d2.checkpoint.rules import resample_position_embedding
from anoseg_d2.modeling import EoMT
from anoseg_d2.modeling.heads import ArcFaceHead, LinearHead
from anoseg_d2.modeling.lora import inject_lora, merge_lora
from anoseg_d2.modeling.vit import build_vit


def test_another_crop_resamples_positions_alone(tmp_path):
    model, other = tiny(), tiny(image_size=(64, 128), seed=5)
    report = load_into(other, read_checkpoint(saved(model, tmp_path)))
    assert report.names("resampled") == ["backbone.pos_embed"]
    expected = resample_position_embedding(model.backbone.pos_embed, (4, 4), (4, 8))
    assert torch.equal(other.backbone.pos_embed, expected)
    assert len(report.names("loaded")) == len(model.state_dict()) - 1


def test_a_rectangle_of_unknown_grid_is_asked_for(tmp_path):
    torch.save(tiny(image_size=(32, 96)).state_dict(), tmp_path / "bare.pth")
    checkpoint = read_checkpoint(tmp_path / "bare.pth")
    with pytest.raises(ValueError, match="12 rows fit no known grid"):
        load_into(tiny(), checkpoint)
    checkpoint.spec.grid, checkpoint.spec.pos_prefix = (2, 6), 0
    assert load_into(tiny(), checkpoint).names("resampled") == ["backbone.pos_embed"]


def bare_vit(**kwargs):
    torch.manual_seed(7)
    model = timm.create_model(
        kwargs.pop("name", "vit_small_patch14_dinov2"),
        num_classes=0,
        depth=3,
        embed_dim=24,
        num_heads=3,
        **kwargs,
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_a_class_row_is_folded_so_that_features_stay_equal(tmp_path):
    vit = bare_vit(img_size=56)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    model = tiny(image_size=(56, 56), patch_size=14, num_registers=0)
    report = load_into(model, read_checkpoint(tmp_path / "vit.pth"))
    assert set(report.names("transferred")) == {"backbone.cls_token", "backbone.pos_embed"}
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected, features = vit.forward_features(images), model.backbone.forward_features(images)
    torch.testing.assert_close(features, expected)


def test_dinov2_without_registers_goes_to_patch_16_with_registers(tmp_path):
    vit = bare_vit(img_size=56)
    torch.save({name: t.half() for name, t in vit.state_dict().items()}, tmp_path / "vit.pth")
    model = tiny(image_size=(64, 96), seed=8)
    fresh = model.backbone.reg_token.clone()
    report = load_into(model, read_checkpoint(tmp_path / "vit.pth"))
    assert set(report.names("resampled")) == {
        "backbone.pos_embed",
        "backbone.patch_embed.proj.weight",
    }
    heads = ("query", "class_head", "mask_head", "upscale")
    initialised = {name for name in model.state_dict() if name.startswith(heads)}
    assert set(report.names("initialised")) == initialised | {"backbone.reg_token"}
    assert torch.equal(model.backbone.reg_token, fresh)
    assert "float16 to float32" in report.table()


def test_the_dinov2_authors_file_equals_timms_own_conversion(tmp_path):
    vit = bare_vit(name="vit_small_patch14_reg4_dinov2", img_size=56)
    official = dict(vit.state_dict())
    official["register_tokens"] = official.pop("reg_token")
    official["mask_token"] = torch.zeros(1, 24)
    row = torch.randn(1, 1, 24)
    official["cls_token"] = official["cls_token"] - row
    official["pos_embed"] = torch.cat([row, official["pos_embed"]], dim=1)
    torch.save(official, tmp_path / "dinov2.pth")
    checkpoint = read_checkpoint(tmp_path / "dinov2.pth")
    model = tiny(image_size=(56, 56), patch_size=14)
    load_into(model, checkpoint)
    assert checkpoint.format == "dinov2"
    for name, tensor in vit.state_dict().items():
        torch.testing.assert_close(model.backbone.state_dict()[name], tensor)


def test_the_classifier_of_a_pretrained_vit_is_left_out_with_the_reason(tmp_path):
    state = {**bare_vit(img_size=56).state_dict(), "head.weight": torch.zeros(10, 24)}
    torch.save({"model": state}, tmp_path / "vit.pth")
    model = tiny(image_size=(56, 56), patch_size=14, num_registers=0)
    report = load_into(model, read_checkpoint(tmp_path / "vit.pth"))
    assert report.names("ignored") == ["head.weight"]
    assert "classifier of the pre-training" in report.table()


def test_the_real_vit_s_loads_completely():
    root = Path(os.environ.get("ANOSEG_DATA", Path(__file__).parents[3] / "shared" / "data"))
    path = root / "weights" / "dinov2_vits14_fp16.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is absent; set ANOSEG_DATA")
    checkpoint = read_checkpoint(path)
    sizes = {"width": 384, "depth": 12, "patch_size": 14, "grid": (37, 37), "pos_prefix": 1}
    assert {key: getattr(checkpoint.spec, key) for key in sizes} == sizes
    assert build_config_overrides(checkpoint)[:2] == ["MODEL.EOMT.SIZE", "S"]
    model = EoMT(backbone=build_vit("S", image_size=(96, 128)), num_blocks=3)
    report = load_into(model, checkpoint)
    left = [n for n in report.names("initialised") if n.startswith("backbone.")]
    assert left == ["backbone.reg_token"]
    assert not report.names("ignored")


def test_19_to_20_classes_keeps_the_logits_of_the_others(tmp_path):
    model, wider = tiny(), tiny(has_anomaly=True, seed=2)
    report = load_into(wider, read_checkpoint(saved(model, tmp_path)))
    assert report.names("inserted") == ["class_head.weight", "class_head.bias"]
    (masks, logits), (wide_masks, wide_logits) = outputs(model), outputs(wider)
    torch.testing.assert_close(wide_masks, masks)
    torch.testing.assert_close(wide_logits[..., [0, 1, 2, 3, 4, 6]], logits)
    narrow = tiny(seed=3)
    load_into(narrow, read_checkpoint(saved(wider, tmp_path)))
    assert_same_outputs(model, narrow)


def test_linear_to_arcface_keeps_directions_and_drops_the_bias(tmp_path):
    model, arcface = tiny(), tiny("arcface", has_anomaly=True, seed=2)
    report = load_into(arcface, read_checkpoint(saved(model, tmp_path)))
    assert report.names("ignored") == ["class_head.bias"]
    old, new = model.class_head.weight, arcface.class_head.weight
    torch.testing.assert_close(F.normalize(new[[0, 1, 2, 3, 4, 6]]), F.normalize(old))


@pytest.mark.parametrize("head", ["linear", "logit_norm"])
def test_arcface_to_a_head_with_bias_keeps_directions(tmp_path, head):
    arcface, model = tiny("arcface"), tiny(head, seed=2)
    report = load_into(model, read_checkpoint(saved(arcface, tmp_path)))
    rows = (F.normalize(head.class_head.weight) for head in (arcface, model))
    torch.testing.assert_close(*rows)
    assert not model.class_head.bias.any()
    assert "class_head.bias" in report.names("converted")


def test_another_class_list_is_refused_unless_the_head_may_start_anew(tmp_path):
    checkpoint = read_checkpoint(saved(tiny(), tmp_path))
    model = tiny(num_known=7, seed=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="5 known classes.*7.*NUM_CLASSES 5"):
        load_into(model, checkpoint)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    report = load_into(model, checkpoint, allow_unused=["class_head"])
    assert torch.equal(model.class_head.weight, before["class_head.weight"])
    assert report.names("initialised") == ["class_head.weight", "class_head.bias"]
    assert report.names("ignored") == ["class_head.weight", "class_head.bias"]


def test_a_head_of_ones_own_loads_by_name(tmp_path):
    class Doubled(LinearHead):
        pass

    model, other = tiny(Doubled(24, 5)), tiny(Doubled(24, 5), seed=2)
    load_into(other, read_checkpoint(saved(model, tmp_path)))
    assert_same_outputs(model, other)


def test_a_learned_scale_is_kept_and_never_dropped_unseen(tmp_path):
    model = tiny(ArcFaceHead(24, 5, learn_scale=True, scale=12.0))
    checkpoint = read_checkpoint(saved(model, tmp_path))
    other = tiny(ArcFaceHead(24, 5, learn_scale=True))
    load_into(other, checkpoint)
    assert other.class_head.scale.item() == 12.0
    with pytest.raises(ValueError, match="class_head.scale.*no such"):
        load_into(tiny("arcface"), checkpoint)
    assert load_into(tiny(), checkpoint).names("ignored") == ["class_head.scale"]


def test_every_tensor_of_either_side_has_its_row(tmp_path):
    model = tiny("arcface", (64, 96), has_anomaly=True)
    checkpoint = read_checkpoint(saved(tiny(), tmp_path))
    report = load_into(model, checkpoint)
    named = [row.name for row in report.rows]
    assert set(named) == set(model.state_dict()) | set(checkpoint.state_dict)
    assert len(named) == len(set(named))
    table = report.table()
    assert "backbone.blocks.*.attn.qkv.weight" in table
    assert "1x16x24 -> 1x24x24" in table
    assert len(table.splitlines()) < 40


@pytest.mark.parametrize(
    "change, message",
    [
        ({"extra.weight": torch.zeros(3)}, "extra.weight: the model has no such tensor"),
        ({"backbone.norm.bias": None}, "backbone.norm.bias: missing in the checkpoint"),
        ({"query.weight": torch.zeros(9, 24)}, r"\(9, 24\) in the checkpoint.*NUM_QUERIES"),
        ({"query.weight": torch.full((6, 24), float("nan"))}, "NaN or infinite"),
    ],
)
def test_what_fits_no_rule_is_an_error_and_changes_nothing(tmp_path, change, message):
    checkpoint, model = read_checkpoint(saved(tiny(), tmp_path)), tiny(seed=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, tensor in change.items():
        if tensor is None:
            del checkpoint.state_dict[name]
        else:
            checkpoint.state_dict[name] = tensor
    with pytest.raises(ValueError, match=message):
        load_into(model, checkpoint)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_integers_are_no_weights(tmp_path):
    checkpoint = read_checkpoint(saved(tiny(), tmp_path))
    checkpoint.state_dict["query.weight"] = torch.ones(6, 24, dtype=torch.int64)
    with pytest.raises(ValueError, match="query.weight.*holds torch.int64"):
        load_into(tiny(), checkpoint)


def test_leftovers_may_be_allowed_by_name_prefix_or_glob(tmp_path):
    checkpoint = read_checkpoint(saved(tiny(), tmp_path))
    checkpoint.state_dict |= {"aux.a": torch.zeros(1), "aux.b": torch.zeros(1)}
    with pytest.raises(ValueError, match="aux"):
        load_into(tiny(), checkpoint, allow_unused=["au", "aux.a"])
    for allowed in (["aux"], ["aux.a", "aux.b"], ["aux.*"]):
        assert load_into(tiny(), checkpoint, allow_unused=allowed).names("ignored") == [
            "aux.a",
            "aux.b",
        ]


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"num_blocks": 3}, "num_blocks: .*last 2 blocks.*NUM_BLOCKS 2"),
        ({"pixel_mean": (0.0, 0.0, 0.0)}, "pixel_mean.*MODEL.PIXEL_MEAN"),
        ({"depth": 4}, "blocks.3.*missing"),
        ({"depth": 2, "num_blocks": 2}, "blocks.2.*no such tensor"),
    ],
)
def test_differences_that_would_go_unnoticed_are_errors(tmp_path, kwargs, message):
    checkpoint = read_checkpoint(saved(tiny(), tmp_path))
    with pytest.raises(ValueError, match=message):
        load_into(tiny(seed=1, **kwargs), checkpoint)


def test_a_full_checkpoint_enters_an_adapted_model_and_changes_nothing_else(tmp_path):
    model = tiny("arcface")
    other = tiny("arcface", seed=2)
    inject_lora(other.backbone, rank=2)
    report = load_into(other, read_checkpoint(saved(model, tmp_path)))
    assert all(".lora_" in name for name in report.names("initialised"))
    assert_same_outputs(model, other)


def test_an_adapted_checkpoint_reloads_as_it_is_and_merges_into_a_plain_model(tmp_path):
    model = adapted()
    checkpoint = read_checkpoint(saved(model, tmp_path))
    same, plain = adapted(seed=2), tiny("arcface", seed=3)
    assert set(load_into(same, checkpoint).counts()) == {"loaded"}
    assert_same_outputs(model, same)
    report = load_into(plain, checkpoint)
    assert len(report.names("merged")) == 3 * 4 * 3
    assert_same_outputs(model, plain, atol=1e-5)
    assert_same_outputs(merge_lora(model), plain, atol=1e-6)


def test_adapters_of_blocks_that_the_model_leaves_plain_are_merged_alone(tmp_path):
    model, partly = adapted(), tiny("arcface", seed=2)
    inject_lora(partly.backbone, rank=2, alpha=6.0, blocks=(1, 2))
    report = load_into(partly, read_checkpoint(saved(model, tmp_path)))
    assert all("blocks.0." in name for name in report.names("merged"))
    assert_same_outputs(model, partly, atol=1e-5)


def test_another_alpha_or_rank_is_refused(tmp_path):
    checkpoint = read_checkpoint(saved(adapted(), tmp_path))
    for rank, alpha, message in ((2, 8.0, "alpha / rank = 3 in"), (4, 12.0, "MODEL.LORA.RANK")):
        model = tiny("arcface")
        inject_lora(model.backbone, rank=rank, alpha=alpha)
        with pytest.raises(ValueError, match=message):
            load_into(model, checkpoint)
