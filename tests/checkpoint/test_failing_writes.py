"""A disk that fails at any call leaves a run that resumes, and no litter."""

import builtins
import errno
import os

import pytest
import torch
from failing_disk import CODES, FailAt

import anoseg_d2.checkpoint.files as files
from anoseg_d2.checkpoint import AnosegCheckpointer, read_checkpoint, weights_hash


def patch(monkeypatch, fault):
    fault.patch(monkeypatch, (builtins, "open"), (os, "close"))
    monkeypatch.setattr(torch, "save", fault.wrap(torch.save, leaves_half=True))
    monkeypatch.setattr(files, "save_file", fault.wrap(files.save_file, leaves_half=True))


def checkpointer(model, folder):
    optimizer = torch.optim.AdamW(model.parameters())
    return AnosegCheckpointer(model, str(folder), optimizer=optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["model_0000002", "model_final"])
def test_whichever_call_fails_the_run_resumes_from_a_whole_file(
    tmp_path, monkeypatch, tiny_eomt, code, name
):
    model = tiny_eomt(lora={"rank": 1})
    saver = checkpointer(model, tmp_path)
    saver.save("model_0000001", iteration=1)
    first = weights_hash(model.state_dict())
    with torch.no_grad():
        model.query.weight += 1
    second = weights_hash(model.state_dict())
    complete = {"last_checkpoint", "model_0000001.pth", f"{name}.pth"}
    complete |= {"model_final_adapter.safetensors"} if name == "model_final" else set()
    for number in range(1, 100):
        fault = FailAt(number, code)
        with monkeypatch.context() as patched:
            patch(patched, fault)
            try:
                saver.save(name, iteration=2)
                assert fault.calls < number  # no call was left to fail
                break
            except OSError:
                pass
        assert {path.name for path in tmp_path.iterdir()} <= complete
        for path in tmp_path.iterdir():  # nothing is half a file
            if path.suffix:
                read_checkpoint(path)
        resumed = tiny_eomt(lora={"rank": 1})
        extra = checkpointer(resumed, tmp_path).resume_or_load("", resume=True)
        assert (extra["iteration"], weights_hash(resumed.state_dict())) in ((1, first), (2, second))
    else:
        raise AssertionError("the save never passed")
    assert number > 6  # two files of three calls each, at least
    assert {path.name for path in tmp_path.iterdir()} == complete
    assert read_checkpoint(tmp_path).extra["iteration"] == 2


def test_the_final_checkpoint_of_a_lora_stage_comes_with_its_adapter_file(tmp_path, tiny_eomt):
    model = tiny_eomt(lora={"rank": 1})
    checkpointer(model, tmp_path).save("model_final", iteration=1)
    adapter = read_checkpoint(tmp_path / "model_final_adapter.safetensors")
    assert adapter.format == "anoseg_adapter"
    assert set(adapter.state_dict) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert read_checkpoint(tmp_path).file == tmp_path / "model_final.pth"
    checkpointer(tiny_eomt(), tmp_path / "plain").save("model_final", iteration=1)
    assert not list((tmp_path / "plain").glob("*adapter*"))
