"""Send the figures of a run to an experiment tracker, next to TensorBoard."""

import importlib
import importlib.util
import re
from pathlib import Path

from detectron2.utils.events import EventWriter, get_event_storage

from anoseg_d2.config import changed_keys

__all__ = ["TRACKERS", "TrackerWriter", "check_tracker"]

PROJECT = "anoseg_d2"


class Wandb:
    """Weights & Biases: a run in the project `anoseg_d2`, named like OUTPUT_DIR."""

    def __init__(self, module, cfg):
        self.module = module
        # A run that was interrupted in this folder continues.
        options = {"dir": cfg.OUTPUT_DIR, "resume": "auto", "config": changed_keys(cfg)}
        self.run = module.init(project=PROJECT, name=Path(cfg.OUTPUT_DIR).name, **options)

    def figures(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


class Mlflow:
    """MLflow: a run in the experiment `anoseg_d2`, wherever MLflow is set up to keep it."""

    def __init__(self, module, cfg):
        self.module = module
        module.set_experiment(PROJECT)
        module.start_run(run_name=Path(cfg.OUTPUT_DIR).name)
        module.log_params({key: str(value)[:500] for key, value in changed_keys(cfg).items()})

    def figures(self, values: dict[str, float], step: int) -> None:
        # It allows few signs in names, and not the + of an ensemble.
        named = {re.sub(r"[^\w\-. /]", "_", name): value for name, value in values.items()}
        self.module.log_metrics(named, step=step)

    def close(self) -> None:
        self.module.end_run()


TRACKERS = {"wandb": Wandb, "mlflow": Mlflow}


def check_tracker(name: str) -> None:
    """Refuse a tracker that is not installed, before anything long starts.

    Raises:
        ImportError: says how to install it.
    """
    if name in TRACKERS and importlib.util.find_spec(name) is None:
        raise ImportError(
            f"TRACKER is {name!r}, which is not installed: pip install {name}, or set TRACKER none"
        )


class TrackerWriter(EventWriter):
    """Send what detectron2's `EventStorage` holds to the tracker that TRACKER names.

    Args:
        cfg: config node.
    """

    def __init__(self, cfg):
        check_tracker(cfg.TRACKER)
        self.tracker = TRACKERS[cfg.TRACKER](importlib.import_module(cfg.TRACKER), cfg)
        self._written = -1

    def write(self):
        storage = get_event_storage()
        latest = storage.latest_with_smoothing_hint()
        new = {name: value for name, (value, step) in latest.items() if step > self._written}
        if new:
            self._written = max(step for _, step in latest.values())
            self.tracker.figures(new, self._written)

    def close(self):
        self.tracker.close()
