"""Hooks of the training loop for seeds, annealing, cost, checkpoints and stopping."""

import logging
import math
import random
import re
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from anoseg_d2.checkpoint import AnosegCheckpointer
from anoseg_d2.utils.unwrap import unwrap

logger = logging.getLogger(__name__)


class SeedHook(HookBase):
    """Seed every step from (seed, step, rank), so that a resumed run draws what it would have.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def before_step(self):
        # The spawn key keeps this apart from the streams of data loading and pasting.
        source = np.random.SeedSequence(
            [self.seed, self.trainer.iter, comm.get_rank()], spawn_key=(2,)
        )
        for_torch, for_numpy = (int(word) for word in source.generate_state(2))
        torch.manual_seed(for_torch)
        np.random.seed(for_numpy)
        random.seed(for_numpy)


class ProgressHook(HookBase):
    """Tell the model before each step the finished fraction of the run, from 0 to 1.

    So annealing and margin ramp end within a run of any length.
    """

    def before_step(self):
        core = unwrap(self.trainer.model)
        if hasattr(core, "set_progress"):
            core.set_progress(self.trainer.iter / max(self.trainer.max_iter - 1, 1))


class LearningRateHook(HookBase):
    """Log the highest learning rate of each kind of parameters: `lr/vit`, `lr/new`, `lr/lora`."""

    def after_step(self):
        rates: dict[str, float] = {}
        for group in self.trainer.optimizer.param_groups:
            kind = group.get("kind", "new")  # an optimizer of the user's own names none
            rates[kind] = max(group["lr"], rates.get(kind, 0.0))
        for kind, rate in rates.items():
            self.trainer.storage.put_scalar(f"lr/{kind}", rate, smoothing_hint=False)


class CostHook(HookBase):
    """Log peak memory with the losses; report peak memory and step time at the end.

    On CUDA memory is what torch has allocated at most, on a CPU the process's peak resident size,
    which includes the libraries.
    """

    def __init__(self, device: torch.device):
        self.device = device

    def before_train(self):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def after_step(self):
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device) / 2**20
        else:
            unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB on Linux
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        self.trainer.storage.put_scalar("peak_memory_mib", peak, smoothing_hint=False)

    def facts(self) -> dict:
        """`peak_memory` in MiB and `step_seconds`, the median over the run."""
        histories = self.trainer.storage.histories()
        found = {}
        if "peak_memory_mib" in histories:
            found["peak_memory"] = histories["peak_memory_mib"].latest()
        if "time" in histories:  # the first steps are not timed
            found["step_seconds"] = histories["time"].median(self.trainer.max_iter)
        return found


class UntaggedCheckpointer(AnosegCheckpointer):
    """Writes files that a resumed run does not start from, such as averaged weights."""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pass


class CheckpointHook(HookBase):
    """Save every `period` steps, and `model_final` after the last one, each step once at most.

    Args:
        checkpointer: of the run.
        period: in steps.
        keep: newest periodic checkpoints that stay; 0 for all.
        ema: averaged copy whose weights are written as `model_ema.pth` at the end; None for none.
    """

    def __init__(self, checkpointer, period: int, keep: int = 0, ema: nn.Module | None = None):
        self.checkpointer, self.period, self.keep, self.ema = checkpointer, period, keep, ema
        self._saved_step = None

    def after_step(self):
        done, folder = self.trainer.iter + 1, self.checkpointer.save_dir
        if done >= self.trainer.max_iter:
            self.save_now("model_final")
            if self.ema is not None:
                UntaggedCheckpointer(self.ema, folder).save("model_ema")
        elif done % self.period == 0:
            self.save_now()
            if self.keep and comm.is_main_process():
                # From the folder, not from memory: a run that was resumed wrote the older ones.
                files = Path(folder).glob("model_*.pth")
                periodic = sorted(f for f in files if re.fullmatch(r"model_\d{7,}", f.stem))
                for path in periodic[: -self.keep]:
                    path.unlink()

    def save_now(self, name: str | None = None) -> None:
        """Save this step, by default under its number, unless it is saved already."""
        step = self.trainer.iter
        if self._saved_step != step:
            self.checkpointer.save(name or f"model_{step:07d}", iteration=step)
            self._saved_step = step


class BestCheckpointHook(HookBase):
    """Keep `model_best.pth`: the weights with the best evaluated figure so far.

    It is chosen on the evaluation labels, so that figure is an oracle on this dataset.

    Args:
        checkpointer: an `UntaggedCheckpointer`.
        figure: as evaluation prints it, "dataset/anomaly/rba.auprc"; the dataset may be left out
            when only one is evaluated. Less is better for `fpr95` and `ECE`.
        period: TEST.EVAL_PERIOD.
        patience: evaluations in a row without a better figure after which the run ends; 0: never.
    """

    def __init__(self, checkpointer, figure: str, period: int, patience: int = 0):
        self.checkpointer, self.figure, self.period = checkpointer, figure, period
        self.patience, self.worse = patience, 0
        self.sign = -1 if figure.endswith(("fpr95", "ECE")) else 1
        self.best: float | None = None

    def after_step(self):
        done = self.trainer.iter + 1
        if done % self.period == 0 and done < self.trainer.max_iter:
            self._compare()
            # Every rank must leave the loop after the same step, but only the first has figures.
            if self.patience and comm.all_gather(self.worse)[0] >= self.patience:
                logger.info("no better %s in %d evaluations", self.figure, self.patience)
                # With one more step all that belongs to the last one happens: saving, measuring.
                self.trainer.max_iter = done + 1

    def after_train(self):
        if self.trainer.iter >= self.trainer.max_iter:
            self._compare()

    def _compare(self) -> None:
        if not comm.is_main_process():
            return
        known = self.trainer.storage.latest()
        names, figure = self.trainer.cfg.DATASETS.TEST, self.figure
        figure = f"{names[0]}/{figure}" if figure not in known and len(names) == 1 else figure
        if figure not in known:
            found = [name for name in known if "/" in name]
            raise ValueError(
                f"SOLVER.BEST_FIGURE is {self.figure!r}; evaluated figures: {', '.join(found)}"
            )
        value = float(known[figure][0])
        self.worse += 1
        if math.isfinite(value) and (self.best is None or self.sign * (value - self.best) > 0):
            self.best, self.worse = value, 0
            self.checkpointer.save("model_best", iteration=self.trainer.iter)
            logger.info("model_best.pth: %s is %.2f", self.figure, value)

    def state_dict(self):
        return {} if self.best is None else {"best": self.best, "worse": self.worse}

    def load_state_dict(self, state_dict):
        self.best, self.worse = state_dict["best"], state_dict.get("worse", 0)


class StopHook(HookBase):
    """On Ctrl-C or SIGTERM, finish the step, save a checkpoint and stop on every rank.

    A second signal stops immediately, also in the middle of an evaluation, which may take long.

    Args:
        checkpoints: the run's `CheckpointHook`.
        device: of tensors that ranks exchange.
    """

    def __init__(self, checkpoints: CheckpointHook, device: torch.device):
        self.checkpoints, self.device = checkpoints, device
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
        asked = self._asked
        if comm.get_world_size() > 1:
            # Ranks must leave the loop after the same step, whichever of them got the signal.
            flag = torch.tensor([float(asked)], device=self.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            asked = bool(flag.item())
        if asked and self.trainer.iter + 1 < self.trainer.max_iter:
            self.checkpoints.save_now()
            comm.synchronize()  # no rank leaves before the file is there
            raise KeyboardInterrupt

    def after_train(self):
        for name, handler in self._previous.items():
            signal.signal(name, handler)
        # In the last step the run is complete; what is left to stop is its evaluation.
        if self._asked and self.trainer.iter >= self.trainer.max_iter:
            raise KeyboardInterrupt
