"""Adapter files and their base."""

import numpy as np
import pytest
import torch
from checkpoint_models import adapted, assert_same_outputs, save_adapter, saved, tiny
from PIL import Image
from safetensors.torch import save_file

from anoseg_d2.checkpoint import load_into, read_checkpoint
from anoseg_d2.checkpoint.adapters import adapter_payload, join_adapter
from anoseg_d2.checkpoint.files import write_checkpoint
from anoseg_d2.commands import convert, memory
from anoseg_d2.modeling.lora import inject_lora
from anoseg_d2.modeling.vit import build_vit
from anoseg_d2.prediction.predictor import AnomalyPredictor


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_adapter_file_holds_what_trains_and_is_whole_with_its_base(tmp_path, suffix):
    model = adapted()
    path = tmp_path / f"adapter{suffix}"
    save_adapter(model, path)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(read_checkpoint(path).state_dict) == trainable
    base = adapted()
    for name, parameter in base.named_parameters():
        if name in trainable:
            torch.nn.init.zeros_(parameter)
    whole = join_adapter(read_checkpoint(path), read_checkpoint(saved(base, tmp_path)))
    other = adapted(seed=3)
    load_into(other, whole)
    assert_same_outputs(model, other)


def test_an_adapter_refuses_another_base(tmp_path):
    save_adapter(adapted(), tmp_path / "adapter.pth")
    adapter = read_checkpoint(tmp_path / "adapter.pth")
    with pytest.raises(ValueError, match="hash"):
        join_adapter(adapter, read_checkpoint(saved(adapted(seed=1), tmp_path)))
    with pytest.raises(ValueError, match="--base"):
        join_adapter(adapter, None)


def test_an_adapter_file_alone_is_no_model(tmp_path):
    save_adapter(adapted(), tmp_path / "adapter.pth")
    with pytest.raises(ValueError, match="only adapters.*--base"):
        load_into(tiny("arcface"), read_checkpoint(tmp_path / "adapter.pth"))


def test_merged_adapters_are_never_saved_as_if_they_were_not(tmp_path):
    model = adapted()
    model.backbone.blocks[0].attn.proj.merged = True
    with pytest.raises(ValueError, match="merged into the weight"):
        saved(model, tmp_path)


