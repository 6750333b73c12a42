"""DINOv3 and EoMT on it, as timm, its authors, transformers and EoMT's authors write them."""

import pytest
import timm
import torch
import transformers
from checkpoint_models import to_official

from anoseg_d2 import AnomalyPredictor
from anoseg_d2.checkpoint import (
    AnosegCheckpointer,
    build_config_overrides,
    load_into,
    read_checkpoint,
)
from anoseg_d2.commands import convert
from anoseg_d2.modeling import EoMT
from anoseg_d2.modeling.lora import inject_lora
from anoseg_d2.modeling.vit import build_vit

DEPTH, WIDTH, HEADS = 3, 48, 3
PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def model(backbone="dinov3", seed=0, image_size=(64, 64), lora=False, width=WIDTH, **options):
    torch.manual_seed(seed)
    sizes = {"depth": DEPTH, "width": width, "heads": 6 if width == 384 else HEADS}
    vit = build_vit("S", image_size=image_size, backbone=backbone, **sizes)
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if lora:
        inject_lora(vit, rank=2)
        for name, parameter in vit.named_parameters():
            parameter.requires_grad_("lora_" in name)
    options = {"num_known": 5, "num_queries": 6, "num_blocks": 2, **options}
    return EoMT(backbone=vit, **options).eval()


@torch.no_grad()
def logits(eomt):
    images = eomt.pixel_mean + eomt.pixel_std * PIXELS
    return torch.cat([part.flatten() for part in eomt.predict_masks(images)[-1]])


@torch.no_grad()
def vit_features(eomt):
    """Patch features of the ViT without any query."""
    vit = eomt.backbone
    x, rope = eomt._add_positions(vit.patch_embed(PIXELS))
    for block in vit.blocks:
        block.attn.num_prefix_tokens = vit.num_prefix_tokens
        x = block(x, rope=rope)
    return vit.norm(x)


