"""Adapter files and their base."""

import pytest
import torch
from checkpoint_models import adapted, assert_same_outputs, save_adapter, saved, tiny

from anoseg_d2.checkpoint import load_into, read_checkpoint
from anoseg_d2.checkpoint.adapters import join_adapter


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
