"""Read any EoMT or ViT checkpoint, and write our own.

Reading: `files` opens a file without running its code, `formats` recognises whose it is by the
tables of `names` and reads its settings, `spec` holds them, `hub` fetches. Loading: `transfer`
fits weights to a model by the `rules` and accounts for every tensor; `from_config` does so as a
config says. Saving: `checkpointer` for runs, with `metadata`, which also identifies weights by
their hashes; `adapters` for LoRA stages.

Public names:

- `read_checkpoint(source)` reads a file, folder or hub name of any known format.
- `Checkpoint` holds what was read: tensors under our names, `ModelSpec`, metadata.
- `ModelSpec` holds the sizes and settings of the model that a checkpoint belongs to.
- `load_into(model, checkpoint)` fits a checkpoint to a model and returns a `LoadReport`.
- `LoadReport` and `LoadRow` describe what happened to each tensor.
- `build_config_overrides(checkpoint)` gives the config of the model that a checkpoint describes.
- `AnosegCheckpointer` saves and resumes training runs.
- `save_weights(model, path)` writes only weights and metadata.
- `model_meta(model)` gives the metadata that our files hold.
- `describe_weights(model, file)` names weights by file and hash, for results.
- `weights_hash(state)` hashes tensors by name and content.
"""

from anoseg_d2.checkpoint.checkpointer import AnosegCheckpointer, save_weights
from anoseg_d2.checkpoint.files import read_checkpoint
from anoseg_d2.checkpoint.from_config import build_config_overrides
from anoseg_d2.checkpoint.metadata import describe_weights, model_meta, weights_hash
from anoseg_d2.checkpoint.spec import Checkpoint, ModelSpec
from anoseg_d2.checkpoint.transfer import LoadReport, LoadRow, load_into

__all__ = [
    "AnosegCheckpointer",
    "Checkpoint",
    "LoadReport",
    "LoadRow",
    "ModelSpec",
    "build_config_overrides",
    "describe_weights",
    "load_into",
    "model_meta",
    "read_checkpoint",
    "save_weights",
    "weights_hash",
]