def meta_names(state):
    """A ViT of ours under the names of DINOv3's authors, with the key bias that they mask."""
    named = {"mask_token": torch.zeros(1, 1), "rope_embed.periods": torch.ones(4)}
    for name, tensor in state.items():
        name = name.removeprefix("backbone.").replace("reg_token", "storage_tokens")
        if name.endswith("q_bias"):
            stem = name.removesuffix("q_bias")
            value = state[f"backbone.{stem}v_bias"]
            named[f"{stem}qkv.bias"] = torch.cat([tensor, torch.full_like(tensor, 7.0), value])
            named[f"{stem}qkv.bias_mask"] = torch.zeros(3 * len(tensor))
        elif not name.endswith("v_bias"):
            named[name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")] = tensor
    return named


# ---- the ViT alone --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_transformers_vit_gives_its_features(tmp_path):
    torch.manual_seed(1)
    config = transformers.DINOv3ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        num_register_tokens=4,
    )
    theirs = transformers.DINOv3ViTModel(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    ours = model()
    report = load_into(ours, read_checkpoint(tmp_path))
    with torch.no_grad():
        expected = theirs(pixel_values=PIXELS).last_hidden_state
    torch.testing.assert_close(vit_features(ours), expected, rtol=1e-4, atol=1e-4)
    assert set(report.names("ignored")) == {"embeddings.mask_token"}


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb"])
def test_a_timm_vit_loads_with_its_biases_or_with_zeros(tmp_path, name):
    torch.manual_seed(1)
    theirs = timm.create_model(name, depth=DEPTH, embed_dim=WIDTH, num_heads=HEADS, num_classes=0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    ours = model()
    load_into(ours, read_checkpoint(tmp_path / "vit.pth"))
    with torch.no_grad():
        expected = theirs.eval().forward_features(PIXELS)
    torch.testing.assert_close(vit_features(ours), expected, rtol=1e-4, atol=1e-4)


def test_the_authors_own_names_load_and_their_masked_key_bias_is_left_out(tmp_path):
    source, ours = model(seed=1), model()
    vit = {n: t for n, t in source.state_dict().items() if n.startswith("backbone.")}
    torch.save(meta_names(vit), tmp_path / "dinov3_vits16.pth")
    checkpoint = read_checkpoint(tmp_path / "dinov3_vits16.pth")
    assert checkpoint.format == "dinov3"
    load_into(ours, checkpoint)
    assert torch.equal(vit_features(ours), vit_features(source))


@pytest.mark.parametrize("ours, theirs", [("dinov2", "dinov3"), ("dinov3", "dinov2")])
def test_the_other_backbone_is_refused_in_one_line(tmp_path, ours, theirs):
    vit = {n: t for n, t in model(theirs).state_dict().items() if n.startswith("backbone.")}
    torch.save({n.removeprefix("backbone."): t for n, t in vit.items()}, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=f"set MODEL.EOMT.BACKBONE {theirs}") as caught:
        load_into(model(ours), read_checkpoint(tmp_path / "vit.pth"))
    assert "\n" not in str(caught.value)


def test_vits_with_swiglu_are_refused_by_name(tmp_path):
    vit = timm.create_model("vit_small_plus_patch16_dinov3", depth=1, embed_dim=48, num_heads=3)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(ValueError, match="DINOv3.*SwiGLU"):
        read_checkpoint(tmp_path / "vit.pth")


# ---- EoMT on it -----------------------------------------------------------------------------


def hugging_face_folder(folder, image_size=64):
    torch.manual_seed(1)
    config = transformers.EomtDinov3Config(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        image_size=image_size,
        num_blocks=2,
        num_queries=6,
        id2label=dict(enumerate(["road", "pavement", "car", "person", "sky"])),
        layer_norm_eps=1e-3,
    )
    theirs = transformers.EomtDinov3ForUniversalSegmentation(config).eval()
    for name, parameter in theirs.named_parameters():
        if not name.startswith("upscale"):
            torch.nn.init.normal_(parameter, std=0.2)
    theirs.attn_mask_probs.zero_()
    theirs.save_pretrained(folder)
    return theirs


@torch.no_grad()
def their_logits(theirs):
    result = theirs(pixel_values=PIXELS)
    parts = (result.masks_queries_logits, result.class_queries_logits)
    return torch.cat([part.flatten() for part in parts])


def test_a_hugging_face_folder_becomes_a_predictor_in_one_call(tmp_path):
    theirs = hugging_face_folder(tmp_path)
    predictor = AnomalyPredictor.from_pretrained(str(tmp_path))
    assert predictor.model.backbone.norm.eps == 1e-3
    assert predictor.model.image_size == (64, 64)
    torch.testing.assert_close(logits(predictor.model), their_logits(theirs), rtol=0, atol=1e-4)
    image = torch.randint(256, (80, 100, 3), dtype=torch.uint8).numpy()
    assert predictor(image)["scores"]["rba"].shape == (80, 100)


def test_another_norm_eps_is_not_passed_over(tmp_path):
    hugging_face_folder(tmp_path)
    with pytest.raises(ValueError, match="set MODEL.EOMT.NORM_EPS 0.001"):
        load_into(model(), read_checkpoint(tmp_path))


def test_a_checkpoint_of_ours_comes_back_with_adapters_and_without(tmp_path):
    source = model(seed=2, lora=True)
    for name, parameter in source.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    AnosegCheckpointer(source, str(tmp_path)).save("model")
    predictor = AnomalyPredictor.from_pretrained(str(tmp_path / "model.pth"))
    torch.testing.assert_close(logits(predictor.model), logits(source), rtol=1e-4, atol=1e-4)
    same = model(seed=3, lora=True)
    load_into(same, read_checkpoint(tmp_path / "model.pth"))
    assert torch.equal(logits(same), logits(source))


def official_delta(folder, width=WIDTH):
    """A released delta of EoMT's authors, its base, and the model that they make together."""
    whole, base = model(seed=2, width=width), model(seed=3, width=width)
    AnosegCheckpointer(whole, str(folder)).save("whole")
    state = to_official(read_checkpoint(folder / "whole.pth"))
    AnosegCheckpointer(base, str(folder)).save("base")
    for name, tensor in to_official(read_checkpoint(folder / "base.pth")).items():
        if name.startswith("network.encoder."):
            state[name] = state[name] - tensor
    torch.save(state, folder / "pytorch_model.bin")
    vit = {n: t for n, t in base.state_dict().items() if n.startswith("backbone.")}
    torch.save(meta_names(vit), folder / "dinov3_vits16.pth")
    return whole


def test_official_names_are_those_of_the_released_files(tmp_path):
    official_delta(tmp_path)
    names = set(torch.load(tmp_path / "pytorch_model.bin", weights_only=True))
    block = "network.encoder.backbone.blocks.0."
    assert {n.removeprefix(block) for n in names if n.startswith(block)} == {
        f"{part}.{kind}"
        for part in ("norm1", "norm2", "attention.q_proj", "attention.v_proj", "attention.o_proj")
        for kind in ("weight", "bias")
    } | {"attention.k_proj.weight", "layer_scale1.lambda1", "layer_scale2.lambda1"} | {
        f"mlp.{part}_proj.{kind}" for part in ("up", "down") for kind in ("weight", "bias")
    }
    stem = "network.encoder.backbone.patch_embed."
    assert {n.removeprefix(stem) for n in names if n.startswith(stem)} == {
        "cls_token",
        "register_tokens",
        "patch_embeddings.weight",
        "patch_embeddings.bias",
    }


def test_a_released_delta_and_its_base_give_the_whole_model(tmp_path):
    whole = official_delta(tmp_path)
    source, base = tmp_path / "pytorch_model.bin", tmp_path / "dinov3_vits16.pth"
    arguments = ["--to", "anoseg", "--output", str(tmp_path / "eomt.safetensors")]
    arguments += ["--delta-base", str(base), "--num-heads", "3", "--image-size", "64", "64"]
    assert not convert.main([str(source), *arguments])
    predictor = AnomalyPredictor.from_pretrained(str(tmp_path / "eomt.safetensors"))
    assert predictor.model.image_size == (64, 64)
    torch.testing.assert_close(logits(predictor.model), logits(whole), rtol=1e-4, atol=1e-4)


def test_a_file_without_its_crop_says_so(tmp_path, caplog):
    official_delta(tmp_path)
    checkpoint = read_checkpoint(tmp_path / "pytorch_model.bin")
    checkpoint.spec.heads = 3
    assert "INPUT.CROP_SIZE" not in build_config_overrides(checkpoint)
    assert "set INPUT.CROP_SIZE" in caplog.text


def test_a_delta_alone_warns(tmp_path, caplog):
    official_delta(tmp_path)
    checkpoint = read_checkpoint(tmp_path / "pytorch_model.bin")
    for name in checkpoint.state_dict:
        if name.startswith("backbone."):
            checkpoint.state_dict[name] *= 0.001
    load_into(model(), checkpoint)
    assert "name them in MODEL.DELTA_BASE" in caplog.text


@pytest.mark.slow
def test_a_delta_becomes_a_predictor_in_one_call(tmp_path):
    whole = official_delta(tmp_path, width=384)  # a width that tells the heads
    overrides = ["MODEL.DELTA_BASE", str(tmp_path / "dinov3_vits16.pth")]
    source = str(tmp_path / "pytorch_model.bin")
    predictor = AnomalyPredictor.from_pretrained(source, [*overrides, "INPUT.CROP_SIZE", (64, 64)])
    expected = logits(whole)
    error = (logits(predictor.model) - expected).abs().max() / expected.abs().max()
    assert error < 1e-5


def test_the_base_is_not_added_to_a_model_of_ours(tmp_path):
    AnosegCheckpointer(model(), str(tmp_path)).save("model")
    overrides = ["MODEL.DELTA_BASE", str(tmp_path / "model.pth")]
    with pytest.raises(ValueError, match=r"model\.pth.*saved.*MODEL\.DELTA_BASE"):
        AnomalyPredictor.from_pretrained(str(tmp_path / "model.pth"), overrides)


@pytest.mark.parametrize("size", [(32, 96), (64, 64)])
def test_weights_fit_every_crop(tmp_path, size):
    source, target = model(seed=2), model(image_size=size)
    AnosegCheckpointer(source, str(tmp_path)).save("model")
    report = load_into(target, read_checkpoint(tmp_path / "model.pth"))
    assert not report.names("resampled")
    assert target.predict_masks(torch.zeros(1, 3, *size))[-1][0].isfinite().all()
