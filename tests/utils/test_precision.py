"""Mixed precision follows the config and the device."""

import pytest
import torch

from anoseg_d2.utils.precision import amp_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "capability,expected",
    [((7, 0), torch.float16), ((7, 5), torch.float16), ((8, 0), torch.bfloat16)],
    ids=["V100", "T4, RTX 20", "A100"],
)
def test_auto_takes_bfloat16_only_where_a_gpu_computes_in_it(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)  # emulated, or not
    monkeypatch.setattr(torch.version, "hip", None)
    assert amp_dtype("auto", torch.device("cuda")) == expected


def test_auto_is_float32_on_a_build_without_onednn(monkeypatch):
    class Ops:
        def __getattr__(self, name):
            raise AttributeError(f"'_OpNamespace' 'mkldnn' object has no attribute {name!r}")

    monkeypatch.setattr(torch.ops, "mkldnn", Ops())
    assert amp_dtype("auto", CPU) is None


def test_a_named_precision_is_taken_on_any_device():
    assert amp_dtype("bf16", CPU) == torch.bfloat16
    assert amp_dtype("fp16", CPU) == torch.float16
    assert amp_dtype("auto", CPU) in (None, torch.bfloat16)
