"""A run that is stopped or killed and resumed equals the undisturbed run to the last bit."""

import faulthandler
import gc
import os
import signal
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from runs import small_run

from anoseg_d2.engine import Trainer, check_inputs
from anoseg_d2.utils.files import read_json


class Killed(Exception):
    """Stands for kill -9: no hook after it saves anything."""


class KillAt(HookBase):
    """End the process's training at the start of a step, at its end, or in its evaluation."""

    def __init__(self, step, where="before"):
        self.step, self.where = step, where

    def before_step(self):
        if self.where == "before" and self.trainer.iter == self.step:
            raise Killed

    def after_step(self):
        if self.where == "after" and self.trainer.iter == self.step:
            raise Killed


def trained(cfg, resume=False, hook=None, kind=Trainer):
    check_inputs(cfg, training=True, resume=resume)
    torch.manual_seed(0)
    trainer = kind(cfg)
    if hook is not None:
        trainer.register_hooks([hook])
    trainer.resume_or_load(resume=resume)
    torch.rand(17)  # what the process has drawn before does not matter
    trainer.train()
    return trainer


def assert_equal(found, expected, where=""):
    """Nested states are equal to the last bit."""
    assert type(found) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key, value in expected.items():
            assert_equal(found[key], value, f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for index, value in enumerate(expected):
            assert_equal(found[index], value, f"{where}[{index}]")
    else:
        assert found == expected, where


RANDOM = ("MODEL.CRITERION.MATCH_POINTS", 20, "MODEL.CRITERION.LOSS_POINTS", 20)
LORA = ("MODEL.LORA.ENABLED", True, "MODEL.LORA.RANK", 2, "MODEL.LORA.DROPOUT", 0.3)
FP16 = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "fp16")
RATIO = ("MODEL.EOMT.ANOMALY_CLASS", True, "MODEL.RATIO.ENABLED", True)
# Name: step at which the run is killed, where in it, and what is set. Ten steps of two images;
# four images are an epoch, and a checkpoint is written after every second step.
CASES = {
    "at an epoch's end": (4, "before", ()),
    "in the middle of an epoch": (5, "after", ()),
    "inside accumulation": (3, "before", ("SOLVER.ACCUMULATION", 2)),
    "in the last warm-up step": (
        4,
        "before",
        ("SOLVER.WARMUP_NEW", 0.2, "SOLVER.WARMUP_VIT", 0.3),
    ),
    "inside annealing": (5, "before", ("MODEL.EOMT.MASKED_ATTENTION", True)),
    "with averaging": (5, "before", ("SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.5)),
    "with LoRA's dropout": (5, "before", LORA),
    "with the ratio head": (5, "before", RATIO),
    "with stochastic depth": (6, "before", ("MODEL.EOMT.DROP_PATH", 0.4)),
    "with the float16 scaler": (5, "before", FP16),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, case):
    step, where, overrides = CASES[case]
    common = ("SOLVER.MAX_ITER", 10, "SOLVER.CHECKPOINT_PERIOD", 2, *RANDOM, *overrides)
    anomaly = overrides is RATIO
    through = trained(small_run(tmp_path, "through", *common, anomaly=anomaly))
    cfg = small_run(tmp_path, "killed", *common, anomaly=anomaly)
    with pytest.raises(Killed):
        trained(cfg, hook=KillAt(step, where))
    resumed = trained(cfg, resume=True)
    assert 0 < resumed.start_iter <= step + 1
    assert_equal(resumed.model.state_dict(), through.model.state_dict(), "weights")
    assert_equal(resumed._trainer.state_dict(), through._trainer.state_dict(), "trainer")
    assert_equal(resumed.scheduler.state_dict()["last_epoch"], 10)
    if through.ema is not None:
        assert_equal(resumed.ema.state_dict(), through.ema.state_dict(), "average")


def _killed_and_resumed_on_rank(rank, folder, configs):
    """Compare a run on one of two processes with one that was killed before its sixth step."""
    faulthandler.enable()  # a crash in native code names its line
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    comm.create_local_process_group(2)
    for name, (through_cfg, killed_cfg) in configs.items():
        through = trained(through_cfg)
        with pytest.raises(Killed):
            trained(killed_cfg, hook=KillAt(5))
        torch.distributed.barrier()
        resumed = trained(killed_cfg, resume=True)
        assert resumed.start_iter == 4, name
        assert_equal(resumed.model.state_dict(), through.model.state_dict(), name)
        assert_equal(resumed._trainer.state_dict(), through._trainer.state_dict(), name)
        if through.ema is not None:
            assert_equal(resumed.ema.state_dict(), through.ema.state_dict(), name)
        weights = [comm.all_gather(v) for v in resumed.model.state_dict().values()]
        assert all(torch.equal(*pair) for pair in weights), name
        del through, resumed
        gc.collect()  # a killed run's model is in a cycle with its trainer
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    Path(folder, f"compared_on_rank{rank}").write_text(" ".join(configs), encoding="utf-8")
    # All is compared; how the interpreter takes torch apart afterwards is not what is tested here.
    os._exit(0)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_a_killed_run_on_two_processes_resumes_to_the_same_bits(tmp_path):
    common = ("SOLVER.MAX_ITER", 10, "SOLVER.CHECKPOINT_PERIOD", 2, *RANDOM)
    averaged = ("SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.5)
    accumulated = ("SOLVER.IMS_PER_BATCH", 4, "SOLVER.ACCUMULATION", 2)
    cases = {"LoRA": (*LORA, *averaged, *accumulated), "float16": FP16, "ratio": RATIO}
    configs = {
        name: [
            small_run(tmp_path / name, run, *common, *more, anomaly=more is RATIO)
            for run in ("through", "killed")
        ]
        for name, more in cases.items()
    }
    torch.multiprocessing.spawn(_killed_and_resumed_on_rank, (str(tmp_path), configs), nprocs=2)
    for rank in range(2):  # each compares by itself, and leaves without the interpreter's clean-up
        assert (tmp_path / f"compared_on_rank{rank}").read_text() == "LoRA float16 ratio"


@pytest.mark.slow
def test_a_run_killed_in_an_evaluation_resumes_to_the_same_bits(tmp_path):
    class Mine(Trainer):
        kill = False

        @classmethod
        def build_evaluator(cls, cfg, dataset_name, output_folder=None):
            if cls.kill:
                raise Killed
            return super().build_evaluator(cfg, dataset_name, output_folder)

    common = ("SOLVER.MAX_ITER", 8, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 3, *RANDOM)
    through = trained(small_run(tmp_path, "through", *common, tested=True))
    cfg = small_run(tmp_path, "killed", *common, tested=True)
    check_inputs(cfg, training=True)
    torch.manual_seed(0)
    Mine.kill = True
    first = Mine(cfg)
    first.resume_or_load(resume=False)
    with pytest.raises(Killed):
        first.train()
    resumed = trained(cfg, resume=True)
    assert resumed.start_iter == 2
    assert_equal(resumed.model.state_dict(), through.model.state_dict(), "weights")


def test_resuming_does_not_need_the_weights_that_the_run_started_from(tmp_path):
    cfg = small_run(tmp_path)
    trained(cfg)
    cfg.MODEL.WEIGHTS = "stage/that/is/gone.pth"
    check_inputs(cfg, training=True, resume=True)
    with pytest.raises(FileNotFoundError, match="gone.pth does not exist"):
        check_inputs(cfg, training=True, resume=False)


def test_resuming_a_run_that_is_complete_says_so_and_changes_nothing(tmp_path, caplog):
    cfg = small_run(tmp_path)
    through = trained(cfg)
    before = (tmp_path / "run" / "model_final.pth").read_bytes()
    resumed = trained(cfg, resume=True)
    assert "all 5 steps are done: only the evaluation follows" in caplog.text
    assert_equal(resumed.model.state_dict(), through.model.state_dict(), "weights")
    assert (tmp_path / "run" / "model_final.pth").read_bytes() == before


def test_a_signal_in_the_last_step_leaves_a_complete_run(tmp_path):
    class Press(HookBase):
        def before_step(self):
            if self.trainer.iter == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        trained(small_run(tmp_path), hook=Press())
    names = sorted(path.name for path in (tmp_path / "run").glob("*.pth"))
    assert names == ["model_final.pth"]


@pytest.mark.slow
def test_a_second_signal_in_an_evaluation_ends_it_and_the_run_resumes_to_the_same_bits(tmp_path):
    class Pressed(Trainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name, output_folder=None):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the evaluation went on")

    common = ("SOLVER.MAX_ITER", 8, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 3, *RANDOM)
    through = trained(small_run(tmp_path, "through", *common, tested=True))
    cfg = small_run(tmp_path, "stopped", *common, tested=True)
    with pytest.raises(KeyboardInterrupt):
        trained(cfg, kind=Pressed)
    assert (tmp_path / "stopped" / "last_checkpoint").read_text() == "model_0000001.pth"
    resumed = trained(cfg, resume=True)
    assert_equal(resumed.model.state_dict(), through.model.state_dict(), "weights")


def test_only_the_newest_checkpoints_stay_and_none_is_written_twice(tmp_path):
    cfg = small_run(
        tmp_path,
        "run",
        *("SOLVER.MAX_ITER", 8, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.KEEP_CHECKPOINTS", 2),
    )
    trained(cfg)
    names = sorted(path.name for path in (tmp_path / "run").glob("*.pth"))
    assert names == ["model_0000003.pth", "model_0000005.pth", "model_final.pth"]


@pytest.mark.slow
def test_the_best_checkpoint_is_that_of_the_named_figure(tmp_path):
    cfg = small_run(
        tmp_path,
        "run",
        *("SOLVER.MAX_ITER", 6, "TEST.EVAL_PERIOD", 2, "SOLVER.BEST_FIGURE", "closed_set/mIoU"),
        tested=True,
    )
    trainer = trained(cfg)
    tag = f"{cfg.DATASETS.TEST[0]}/closed_set/mIoU"  # the same however many sets there are
    history = [value for value, _ in trainer.storage.history(tag).values()]
    steps = [step for _, step in trainer.storage.history(tag).values()]
    saved = torch.load(tmp_path / "run" / "model_best.pth", weights_only=True)
    best = history.index(max(history))
    assert saved["iteration"] == (steps[best] if best < len(steps) - 1 else 6)
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.slow
def test_a_run_that_gets_no_better_ends_as_one_that_is_complete(tmp_path):
    cfg = small_run(
        tmp_path,
        "run",
        *("SOLVER.MAX_ITER", 20, "TEST.EVAL_PERIOD", 2, "SOLVER.BASE_LR", 0.0),
        *("SOLVER.BEST_FIGURE", "closed_set/mIoU", "SOLVER.PATIENCE", 2),
        tested=True,
    )
    trained(cfg)
    folder = tmp_path / "run"
    # The first of three equal figures is the best; one more step follows the third.
    assert torch.load(folder / "model_final.pth", weights_only=True)["iteration"] == 6
    assert torch.load(folder / "model_best.pth", weights_only=True)["iteration"] == 1
    assert read_json(folder / "report/results.json")["model"]["step"] == 7
    assert trained(cfg, resume=True).iter == 9, "a resumed run stays as patient as it was"


@pytest.mark.slow
def test_averaged_weights_are_a_checkpoint_that_loads(tmp_path, tiny_cfg):
    from anoseg_d2 import AnomalyPredictor

    trainer = trained(small_run(tmp_path, "run", "SOLVER.EMA.ENABLED", True, tested=True))
    predictor = AnomalyPredictor.from_pretrained(
        str(tmp_path / "run" / "model_ema.pth"), ["MODEL.DEVICE", "cpu"]
    )
    assert_equal(predictor.model.state_dict(), trainer.ema.module.state_dict())
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_final.pth"
