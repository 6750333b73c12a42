"""Configs that checkpoints describe."""

import pytest
import torch
from checkpoint_models import assert_same_outputs, saved, tiny

from anoseg_d2.checkpoint import build_config_overrides, load_into, model_meta, read_checkpoint
from anoseg_d2.checkpoint.from_config import follow_checkpoint
from anoseg_d2.config import load_config
from anoseg_d2.modeling import EoMT
from anoseg_d2.modeling.heads import ArcFaceHead


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
    with pytest.raises(ValueError, match=r"odd\.pth.*score_statistics"):
        read_checkpoint(tmp_path / "odd.pth")


# ---- a config that follows its checkpoint ---------------------------------------------------


@pytest.fixture
def finished(tmp_path):
    """A checkpoint that differs from every default: crop, patch, registers, classes, head."""
    options = {"has_anomaly": True, "patch_size": 8, "num_registers": 0, "num_known": 3}
    model = tiny(ArcFaceHead(24, 3, True, scale=12.0), (32, 48), **options)
    return model, read_checkpoint(saved(model, tmp_path))


def test_a_config_takes_the_network_of_a_checkpoint_that_is_used_as_it_is(finished, caplog):
    model, checkpoint = finished
    caplog.set_level("INFO")
    cfg = load_config("arcface_full", ["MODEL.DEVICE", "cpu"])  # its crop and size are its file's
    follow_checkpoint(cfg, checkpoint, finished=True)
    assert (tuple(cfg.INPUT.CROP_SIZE), cfg.MODEL.EOMT.NUM_REGISTERS) == ((32, 48), 0)
    assert "INPUT.CROP_SIZE is [32, 48], as in" in caplog.text
    built = EoMT(cfg)
    assert set(load_into(built, checkpoint, allow_untrained=False).counts()) == {"loaded"}
    assert_same_outputs(model, built)
    assert built.class_head.stored_options()["scale"] == 12.0


def test_a_key_of_the_command_line_stays_and_is_named(finished, caplog):
    cfg = load_config(overrides=["INPUT.CROP_SIZE", (64, 64), "MODEL.EOMT.NUM_REGISTERS", 4])
    given = ["INPUT.CROP_SIZE", "MODEL.EOMT.NUM_REGISTERS"]
    follow_checkpoint(cfg, finished[1], given, finished=True)
    assert (tuple(cfg.INPUT.CROP_SIZE), cfg.MODEL.EOMT.NUM_REGISTERS) == ((64, 64), 4)
    assert "INPUT.CROP_SIZE is (64, 64), but [32, 48]" in caplog.text
    assert "converted" in caplog.text
    assert cfg.MODEL.EOMT.NUM_CLASSES == 3


def test_a_training_keeps_what_its_config_file_changes(finished, caplog):
    cfg = load_config(overrides=["MODEL.HEAD.NAME", "logit_norm", "INPUT.CROP_SIZE", (64, 64)])
    follow_checkpoint(cfg, finished[1], finished=False)
    assert (cfg.MODEL.HEAD.NAME, tuple(cfg.INPUT.CROP_SIZE)) == ("logit_norm", (64, 64))
    assert (cfg.MODEL.EOMT.NUM_CLASSES, cfg.MODEL.EOMT.PATCH_SIZE) == (3, 8)
    assert "MODEL.HEAD.NAME is logit_norm, but arcface" in caplog.text


def test_a_bare_vit_changes_no_config(tmp_path):
    vit = tiny(patch_size=8).backbone
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    cfg = load_config()
    before = cfg.dump()
    follow_checkpoint(cfg, read_checkpoint(tmp_path / "vit.pth"), finished=True)
    assert cfg.dump() == before


def test_a_config_that_says_the_same_in_other_words_stays_as_it_is(tmp_path, tiny_cfg, tiny_eomt):
    checkpoint = read_checkpoint(saved(tiny_eomt(), tmp_path))
    cfg = tiny_cfg()
    before = cfg.dump()
    follow_checkpoint(cfg, checkpoint, finished=True)
    assert cfg.dump() == before
