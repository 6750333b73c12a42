"""What happens beside the training steps: annealing, cost, an orderly stop."""

import logging
import signal
import sys

import torch
from detectron2.engine import HookBase

from anoseg_d2.utils.unwrap import unwrap

try:
    import resource
except ImportError:  # not a Unix
    resource = None

__all__ = ["CostHook", "ProgressHook", "StopHook"]

logger = logging.getLogger(__name__)


class ProgressHook(HookBase):
    """Tell the model before each step what share of the run is done: 0 at the first, 1 at the last.

    So annealing and margin ramp end within a run of any length.
    """

    def before_step(self):
        last = max(self.trainer.max_iter - 1, 1)
        unwrap(self.trainer.model).set_progress(self.trainer.iter / last)


class CostHook(HookBase):
    """Measure what training takes: `peak_memory_mib` beside the losses, and at the end both.

    On CUDA memory is what torch has allocated at most, on a CPU the process's peak resident size,
    which holds the libraries too.
    """

    def __init__(self, device: torch.device):
        self.device = device

    def before_train(self):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def after_step(self):
        peak = self._peak()
        if peak is not None:
            self.trainer.storage.put_scalar("peak_memory_mib", peak, smoothing_hint=False)

    def _peak(self) -> float | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        if resource is None:
            return None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)

    def facts(self) -> dict:
        """`peak_memory` in MiB and `step_seconds`, the median over the run."""
        histories = self.trainer.storage.histories()
        found = {}
        if "peak_memory_mib" in histories:
            found["peak_memory"] = histories["peak_memory_mib"].latest()
        if "time" in histories:  # the first steps are not timed
            found["step_seconds"] = histories["time"].median(self.trainer.max_iter)
        return found


class StopHook(HookBase):
    """On Ctrl-C or SIGTERM finish the step, save a checkpoint, stop; a second one is at once."""

    def __init__(self, checkpointer):
        self.checkpointer = checkpointer
        self._asked = False
        self._previous = {}

    def before_train(self):
        for name in (signal.SIGINT, signal.SIGTERM):
            self._previous[name] = signal.signal(name, self._ask)

    def _ask(self, number, frame):
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        logger.warning("asked to stop: finishing this step, then saving a checkpoint")

    def after_step(self):
        if self._asked:
            self.checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)
            raise KeyboardInterrupt

    def after_train(self):
        for name, handler in self._previous.items():
            signal.signal(name, handler)
