"""Reading, loading, saving and resuming, with tiny models."""

import os
import pickle
import random
import weakref
from pathlib import Path

import pytest
import timm
import torch
from fvcore.common.checkpoint import PeriodicCheckpointer
from torch.nn import functional as F

from anoseg_d2.checkpoint import (
    AnosegCheckpointer,
    build_config_overrides,
    load_adapter,
    load_into,
    model_meta,
    read_checkpoint,
    save_adapter,
)
from anoseg_d2.checkpoint.files import write_checkpoint
from anoseg_d2.checkpoint.rules import resample_position_embedding, transfer_class_rows
from anoseg_d2.modeling import EoMT
from anoseg_d2.modeling.heads import ArcFaceHead, LinearHead
from anoseg_d2.modeling.lora import inject_lora, merge_lora
from anoseg_d2.modeling.vit import build_vit


def tiny(head="linear", image_size=(64, 64), seed=0, **kwargs):
    torch.manual_seed(seed)
    vit = {"patch_size": 16, "num_registers": 4, "depth": 3}
    vit |= {key: kwargs.pop(key) for key in list(vit) if key in kwargs}
    backbone = build_vit("S", image_size=image_size, width=24, heads=3, **vit)
    kwargs = {"num_known": 5, "num_queries": 6, "num_blocks": 2, **kwargs}
    return EoMT(backbone=backbone, head=head, **kwargs).eval()


@torch.no_grad()
def outputs(model, image_size=None):
    generator = torch.Generator().manual_seed(1)
    size = image_size or model.image_size
    images = 255 * torch.rand(1, 3, *size, generator=generator)
    return model.eval().predict_masks(images)[-1]


def assert_same_outputs(a, b, atol=0.0):
    for left, right in zip(outputs(a), outputs(b), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=atol)


def adapted(seed=0, **kwargs):
    model = tiny("arcface", seed=seed, **kwargs)
    inject_lora(model.backbone, rank=2, alpha=6.0)
    model.backbone.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(True)
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def saved(model, folder, name="model_final", **kwargs):
    AnosegCheckpointer(model, str(folder), **kwargs).save(name)
    return folder / f"{name}.pth"


# ---- our own format -------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", "logit_norm", "arcface"])
def test_save_and_load_give_the_same_outputs(tmp_path, head):
    model, other = tiny(head, seed=1), tiny(head, seed=2)
    report = load_into(other, read_checkpoint(saved(model, tmp_path)))
    assert report.counts() == {"loaded": len(model.state_dict())}
    assert_same_outputs(model, other)


def test_meta_tells_what_no_tensor_does(tmp_path):
    model = tiny("arcface", (64, 96), has_anomaly=True)
    spec = read_checkpoint(saved(model, tmp_path)).spec
    expected = {"head": "arcface", "num_known": 5, "has_anomaly": True, "num_blocks": 2}
    expected |= {"heads": 3, "grid": (4, 6), "num_queries": 6, "has_adapters": False}
    assert {key: getattr(spec, key) for key in expected} == expected
    assert spec.head_options["scale"] == 30.0


def test_config_overrides_build_a_model_that_loads_without_any_transfer(tmp_path):
    from detectron2.config import get_cfg

    from anoseg_d2 import add_anoseg_config

    model = tiny("arcface", (64, 96), has_anomaly=True)
    checkpoint = read_checkpoint(saved(model, tmp_path))
    cfg = get_cfg()
    add_anoseg_config(cfg)
    cfg.merge_from_list(build_config_overrides(checkpoint))
    cfg.MODEL.DEVICE = "cpu"
    built = EoMT(cfg)
    assert set(load_into(built, checkpoint).counts()) == {"loaded"}
    assert_same_outputs(model, built)


def test_a_run_folder_stands_for_its_last_checkpoint(tmp_path):
    model = tiny(seed=3)
    saved(tiny(), tmp_path, "model_0000001")
    saved(model, tmp_path, "model_0000002")
    other = tiny(seed=9)
    load_into(other, read_checkpoint(tmp_path))
    assert_same_outputs(model, other)


def test_safetensors_hold_our_metadata_too(tmp_path):
    model = tiny("arcface", (64, 96))
    payload = {"model": model.state_dict(), "meta": model_meta(model)}
    write_checkpoint(payload, tmp_path / "weights.safetensors")
    checkpoint = read_checkpoint(tmp_path / "weights.safetensors")
    assert (checkpoint.format, checkpoint.spec.grid) == ("anoseg", (4, 6))
    other = tiny("arcface", (64, 96), seed=4)
    load_into(other, checkpoint)
    assert_same_outputs(model, other)


