"""Evaluation uses trained weights or refuses; training may start from anything."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from anoseg_d2 import AnomalyPredictor
from anoseg_d2.checkpoint import (
    AnosegCheckpointer,
    describe_weights,
    load_into,
    read_checkpoint,
    save_weights,
    weights_hash,
)
from anoseg_d2.checkpoint.from_config import load_weights
from anoseg_d2.utils.files import file_hash


def saved(model, folder):
    AnosegCheckpointer(model, str(folder)).save("model_final")
    return folder / "model_final.pth"


@pytest.mark.parametrize(
    "stored, built, named",
    [
        ({}, {"has_anomaly": True}, "class_head.weight +inserted"),
        ({"has_anomaly": True}, {}, "class_head.weight +converted"),
        ({}, {"head": "arcface"}, "class_head.weight +converted"),
        ({"head": "arcface"}, {}, "class_head.bias +converted"),
        ({}, {"head": "logit_norm"}, "class_head.weight +converted"),
        ({}, {"lora": {"rank": 2}}, r"lora_A +initialised"),
        ({"vit": {"num_registers": 0}}, {"vit": {"num_registers": 4}}, "reg_token +initialised"),
    ],
    ids=["anomaly row", "dropped row", "to arcface", "from arcface", "norm", "lora", "registers"],
)
def test_evaluation_refuses_and_names_tensors_that_nobody_trained(
    tmp_path, tiny_eomt, stored, built, named
):
    checkpoint = read_checkpoint(saved(tiny_eomt(**stored), tmp_path))
    model = tiny_eomt(**built)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"(?s){named}.*MODEL.ALLOW_UNTRAINED True"):
        load_into(model, checkpoint, allow_untrained=False)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    load_into(model, checkpoint)


def test_evaluation_refuses_a_bare_vit_and_random_weights(tmp_path, tiny_eomt, tiny_cfg):
    torch.save(tiny_eomt().backbone.state_dict(), tmp_path / "vit.pth")
    cfg = tiny_cfg("MODEL.WEIGHTS", str(tmp_path / "vit.pth"))
    with pytest.raises(ValueError, match="(?s)query.weight.*ALLOW_UNTRAINED"):
        load_weights(cfg, tiny_eomt())
    with pytest.raises(ValueError, match="(?s)query.weight.*ALLOW_UNTRAINED"):
        AnomalyPredictor(cfg)
    load_weights(cfg, tiny_eomt(), training=True)
    cfg.MODEL.ALLOW_UNTRAINED = True
    load_weights(cfg, tiny_eomt())
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty.*ALLOW_UNTRAINED"):
        load_weights(tiny_cfg(), tiny_eomt())


def test_a_predictor_refuses_what_its_overrides_would_leave_untrained(tmp_path, tiny_eomt):
    path = str(saved(tiny_eomt(), tmp_path))
    overrides = ["MODEL.DEVICE", "cpu", "MODEL.EOMT.ANOMALY_CLASS", True]
    with pytest.raises(ValueError, match="class_head.weight +inserted"):
        AnomalyPredictor.from_pretrained(path, overrides)
    AnomalyPredictor.from_pretrained(path, [*overrides, "MODEL.ALLOW_UNTRAINED", True])


def test_resampling_and_merging_keep_weights_trained(tmp_path, tiny_eomt):
    checkpoint = read_checkpoint(saved(tiny_eomt(lora={"rank": 2}), tmp_path))
    model = tiny_eomt(vit={"image_size": (64, 96)})
    report = load_into(model, checkpoint, allow_untrained=False)
    assert report.names("resampled") and report.names("merged")


def test_what_was_loaded_is_described_by_file_and_content(tmp_path, tiny_eomt, tiny_cfg):
    source, model = tiny_eomt(), tiny_eomt()
    path = saved(source, tmp_path)
    report = load_weights(tiny_cfg("MODEL.WEIGHTS", str(tmp_path)), model)  # by its run folder
    assert describe_weights(model, report.file) == {
        "weights_file": str(path),
        "weights_file_sha256": file_hash(path),
        "weights_sha256": weights_hash(source.state_dict()),
    }
    with torch.no_grad():
        model.query.weight[0, 0] += 1
    changed = describe_weights(model)
    assert changed["weights_sha256"] != weights_hash(source.state_dict())
    assert changed["weights_file"] is None


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_averaged_weights_load_as_any_checkpoint_and_are_no_run_to_resume(
    tmp_path, tiny_eomt, suffix
):
    averaged = AveragedModel(tiny_eomt())
    with torch.no_grad():
        averaged.module.query.weight += 1
    path = tmp_path / f"model_ema{suffix}"
    save_weights(averaged, path)
    predictor = AnomalyPredictor.from_pretrained(str(path), ["MODEL.DEVICE", "cpu"])
    found = describe_weights(predictor.model)["weights_sha256"]
    assert found == weights_hash(averaged.module.state_dict())
    assert not AnosegCheckpointer(tiny_eomt(), str(tmp_path)).has_checkpoint()
