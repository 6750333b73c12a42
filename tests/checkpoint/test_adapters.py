"""Adapter files and their base."""

import pytest
import torch
from checkpoint_models import adapted, assert_same_outputs, save_adapter, saved, tiny

from anoseg_d2.checkpoint import load_into, read_checkpoint


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
    load_into(other, read_checkpoint(tmp_path / f"adapter{suffix}"))
    assert_same_outputs(model, other)


def test_an_adapter_refuses_another_base(tmp_path):
    save_adapter(adapted(), tmp_path / "adapter.pth")
    with pytest.raises(ValueError, match="not those.*adapter"):
        load_into(adapted(seed=1), read_checkpoint(tmp_path / "adapter.pth"))
    with pytest.raises(ValueError, match="no such tensor"):
        load_into(tiny("arcface"), read_checkpoint(tmp_path / "adapter.pth"))


def test_merged_adapters_are_never_saved_as_if_they_were_not(tmp_path):
    model = adapted()
    model.backbone.blocks[0].attn.proj.merged = True
    with pytest.raises(ValueError, match="merged into the weight"):
        saved(model, tmp_path)