def test_a_newer_format_asks_for_an_update(tmp_path):
    model = tiny()
    meta = model_meta(model) | {"version": 99}
    write_checkpoint({"model": model.state_dict(), "meta": meta}, tmp_path / "new.pth")
    with pytest.raises(ValueError, match="version 99.*update"):
        read_checkpoint(tmp_path / "new.pth")


# ---- resampling -----------------------------------------------------------------------------


def test_equal_grids_keep_positions_bit_by_bit():
    embed = torch.randn(1, 24, 8)
    assert torch.equal(resample_position_embedding(embed, (4, 6), (4, 6)), embed)


def test_positions_resample_by_the_stated_grid_not_by_a_square():
    rows = torch.arange(2.0)[:, None].expand(2, 8).reshape(1, 16, 1)
    resampled = resample_position_embedding(rows, (2, 8), (2, 16))
    assert torch.allclose(resampled.reshape(2, 16), torch.tensor([[0.0], [1.0]]).expand(2, 16))


def test_smaller_grids_are_sampled_without_antialiasing():
    embed = torch.randn(1, 64, 3)
    image = embed.reshape(1, 8, 8, 3).permute(0, 3, 1, 2)
    expected = F.interpolate(image, size=(4, 4), mode="bicubic", antialias=False)
    resampled = resample_position_embedding(embed, (8, 8), (4, 4))
    torch.testing.assert_close(resampled, expected.flatten(2).transpose(1, 2))


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


# ---- bare ViTs ------------------------------------------------------------------------------


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


# ---- class heads ----------------------------------------------------------------------------


def test_the_anomaly_row_comes_before_no_object_with_the_mean_norm():
    rows = torch.randn(6, 24)
    inserted, _ = transfer_class_rows(rows, False, True, seed=3)
    assert torch.equal(inserted[:5], rows[:5]) and torch.equal(inserted[6], rows[5])
    torch.testing.assert_close(inserted[5].norm(), rows[:5].norm(dim=1).mean())
    again, other = (transfer_class_rows(rows, False, True, seed=s)[0] for s in (3, 4))
    assert torch.equal(inserted, again) and not torch.equal(inserted, other)
    assert torch.equal(transfer_class_rows(inserted, True, False)[0], rows)
    bias = torch.randn(6)
    assert transfer_class_rows(bias, False, True)[0][5] == bias[:5].mean()


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
    with pytest.raises(ValueError, match=r"5 known classes.*7 in the model.*NUM_CLASSES 5"):
        load_into(model, checkpoint)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    report = load_into(model, checkpoint, allow_unused=["class_head"])
    assert torch.equal(model.class_head.weight, before["class_head.weight"])
    assert report.names("initialised") == ["class_head.weight", "class_head.bias"]
    assert report.names("ignored") == ["class_head.weight", "class_head.bias"]


def test_another_scale_of_the_same_head_is_said(tmp_path, caplog):
    checkpoint = read_checkpoint(saved(tiny("arcface"), tmp_path))
    load_into(tiny("arcface", seed=2), checkpoint)
    assert "class head: scale" not in caplog.text
    load_into(tiny(ArcFaceHead(24, 5, scale=16.0)), checkpoint)
    assert "class head: scale was 30.0" in caplog.text


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
    with pytest.raises(ValueError, match="class_head.scale: the model has no such tensor"):
        load_into(tiny("arcface"), checkpoint)
    assert load_into(tiny(), checkpoint).names("ignored") == ["class_head.scale"]


# ---- accounting -----------------------------------------------------------------------------


def test_every_tensor_of_either_side_has_its_row(tmp_path):
    model = tiny("arcface", (64, 96), has_anomaly=True)
    checkpoint = read_checkpoint(saved(tiny(), tmp_path))
    report = load_into(model, checkpoint)
    named = [row.name for row in report.rows]
    assert set(named) == set(model.state_dict()) | set(checkpoint.state_dict)
    assert len(named) == len(set(named))
    table = report.table()
    assert "backbone.blocks.{0..2}.attn.qkv.weight" in table
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
    with pytest.raises(ValueError, match="query.weight: holds torch.int64, not floating-point"):
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


