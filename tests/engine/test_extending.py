"""A user's own parts: every build method is the road, and docs/extending.md runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.engine.hooks import CallbackHook
from runs import small_run

from anoseg_d2 import AnomalyPredictor, EoMT, Trainer
from anoseg_d2.checkpoint import AnosegCheckpointer
from anoseg_d2.engine import check_inputs

DOCUMENT = Path(__file__).parents[2] / "docs" / "extending.md"


def example(word):
    """Run the snippet of the document that has a word, and return its trainer."""
    for snippet in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S):
        if word in snippet:
            scope = {"__name__": "example"}
            exec(compile(snippet, str(DOCUMENT), "exec"), scope)
            return scope["Trainer"]
    raise AssertionError(f"{DOCUMENT} has no {word}")


def trained(cfg, trainer_class=Trainer):
    check_inputs(cfg, training=True)
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer


def test_each_overridden_build_method_takes_effect(tmp_path):
    calls = []

    class Mine(Trainer):
        @classmethod
        def build_model(cls, cfg):
            calls.append("model")
            model = super().build_model(cfg)
            model.mine = True
            return model

        @classmethod
        def build_optimizer(cls, cfg, model):
            calls.append("optimizer")
            return torch.optim.SGD(model.parameters(), lr=0.5)

        @classmethod
        def build_lr_scheduler(cls, cfg, optimizer):
            calls.append("scheduler")
            return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=0.25, total_iters=100)

        @classmethod
        def build_train_loader(cls, cfg):
            calls.append("train loader")
            stream = iter(super().build_train_loader(cfg))
            return [next(stream) for _ in range(5)]

        @classmethod
        def build_test_loader(cls, cfg, dataset_name):
            calls.append(f"test loader {dataset_name}")
            return super().build_test_loader(cfg, dataset_name)

        @classmethod
        def build_evaluator(cls, cfg, dataset_name, output_folder=None):
            calls.append(f"evaluator {dataset_name}")
            return super().build_evaluator(cfg, dataset_name, output_folder)

        def build_hooks(self):
            steps = CallbackHook(after_step=lambda trainer: calls.append("step"))
            return [*super().build_hooks(), steps]

        @classmethod
        def test(cls, cfg, model, evaluators=None, **more):
            calls.append("test")
            assert model.mine
            return super().test(cfg, model, evaluators, **more)

    cfg = small_run(tmp_path, tested=True)
    trainer = trained(cfg, Mine)
    name = cfg.DATASETS.TEST[0]
    assert calls[:4] == ["model", "optimizer", "train loader", "scheduler"]
    assert calls[4:9] == ["step"] * 5
    assert calls[9:] == ["test", f"evaluator {name}", f"test loader {name}"]
    assert type(trainer.optimizer) is torch.optim.SGD
    assert trainer.optimizer.param_groups[0]["lr"] == 0.125
    assert len(trainer.data_loader) == 5
    assert (tmp_path / "run" / "report" / "results.json").is_file()


def test_trainer_has_the_attributes_that_detectron2s_own_sets(tmp_path):
    class Plain(DefaultTrainer):
        """Detectron2's own, with our parts; it shows what users may expect to find."""

        build_model = Trainer.build_model
        build_optimizer = Trainer.build_optimizer
        build_lr_scheduler = Trainer.build_lr_scheduler
        build_train_loader = Trainer.build_train_loader

    cfg = small_run(tmp_path)
    check_inputs(cfg, training=True)
    assert vars(Plain(cfg)).keys() <= vars(Trainer(cfg)).keys()


