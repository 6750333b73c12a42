"""What a run sends to TensorBoard and to an experiment tracker."""

import sys
import types

import pytest
from runs import small_run
from small_sets import anomaly_set
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from anoseg_d2.engine import Trainer, check_inputs


class Stub(types.ModuleType):
    """Stands for wandb and for mlflow: notes every call."""

    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = types.SimpleNamespace(name=name)
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **options):
            self.calls.append((name, args, options))
            return self

        return call

    def of(self, name):
        return [(args, options) for called, args, options in self.calls if called == name]


@pytest.fixture
def tracked(monkeypatch):
    def install(name):
        stub = Stub(name)
        monkeypatch.setitem(sys.modules, name, stub)
        return stub

    return install


def train(cfg):
    check_inputs(cfg, training=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer


@pytest.fixture
def seen_run(tmp_path, tracked):
    """A run of five steps on a closed set and an anomaly set."""
    stub = tracked("wandb")
    anomaly_set(tmp_path, "pictures_anomaly", 3)
    options = ("TRACKER", "wandb", "SOLVER.LAYER_DECAY", 0.5)
    cfg = small_run(tmp_path, "run", *options, tested=True)
    cfg.DATASETS.TEST = (*cfg.DATASETS.TEST, "pictures_anomaly")
    train(cfg)
    return tmp_path, stub


@pytest.mark.slow
def test_rates_and_norms_reach_tensorboard_and_the_tracker(seen_run):
    folder, stub = seen_run
    events = EventAccumulator(str(folder / "run")).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"grad_norm", "lr", "lr/new", "lr/vit"} <= scalars

    ((_, begun),) = stub.of("init")
    assert begun["project"] == "anoseg_d2" and begun["name"] == "run"
    assert begun["config"]["SOLVER.LAYER_DECAY"] == 0.5
    logged = {name for (values,), _ in stub.of("log") for name in values}
    assert {"total_loss", "grad_norm", "lr/new"} <= logged
    assert any(name.endswith("msp.auprc") for name in logged)
    assert len(stub.of("finish")) == 1


@pytest.mark.slow
def test_mlflow_gets_names_that_it_allows(tmp_path, tracked):
    stub = tracked("mlflow")
    anomaly_set(tmp_path, "mlflow_anomaly", 2)
    cfg = small_run(tmp_path, "run", "TRACKER", "mlflow", tested=True)
    cfg.DATASETS.TEST = (*cfg.DATASETS.TEST, "mlflow_anomaly")
    cfg.TEST.ANOMALY.SCORES = ["msp+entropy"]
    train(cfg)
    names = {name for (values,), _ in stub.of("log_metrics") for name in values}
    assert "mlflow_anomaly/anomaly/msp_entropy.auprc" in names
    assert stub.of("log_params")[0][0][0]["TRACKER"] == "mlflow"
    assert stub.of("end_run")