# ---- adapters -------------------------------------------------------------------------------


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


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_adapter_file_holds_what_trains_and_restores_the_outputs(tmp_path, suffix):
    model = adapted()
    save_adapter(model, tmp_path / f"adapter{suffix}")
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(read_checkpoint(tmp_path / f"adapter{suffix}").state_dict) == trainable
    other = adapted()
    for name, parameter in other.named_parameters():
        if name in trainable:
            torch.nn.init.zeros_(parameter)
    load_adapter(other, tmp_path / f"adapter{suffix}")
    assert_same_outputs(model, other)


def test_an_adapter_refuses_another_base(tmp_path):
    save_adapter(adapted(), tmp_path / "adapter.pth")
    with pytest.raises(ValueError, match="not those that this adapter was trained on"):
        load_adapter(adapted(seed=1), tmp_path / "adapter.pth")
    with pytest.raises(ValueError, match="not an adapter file .found anoseg"):
        load_adapter(adapted(), saved(adapted(), tmp_path))
    with pytest.raises(ValueError, match="no such tensor"):
        load_adapter(tiny("arcface"), tmp_path / "adapter.pth")


def test_merged_adapters_are_never_saved_as_if_they_were_not(tmp_path):
    model = adapted()
    model.backbone.blocks[0].attn.proj.merged = True
    with pytest.raises(ValueError, match="merged into the weight"):
        saved(model, tmp_path)


# ---- checkpointer ---------------------------------------------------------------------------


def optimised(seed=0, steps=2):
    model = tiny(seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 1, 3])
    for _ in range(steps):
        optimizer.zero_grad()
        sum(parameter.square().sum() for parameter in model.parameters()).backward()
        optimizer.step()
        scheduler.step()
    return model, {"optimizer": optimizer, "scheduler": scheduler}


class Trainer:
    """What detectron2 registers as `trainer`, by a weak proxy."""

    def __init__(self, iteration):
        self.iteration = iteration

    def state_dict(self):
        return {"iteration": self.iteration, "hooks": {"Best": {"metric": 0.5, "names": ("a",)}}}

    def load_state_dict(self, state):
        self.iteration = state["iteration"]


def test_resume_restores_everything_and_goes_on_identically(tmp_path):
    model, parts = optimised()
    trainer = Trainer(41)
    checkpointer = AnosegCheckpointer(model, str(tmp_path), trainer=weakref.proxy(trainer), **parts)
    PeriodicCheckpointer(checkpointer, 1).step(41)
    other, fresh = optimised(seed=5, steps=0)
    resumed = Trainer(0)
    extra = AnosegCheckpointer(
        other, str(tmp_path), trainer=weakref.proxy(resumed), **fresh
    ).resume_or_load("", resume=True)
    assert (resumed.iteration, extra) == (41, {"iteration": 41})
    for network, part in ((model, parts), (other, fresh)):
        part["optimizer"].zero_grad()
        sum(parameter.square().sum() for parameter in network.parameters()).backward()
        part["optimizer"].step()
        part["scheduler"].step()
    assert parts["scheduler"].get_last_lr() == fresh["scheduler"].get_last_lr()
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


def test_without_resume_weights_alone_are_loaded(tmp_path):
    model, parts = optimised()
    path = saved(model, tmp_path, **parts)
    other, fresh = optimised(seed=5, steps=0)
    AnosegCheckpointer(other, "", **fresh).resume_or_load(str(path), resume=True)
    assert_same_outputs(model, other)
    assert not fresh["optimizer"].state


def test_resume_refuses_a_model_that_differs(tmp_path):
    saved(tiny(), tmp_path)
    for other, message in (
        (tiny("logit_norm"), "head: linear saved, logit_norm"),
        (tiny(image_size=(64, 96)), "grid"),
        (tiny(has_anomaly=True), "has_anomaly"),
    ):
        with pytest.raises(ValueError, match=message):
            AnosegCheckpointer(other, str(tmp_path)).resume_or_load("", resume=True)


def test_resume_names_a_last_checkpoint_that_is_gone(tmp_path):
    saved(tiny(), tmp_path, "model_0000001")
    saved(tiny(), tmp_path, "model_0000002").unlink()
    with pytest.raises(FileNotFoundError, match=r"model_0000002.*\[model_0000001.pth\]"):
        AnosegCheckpointer(tiny(), str(tmp_path)).resume_or_load("", resume=True)


