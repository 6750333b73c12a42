"""An evaluation that is stopped continues, and reports nothing that may have changed since."""

import shutil

import pytest
import small_sets
import torch
from detectron2.data import DatasetCatalog
from runs import small_run

from anoseg_d2.checkpoint import AnosegCheckpointer
from anoseg_d2.commands import train
from anoseg_d2.data.builtin import register_cards
from anoseg_d2.engine import Trainer
from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator
from anoseg_d2.modeling import EoMT
from anoseg_d2.utils.files import read_json

FIRST, SECOND = "unfinished_first", "unfinished_second"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two anomaly sets of two images."""
    folder = tmp_path_factory.mktemp("unfinished")
    for name in (FIRST, SECOND):
        small_sets.anomaly_set(folder, name, count=2, shape=(32, 48))
    return folder


def config_of(folder, output, *overrides):
    cfg = small_run(folder, output, "TEST.ANOMALY.COMPONENTS", False, *overrides, tested=True)
    cfg.DATASETS.TEST = (*cfg.DATASETS.TEST, FIRST, SECOND)
    register_cards(cfg)
    return cfg


def model_of(cfg, seed=0):
    torch.manual_seed(seed)
    return EoMT(cfg)


def evaluate(cfg, model):
    Trainer.test(cfg, model, resume=True)


def figures(cfg):
    found = read_json(f"{cfg.OUTPUT_DIR}/report/results.json")
    return {key: found[key] for key in ("datasets", "closed_set")}


def stop_in_the_second(patch):
    """Interrupt every evaluation of the second set."""
    process = AnomalyEvaluator.process

    def interrupted(self, inputs, outputs):
        if self.dataset_name == SECOND:
            raise KeyboardInterrupt
        process(self, inputs, outputs)

    patch.setattr(AnomalyEvaluator, "process", interrupted)


@pytest.fixture(scope="module")
def interrupted(folder):
    """Output folder of an evaluation that was stopped in its last dataset."""
    cfg = config_of(folder, "interrupted")
    with pytest.MonkeyPatch.context() as patch:
        stop_in_the_second(patch)
        with pytest.raises(KeyboardInterrupt):
            evaluate(cfg, model_of(cfg))
    return folder / "interrupted"


@pytest.fixture
def stopped(folder, interrupted, tmp_path):
    """Config of an evaluation that was stopped, in a folder of the test's own."""
    shutil.copytree(interrupted, tmp_path / "run")
    cfg = config_of(folder, "run")
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    return cfg


@pytest.fixture
def evaluated(monkeypatch):
    """Names of the datasets that are evaluated in the test."""
    names, original = [], Trainer.build_test_loader

    def noted(cfg, name):
        names.append(name)
        return original(cfg, name)

    monkeypatch.setattr(Trainer, "build_test_loader", noted)
    return names


def assert_as_from_scratch(cfg, model):
    found = figures(cfg)
    cfg.OUTPUT_DIR += "_from_scratch"
    evaluate(cfg, model)
    assert found == figures(cfg)


@pytest.mark.slow
def test_only_what_was_not_finished_is_evaluated_again(stopped, evaluated):
    evaluate(stopped, model_of(stopped))
    assert evaluated == [SECOND]
    assert len(figures(stopped)["datasets"]) == 2 and len(figures(stopped)["closed_set"]) == 1
    evaluated.clear()
    evaluate(stopped, model_of(stopped))  # it was complete, so all is evaluated anew
    assert evaluated == list(stopped.DATASETS.TEST)
    assert_as_from_scratch(stopped, model_of(stopped))


@pytest.mark.slow
def test_other_weights_are_evaluated_from_the_beginning(stopped, evaluated):
    other = model_of(stopped, seed=1)
    evaluate(stopped, other)
    assert evaluated == list(stopped.DATASETS.TEST)
    assert_as_from_scratch(stopped, other)


def _rule(cfg, folder, patch):
    swapped = small_sets.LabelRule("swapped", ((0, 1), (1, 0), (255, 255)))
    metadata = small_sets.MetadataCatalog.get(FIRST)
    patch.setitem(metadata.__dict__, "label_rule", swapped)


def _image(cfg, folder, patch):
    images = DatasetCatalog.get(FIRST)
    patch.setitem(DatasetCatalog.data, FIRST, lambda: images[:1])


def _key(cfg, folder, patch):
    cfg.TEST.WINDOW_OVERLAP = 0.5


@pytest.mark.slow
@pytest.mark.parametrize("change", [_rule, _image, _key])
def test_whatever_has_changed_is_evaluated_again(stopped, evaluated, folder, monkeypatch, change):
    change(stopped, folder, monkeypatch)
    evaluate(stopped, model_of(stopped))
    assert evaluated == list(stopped.DATASETS.TEST)


@pytest.mark.slow
def test_the_command_says_how_it_continues_and_does(folder, evaluated, monkeypatch, capsys):
    cfg = config_of(folder, "command", "MODEL.WEIGHTS", str(folder / "start.pth"))
    (folder / "run.yaml").write_text(cfg.dump())
    AnosegCheckpointer(model_of(cfg), str(folder)).save("start")
    command = ["--config-file", str(folder / "run.yaml"), "--eval-only"]
    with monkeypatch.context() as patch:
        stop_in_the_second(patch)
        assert train.main(command) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    # With --resume, other weights would be evaluated.
    assert "the same command continues" in last and "--resume" not in last
    assert not (folder / "command" / "report").exists()
    evaluated.clear()
    assert train.main(command) == 0
    assert evaluated == [SECOND]
    assert set(figures(cfg)["datasets"]) == {FIRST, SECOND}
