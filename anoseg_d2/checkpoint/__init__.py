"""Checkpoints: any EoMT or ViT in, ours and the public formats out.

`files` reads and writes, `formats` recognises, `hub` fetches, `transfer` fits weights to a model by
the `rules` and accounts for every tensor in a `report`, `checkpointer` saves and resumes, `export`
writes other formats, `lora_state` handles adapters in state dicts.
"""

from anoseg_d2.checkpoint.checkpointer import (
    AnosegCheckpointer,
    load_adapter,
    model_meta,
    save_adapter,
)
from anoseg_d2.checkpoint.files import read_checkpoint
from anoseg_d2.checkpoint.from_config import build_config_overrides
from anoseg_d2.checkpoint.identity import describe_weights, weights_hash
from anoseg_d2.checkpoint.report import LoadReport, LoadRow
from anoseg_d2.checkpoint.spec import Checkpoint
from anoseg_d2.checkpoint.transfer import load_into

__all__ = [
    "AnosegCheckpointer",
    "Checkpoint",
    "LoadReport",
    "LoadRow",
    "build_config_overrides",
    "describe_weights",
    "load_adapter",
    "load_into",
    "model_meta",
    "read_checkpoint",
    "save_adapter",
    "weights_hash",
]
