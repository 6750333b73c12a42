"""Send the figures of a run to an experiment tracker, next to TensorBoard."""

import importlib
import re
from pathlib import Path

from detectron2.utils.events import EventWriter, get_event_storage

from anoseg_d2.config import changed_keys

PROJECT = "anoseg_d2"


class Tracker(EventWriter):
    """Writes what is new in detectron2's `EventStorage` by `log(values, step)`."""

    written = -1  # the last step

    def write(self):
        latest = get_event_storage().latest_with_smoothing_hint()
        new = {name: value for name, (value, step) in latest.items() if step > self.written}
        if new:
            self.written = max(step for _, step in latest.values())
            self.log(new, self.written)


class Wandb(Tracker):
    """Weights & Biases: a run in the project `anoseg_d2`, named like OUTPUT_DIR."""

    def __init__(self, cfg):
        # A run that was interrupted in this folder continues.
        options = {"dir": cfg.OUTPUT_DIR, "resume": "auto", "config": changed_keys(cfg)}
        wandb = importlib.import_module("wandb")
        self.run = wandb.init(project=PROJECT, name=Path(cfg.OUTPUT_DIR).name, **options)
        self.close = self.run.finish

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)


class Mlflow(Tracker):
    """MLflow: a run in the experiment `anoseg_d2`, wherever MLflow is set up to keep it."""

    def __init__(self, cfg):
        self.mlflow = importlib.import_module("mlflow")
        self.mlflow.set_experiment(PROJECT)
        self.mlflow.start_run(run_name=Path(cfg.OUTPUT_DIR).name)
        self.mlflow.log_params({key: str(value)[:500] for key, value in changed_keys(cfg).items()})
        self.close = self.mlflow.end_run

    def log(self, values: dict[str, float], step: int) -> None:
        # It allows few signs in names, and not the + of an ensemble.
        named = {re.sub(r"[^\w\-. /]", "_", name): value for name, value in values.items()}
        self.mlflow.log_metrics(named, step=step)


TRACKERS = {"wandb": Wandb, "mlflow": Mlflow}
