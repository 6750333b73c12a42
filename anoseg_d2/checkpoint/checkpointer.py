"""Save and resume with detectron2's checkpointer.

A run folder holds::

    model_0000099.pth                 weights, metadata, optimiser, trainer and iteration
    model_final.pth                   the same, after the last step
    model_final_adapter.safetensors   what a LoRA stage trained, see `adapters`
    last_checkpoint                   name of the file that a resumed run starts from
"""

import copy
import logging
import os
from pathlib import Path
from typing import Any

import detectron2.utils.comm as comm
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from anoseg_d2.checkpoint.adapters import adapter_payload
from anoseg_d2.checkpoint.files import last_checkpoint, read_checkpoint, write_checkpoint
from anoseg_d2.checkpoint.metadata import model_meta, model_tensors, plain
from anoseg_d2.checkpoint.spec import Checkpoint
from anoseg_d2.checkpoint.transfer import load_into, load_same
from anoseg_d2.utils.files import write_atomic
from anoseg_d2.utils.unwrap import unwrap

logger = logging.getLogger(__name__)


class AnosegCheckpointer(Checkpointer):
    """detectron2's checkpointer, which writes files atomically and never runs code from a file.

    Args:
        model: EoMT, also wrapped by DistributedDataParallel or `torch.compile`.
        save_dir: folder of the run.
        save_to_disk: None writes on the main process only.
        checkpointables: objects with `state_dict` and `load_state_dict`.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ):
        if save_to_disk is None:
            save_to_disk = comm.is_main_process()
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.model = unwrap(self.model)

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `<save_dir>/<name>.pth` with weights, metadata and checkpointables.

        Args:
            name: file name without suffix.
            kwargs: plain values or tensors to keep with them (iteration).
        Raises:
            ValueError: a state holds something that could not be read back safely.
        """
        if not self.save_dir or not self.save_to_disk:  # one rank writes for all
            return
        payload = _weights(self.model)
        for key, checkpointable in self.checkpointables.items():
            payload[key] = checkpointable.state_dict()
        payload |= kwargs
        file_name = f"{name}.pth"
        logger.info("Saving checkpoint to %s", os.path.join(self.save_dir, file_name))
        write_checkpoint(plain(payload, "checkpoint"), Path(self.save_dir) / file_name)
        # Only at the end: who shares a stage wants its last adapter, not one of every period.
        if name == "model_final" and payload["meta"]["lora"]:
            adapter = adapter_payload(payload["model"], payload["meta"])
            write_checkpoint(adapter, Path(self.save_dir) / f"{name}_adapter.safetensors")
        # Last, so that a run killed at any moment resumes from a file that is whole.
        self.tag_last_checkpoint(file_name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Record atomically in `last_checkpoint` which file a resumed run starts from."""
        write_atomic(Path(self.save_dir) / "last_checkpoint", last_filename_basename.encode())

    def get_checkpoint_file(self) -> str:
        """Return the path that `last_checkpoint` names, "" if there is none.

        Raises:
            ValueError: `last_checkpoint` is broken.
        """
        return str(last_checkpoint(Path(self.save_dir)) or "")

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load weights of any known format; from our own files the checkpointables too.

        Args:
            path: see `read_checkpoint`; "" loads nothing.
            checkpointables: names to restore; None for all that the file has.
        Returns:
            what else one of our files holds (iteration).
        """
        if not path:
            logger.info("No checkpoint given: the model starts from its initialisation")
            return {}
        checkpoint = read_checkpoint(path)
        load_into(self.model, checkpoint)
        return self._restore(checkpoint, checkpointables)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Continue from the last checkpoint of the run, or load only weights from `path`."""
        if not (resume and self.has_checkpoint()):
            return self.load(path, checkpointables=[])
        path = self.get_checkpoint_file()
        if not os.path.isfile(path):
            others = ", ".join(sorted(map(os.path.basename, self.get_all_checkpoint_files())))
            raise FileNotFoundError(
                f"{self.save_dir}/last_checkpoint names {os.path.basename(path)}, which is not "
                f"there; write one of [{others}] into it, or delete it to start from the beginning"
            )
        checkpoint = read_checkpoint(path)
        # No transfer here: optimiser state belongs to exactly these tensors.
        load_same(self.model, checkpoint)
        logger.info("Resuming from %s", path)
        return self._restore(checkpoint, None)

    def _restore(self, checkpoint: Checkpoint, names: list[str] | None) -> dict[str, Any]:
        extra = dict(checkpoint.extra)
        for name in self.checkpointables if names is None else names:
            if name in extra:
                # A copy: states are used in place, and the file that they map may be deleted.
                self.checkpointables[name].load_state_dict(copy.deepcopy(extra.pop(name)))
            elif names is not None or extra:
                logger.warning("%s holds no state of %s", checkpoint.source, name)
        return extra


def save_weights(model: nn.Module, path) -> None:
    """Write only the weights and metadata of a model, such as an averaged copy, to a file.

    The file loads wherever a checkpoint does; no run resumes from it.

    Args:
        model: EoMT, wrapped or not (`AveragedModel` too).
        path: target, `.pth` or `.safetensors`.
    """
    write_checkpoint(plain(_weights(model), "weights"), path)
    logger.info("Saved weights to %s", path)


def _weights(model: nn.Module) -> dict[str, Any]:
    tensors = {name: tensor.detach() for name, tensor in model_tensors(model).items()}
    return {"model": tensors, "meta": model_meta(model)}
