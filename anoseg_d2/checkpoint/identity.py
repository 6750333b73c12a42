"""Identify weights by hashes of their tensors and files, for results and for adapters."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from anoseg_d2.utils.unwrap import unwrap

__all__ = ["describe_weights", "file_hash", "model_tensors", "weights_hash"]


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by name, without `torch.compile`'s prefixes."""
    state = unwrap(model).state_dict(keep_vars=True)
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}


def describe_weights(model: nn.Module, file: str | Path | None = None) -> dict[str, str | None]:
    """Describe which weights a model holds, so that figures can be traced to them.

    Args:
        model: the model as it is evaluated, wrapped or not.
        file: where its weights were read from or saved to, such as `LoadReport.file`; None if no
            file holds them.
    Returns:
        `weights_file`, `weights_file_sha256` (what `sha256sum` prints) and `weights_sha256`, the
        `weights_hash` of the tensors in the model. The last one does not depend on the file
        format, and changes when loading converted or initialised anything.
    """
    return {
        "weights_file": None if file is None else str(file),
        "weights_file_sha256": None if file is None else file_hash(file),
        "weights_sha256": weights_hash(model_tensors(model)),
    }


def file_hash(path) -> str:
    """Return the sha256 of a file's bytes in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Hash tensors by name, dtype, shape and bytes.

    Args:
        state: names to tensors, on any device.
    Returns:
        sha256 in hex, the same for any order of the names.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()
