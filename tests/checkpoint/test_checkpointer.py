"""Saving and resuming, with tiny models."""

import os
import weakref
from pathlib import Path

import pytest
import torch
from checkpoint_models import assert_same_outputs, saved, tiny
from fvcore.common.checkpoint import PeriodicCheckpointer

from anoseg_d2.checkpoint import AnosegCheckpointer, load_into, read_checkpoint


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
        (tiny("logit_norm"), "class_head.weight: converted; linear to logit_norm"),
        (tiny(image_size=(64, 96)), "grid"),
        (tiny(has_anomaly=True), "anomaly row"),
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

    with pytest.raises(ValueError, match=r"checkpoint.odd.inner\[1\].*builtins.object"):
        saved(tiny(), tmp_path, odd=Odd())
    assert not list(tmp_path.iterdir())


def test_save_to_disk_false_writes_nothing(tmp_path):
    saved(tiny(), tmp_path, save_to_disk=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_compiled_model_saves_plain_names(tmp_path):
    model = tiny()
    path = saved(torch.compile(model), tmp_path)
    assert set(read_checkpoint(path).state_dict) == set(model.state_dict())