def registered(folder, entry=lambda entry: entry, **metadata):
    """Register a set as detectron2's documentation says; returns a config that trains on it."""
    cfg = small_run(folder, tested=True)
    files = [folder / "data" / part / "0.png" for part in ("images", "labels")]
    size = {"height": 32, "width": 32}
    images = [entry({"file_name": str(files[0]), "sem_seg_file_name": str(files[1]), **size})] * 2
    name = f"theirs_{folder.name}"
    DatasetCatalog.register(name, lambda: images)
    MetadataCatalog.get(name).set(**metadata)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.DATASETS.CARDS = []
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize("metadata", [{}, {"ignore_label": 255, "evaluator_type": "sem_seg"}])
def test_a_set_of_detectron2s_catalog_trains_and_is_evaluated(tmp_path, metadata):
    cfg = registered(tmp_path, stuff_classes=["road", "car", "sky"], **metadata)
    trainer = trained(cfg)
    assert trainer.core.info.class_names == ("road", "car", "sky")
    assert "mIoU" in str(trainer._last_eval_results)


def test_what_a_set_of_detectron2s_catalog_lacks_is_named(tmp_path):
    with pytest.raises(ValueError, match="stuff_classes"):
        check_inputs(registered(tmp_path / "a"), training=True)
    cfg = registered(
        tmp_path / "b", lambda entry: {"file_name": "a.jpg"}, stuff_classes=["road", "car", "sky"]
    )
    with pytest.raises(ValueError, match="sem_seg_file_name"):
        check_inputs(cfg, training=True)


def test_samples_of_detectron2s_own_mapper_are_refused_by_a_reason(tmp_path):
    cfg = small_run(tmp_path, "run", "SOLVER.CLIP_GRADIENTS.ENABLED", False)
    check_inputs(cfg, training=True)
    trainer = DefaultTrainer(cfg)
    with pytest.raises(ValueError, match=r"anoseg_d2\.Trainer"):
        trainer.train()


def test_the_mapper_of_the_document_darkens_what_is_trained_on(tmp_path):
    cfg = small_run(tmp_path)
    check_inputs(cfg, training=True)
    plain = next(iter(Trainer.build_train_loader(cfg)))
    dark = next(iter(example("DarkMapper").build_train_loader(cfg)))
    for ours, theirs in zip(plain, dark, strict=True):
        assert torch.equal(ours["image"] // 2, theirs["image"])


def test_the_evaluator_of_the_document_gives_its_figure(tmp_path):
    trainer = trained(small_run(tmp_path, tested=True), example("MeanScore"))
    assert -4 < trainer._last_eval_results["anomaly"]["mean_rba"] < 0


def test_detectron2s_semantic_evaluator_agrees_with_ours(tmp_path):
    ours = trained(small_run(tmp_path, "ours", tested=True))
    cfg = small_run(tmp_path, "theirs", tested=True)
    theirs = example("SemSegEvaluator").test(cfg, same_model(cfg, ours))
    expected = ours._last_eval_results["closed_set"]
    assert theirs["sem_seg"]["mIoU"] == pytest.approx(expected["mIoU"])
    assert theirs["sem_seg"]["pACC"] == pytest.approx(expected["pixel_accuracy"])


def same_model(cfg, trainer):
    model = EoMT(cfg)
    model.load_state_dict(trainer.model.state_dict())
    return model


def test_the_optimiser_of_the_document_trains(tmp_path):
    trainer = trained(small_run(tmp_path), example("optim.SGD"))
    assert type(trainer.optimizer) is torch.optim.SGD
    assert trainer.scheduler.last_epoch == 5


@pytest.mark.parametrize("size", [(32, 32), (40, 100)])
def test_default_predictor_gives_the_scores_of_ours(tiny_cfg, tmp_path, size):
    cfg = tiny_cfg("MODEL.WEIGHTS", str(tmp_path / "model.pth"))
    AnosegCheckpointer(EoMT(cfg), str(tmp_path)).save("model")
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    ours, theirs = AnomalyPredictor(cfg)(image), DefaultPredictor(cfg)(image)
    assert set(ours["scores"]) == set(theirs["scores"])
    for name, score in ours["scores"].items():
        assert np.array_equal(score, theirs["scores"][name].numpy()), name
    assert np.array_equal(ours["sem_seg"], theirs["sem_seg"].numpy())