def test_a_save_that_fails_leaves_the_last_whole_file(tmp_path, monkeypatch):
    model = tiny()
    saved(model, tmp_path)

    def die(payload, path):
        Path(path).write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        saved(tiny(seed=3), tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_final.pth"]
    other = tiny(seed=4)
    load_into(other, read_checkpoint(tmp_path))
    assert_same_outputs(model, other)


def test_a_state_that_could_not_be_read_back_is_refused_before_writing(tmp_path):
    class Odd:
        def state_dict(self):
            return {"inner": [1, object()]}

        def load_state_dict(self, state):
            pass

    with pytest.raises(ValueError, match=r"checkpoint.odd.inner\[1\] is a builtins.object"):
        saved(tiny(), tmp_path, odd=Odd())
    assert not list(tmp_path.iterdir())


def test_save_to_disk_false_writes_nothing(tmp_path):
    saved(tiny(), tmp_path, save_to_disk=False)
    assert not list(tmp_path.iterdir())


def test_a_compiled_model_saves_plain_names(tmp_path):
    model = tiny()
    path = saved(torch.compile(model), tmp_path)
    assert set(read_checkpoint(path).state_dict) == set(model.state_dict())


# ---- broken and hostile files ---------------------------------------------------------------


class Harmful:
    """Writes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, legacy):
    trap, path = tmp_path / "trap", tmp_path / "weights.pth"
    payload = {"state_dict": tiny().state_dict(), "hyper_parameters": Harmful(trap)}
    torch.save(payload, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="refused.*convert_checkpoint.py .*--allow-pickle"):
        read_checkpoint(path)
    assert not trap.exists()
    assert read_checkpoint(path, allow_pickle=True).format == "anoseg"
    assert trap.exists()


def test_a_plain_pickle_is_refused_and_not_run(tmp_path):
    trap, path = tmp_path / "trap", tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(Harmful(trap)))
    with pytest.raises(ValueError, match=r"weights\.pkl"):
        read_checkpoint(path)
    assert not trap.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, suffix, keep):
    model, path = tiny(), tmp_path / f"weights{suffix}"
    write_checkpoint({"model": model.state_dict(), "meta": model_meta(model)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match=path.name):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "content, message",
    [
        ({}, "holds no tensor"),
        ([1, 2], "holds a list, not a state dict"),
        ({"epoch": 3}, "entry 'epoch' is a int"),
        ({"conv1.weight": torch.zeros(2)}, "fit no known format"),
        ({"backbone.norm.weight": torch.zeros(2).to_sparse()}, "not dense"),
        ({"backbone.pos_embed": torch.zeros(1).expand(1, 10**9, 9)}, "claims"),
        ({"backbone.pos_embed": torch.zeros(4)}, "3 dimensions"),
    ],
)
def test_content_that_is_no_checkpoint_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=rf"(?s)weights\.pth.*{message}"):
        read_checkpoint(tmp_path / "weights.pth")


def test_other_bytes_are_named(tmp_path):
    for seed in range(300):  # each first byte is another instruction to the unpickler
        (tmp_path / "photo.pth").write_bytes(random.Random(seed).randbytes(4096))
        with pytest.raises(ValueError, match=r"photo\.pth"):
            read_checkpoint(tmp_path / "photo.pth")
    with pytest.raises(ValueError, match=r"photo\.pth"):
        read_checkpoint(tmp_path / "photo.pth")


def test_what_is_not_there_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth does not exist; expected a file"):
        read_checkpoint(tmp_path / "nowhere.pth")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"holds no weights.*found notes\.txt"):
        read_checkpoint(tmp_path)


def test_an_offline_hub_says_what_to_download_and_where_to_put_it(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="hf download owner/name --local-dir name"):
        read_checkpoint("hf://owner/name")
    with pytest.raises(FileNotFoundError, match="timm/vit_small_patch14_reg4_dinov2.lvd142m"):
        read_checkpoint("timm://vit_small_patch14_reg4_dinov2.lvd142m")
    with pytest.raises(ValueError, match="timm has no model 'vit_unheard_of'"):
        read_checkpoint("timm://vit_unheard_of")


def test_a_gated_hub_model_says_how_to_get_access(monkeypatch):
    from huggingface_hub.errors import GatedRepoError

    from anoseg_d2.checkpoint import hub

    def refuse(**options):
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    with pytest.raises(FileNotFoundError, match="hf://facebook/vit is gated: accept its licence"):
        read_checkpoint("hf://facebook/vit")
