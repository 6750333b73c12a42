"""Configs that checkpoints describe."""

import pytest
import torch
from checkpoint_models import assert_same_outputs, saved, tiny

from anoseg_d2.checkpoint import build_config_overrides, load_into, model_meta, read_checkpoint
from anoseg_d2.checkpoint.from_config import restore_statistics
from anoseg_d2.modeling import EoMT


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


def test_attention_heads_that_nobody_states_are_missed_by_the_name_of_the_file(tmp_path):
    torch.save({"model": tiny().state_dict()}, tmp_path / "bare.pth")
    with pytest.raises(ValueError, match=r"bare\.pth.*attention"):
        build_config_overrides(read_checkpoint(tmp_path / "bare.pth"))


@pytest.mark.parametrize("stored", [{"rba": "half"}, {"rba": [1.0]}, "text", {"rba": [None, 1]}])
def test_statistics_that_are_not_pairs_of_numbers_are_named(tmp_path, stored):
    model = tiny()
    meta = {**model_meta(model), "score_statistics": stored}
    torch.save({"model": model.state_dict(), "meta": meta}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match="odd.pth: score_statistics must be"):
        restore_statistics(model, read_checkpoint(tmp_path / "odd.pth"))