@pytest.fixture
def stage(tmp_path):
    """Checkpoint of a LoRA stage on a bare ViT of another patch and grid, and that ViT's file."""
    torch.manual_seed(0)
    size = {"image_size": (70, 70), "patch_size": 14, "num_registers": 0}
    vit = build_vit("S", **size, depth=3, width=24, heads=3)
    state = {name: tensor.detach() for name, tensor in vit.state_dict().items()}
    # As published: a position for the class token too.
    state["pos_embed"] = torch.cat([torch.randn(1, 1, 24), state["pos_embed"]], dim=1)
    save_file(state, tmp_path / "vit.safetensors")
    model = tiny("arcface", num_registers=0)
    inject_lora(model.backbone, rank=2, alpha=4.0, blocks=(1, 2))
    load_into(model, read_checkpoint(tmp_path / "vit.safetensors"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or not name.startswith("backbone."))
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return saved(model.eval(), tmp_path), tmp_path / "vit.safetensors"


def photographs(folder):
    folder.mkdir()
    for index, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3))):
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("blocks", [["1"], ["1", "2", "3"]])  # adapters are in 2 and 3
def test_a_stage_on_a_bare_vit_is_stored_without_it(stage, tmp_path, monkeypatch, blocks):
    whole, vit = stage
    with_memory = tmp_path / "with_memory.pth"
    photos = photographs(tmp_path / "photos")
    how = ["--blocks", *blocks, "--images", str(photos), "--output", str(with_memory)]
    assert memory.main([str(whole), *how]) == 0
    # Over a memory that reads other blocks, and on a named device, adapters stay adapters as well.
    again = tmp_path / "again.pth"
    how = ["--images", str(photos), "--output", str(again), "--blocks", "1", "--device", "cpu"]
    assert memory.main([str(with_memory), *how]) == 0
    found = AnomalyPredictor.from_pretrained(again).model.patch_maps["memory"]
    assert found.sources == (0,) and read_checkpoint(again).spec.adapters
    small = tmp_path / "small.safetensors"
    how = ["--to", "adapter", "--base", str(vit), "--output", str(small)]
    assert convert.main([str(with_memory), *how]) == 0
    names = set(read_checkpoint(small).state_dict)
    assert "patch_maps.memory.rows" in names and "backbone.blocks.2.attn.qkv.lora_A" in names
    assert not any(n.startswith("backbone.") and "lora" not in n for n in names)
    assert not any("plain" in n for n in names)
    joined = join_adapter(read_checkpoint(small), read_checkpoint(vit))
    ours = AnomalyPredictor.from_pretrained(joined)
    theirs = AnomalyPredictor.from_pretrained(with_memory)
    assert_same_outputs(ours.model, theirs.model, atol=1e-5)
    found, expected = (p(photos / "0.png")["scores"]["memory"] for p in (ours, theirs))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # Biases and norms may be of an earlier stage, so they are stored where they differ.
    other = read_checkpoint(vit)
    other.state_dict["backbone.blocks.0.mlp.fc1.bias"] += 1
    whole_state, whole_meta = read_checkpoint(whole).state_dict, read_checkpoint(whole).meta
    payload = adapter_payload(whole_state, whole_meta, other)
    kept = [n for n in payload["model"] if n.startswith("backbone.") and "lora" not in n]
    assert kept == ["backbone.blocks.0.mlp.fc1.bias"] and kept[0] not in payload["meta"]["frozen"]
    write_checkpoint(payload, tmp_path / "biased.pth")
    joined = join_adapter(read_checkpoint(tmp_path / "biased.pth"), other)
    assert torch.equal(joined.state_dict[kept[0]], whole_state[kept[0]])
    with pytest.raises(ValueError, match="not what the stage froze: backbone"):
        other = read_checkpoint(vit)
        other.state_dict["backbone.blocks.0.mlp.fc1.weight"] += 1
        adapter_payload(read_checkpoint(whole).state_dict, read_checkpoint(whole).meta, other)
    with pytest.raises(ValueError, match="hash"):
        join_adapter(read_checkpoint(small), other)
    other.state_dict["backbone.blocks.0.mlp.fc1.weight"] = torch.zeros(30, 2)
    with pytest.raises(ValueError, match="not what the stage froze: backbone"):
        adapter_payload(read_checkpoint(whole).state_dict, read_checkpoint(whole).meta, other)


def test_a_file_on_a_named_vit_needs_nothing_else(stage, tmp_path, monkeypatch, capsys):
    whole, vit = stage
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / "anoseg_d2").mkdir(parents=True)
    vit.rename(tmp_path / "cache" / "anoseg_d2" / "vits14.safetensors")
    small = tmp_path / "small.safetensors"
    how = ["--base", "dinov2-s", "--half", "--inference", "TEST.SCALES", "(1, 2)"]
    how += ["--inference", "TEST.ANOMALY.SCORES", "('rba',)", "--output", str(small)]
    assert convert.main([str(whole), "--to", "adapter", *how]) == 0
    wrong = ["--inference", "INPUT.FLIP", "True", "--output", str(tmp_path / "no.pth")]
    assert convert.main([str(whole), "--to", "adapter", *wrong]) == 2
    assert convert.main([str(whole), "--to", "anoseg", "--half", *wrong]) == 2
    error = capsys.readouterr().err
    assert "--inference INPUT.FLIP" in error and "--half is for --to adapter" in error
    predictor = AnomalyPredictor.from_pretrained(small)
    assert predictor.score_names == ["rba"] and predictor.cfg.TEST.SCALES == (1, 2)
    other = AnomalyPredictor.from_pretrained(small, ["TEST.SCALES", "(1,)"])
    assert other.cfg.TEST.SCALES == (1,)
    assert_same_outputs(other.model, AnomalyPredictor.from_pretrained(whole).model, atol=1e-2)
