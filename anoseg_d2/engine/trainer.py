"""detectron2's `DefaultTrainer` with this project's loaders, optimiser, steps and evaluators."""

import contextlib
import logging
import weakref
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, TrainerBase, create_ddp_model
from detectron2.engine.hooks import (
    CallbackHook,
    EvalHook,
    IterationTimer,
    LRScheduler,
    PeriodicWriter,
)
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from anoseg_d2.checkpoint import AnosegCheckpointer, describe_weights
from anoseg_d2.checkpoint.files import last_checkpoint
from anoseg_d2.checkpoint.from_config import load_weights
from anoseg_d2.config import check_config
from anoseg_d2.data.builtin import complete_dataset
from anoseg_d2.data.loader import build_test_loader, build_train_loader
from anoseg_d2.engine import hooks
from anoseg_d2.engine.evaluate import OURS, measure_ensembles, report_evaluation
from anoseg_d2.engine.run_log import log_data, parameter_table
from anoseg_d2.engine.solver import build_optimizer, build_scheduler
from anoseg_d2.engine.step import StepTrainer
from anoseg_d2.engine.trackers import TRACKERS
from anoseg_d2.engine.unfinished import UnfinishedEvaluation
from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator
from anoseg_d2.evaluation.closed_set_evaluation import ClosedSetEvaluator
from anoseg_d2.modeling.eomt import EoMT
from anoseg_d2.utils.precision import amp_dtype
from anoseg_d2.utils.unwrap import unwrap

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """detectron2's trainer; override any of its `build_*` methods to change one thing.

    `DefaultTrainer.__init__` is not called, but repeated with three differences: it gives
    DistributedDataParallel a `device_ids`, which torch refuses on CPUs; its mixed precision needs
    CUDA and float16; and its checkpointer unpickles. The order of the `build_*` calls and the
    attributes are its own.

    Args:
        cfg: config node.
    """

    def __init__(self, cfg):
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        check_config(cfg)
        # Batch, steps and rate of a config that was written for another number of ranks.
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        self.ema = None
        if cfg.SOLVER.EMA.ENABLED:
            self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(cfg.SOLVER.EMA.DECAY))
            if isinstance(model, EoMT):
                self.ema.module.info = replace(model.info, averaged=True)
        clip, amp, device = cfg.SOLVER.CLIP_GRADIENTS, cfg.SOLVER.AMP, _device(model)
        ids = [device.index] if device.type == "cuda" else None
        self._trainer = StepTrainer(
            create_ddp_model(model, broadcast_buffers=False, device_ids=ids),
            data_loader,
            optimizer,
            accumulation=cfg.SOLVER.ACCUMULATION,
            dtype=amp_dtype(amp.PRECISION, device) if amp.ENABLED else None,
            clip_norm=clip.CLIP_VALUE if clip.ENABLED else 0.0,
            ema=self.ema,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        averaged = {} if self.ema is None else {"ema": self.ema}
        self.checkpointer = AnosegCheckpointer(
            model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self), **averaged
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        if comm.is_main_process():
            log_data(cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
        # The same on every rank: each step's seed adds the rank to it.
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg) -> nn.Module:
        """Build MODEL.META_ARCHITECTURE, and log how many parameters it has."""
        model = build_model(cfg)
        if cfg.DATASETS.TRAIN and isinstance(model, EoMT):
            # Pictures and exports name classes long after the data set is out of reach.
            names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("stuff_classes")
            model.info = replace(model.info, class_names=names and tuple(names))
        logger.info("Parameters:\n%s", parameter_table(model))
        return model

    @classmethod
    def build_optimizer(cls, cfg, model: nn.Module) -> torch.optim.Optimizer:
        """Build AdamW with a learning rate per block; see `solver.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer: torch.optim.Optimizer):
        """Build the two-stage warm-up and polynomial decay; see `solver.build_scheduler`."""
        return build_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg):
        """Build the endless loader of micro-batches; see `data.loader.build_train_loader`."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name: str):
        """Build the loader of one dataset of DATASETS.TEST."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name: str, output_folder: str | None = None):
        """Build the evaluator for a dataset's `evaluator_type`.

        Args:
            cfg: config node; TEST is read.
            dataset_name: of DATASETS.TEST.
            output_folder: where figures are left for the report; OUTPUT_DIR by default.
        """
        complete_dataset(dataset_name, needed=True)
        folder, options = output_folder or cfg.OUTPUT_DIR, cfg.TEST.ANOMALY
        if MetadataCatalog.get(dataset_name).evaluator_type != "closed_set":
            return AnomalyEvaluator(
                dataset_name,
                options.SCORES or None,  # None: all that the model gives
                folder,
                components=options.COMPONENTS,
                exact=options.EXACT,
                keep_images=options.REPORT_IMAGES,
            )
        return ClosedSetEvaluator(dataset_name, folder, keep_images=options.REPORT_IMAGES)

    def build_hooks(self):
        """Build the hooks: seeds, progress, learning rate, checkpoints, stop, evaluation, logs."""
        cfg, device = self.cfg, _device(self.model)
        self.cost = hooks.CostHook(device)
        checkpoints = hooks.CheckpointHook(
            self.checkpointer,
            cfg.SOLVER.CHECKPOINT_PERIOD,
            cfg.SOLVER.KEEP_CHECKPOINTS,
            None if self.ema is None else self.ema.module,
        )
        evaluate = self._evaluate if cfg.DATASETS.TEST else dict
        result = [
            IterationTimer(),
            hooks.SeedHook(self.seed),
            hooks.ProgressHook(),
            hooks.LearningRateHook(),  # before the scheduler moves on to the next step's
            LRScheduler(),
            self.cost,
            # Before the last checkpoint, which keeps the figures.
            CallbackHook(after_step=_measure_before_the_end),
            checkpoints,
            hooks.StopHook(checkpoints, device),
            EvalHook(cfg.TEST.EVAL_PERIOD, evaluate),
        ]
        if cfg.SOLVER.BEST_FIGURE:
            writer = hooks.UntaggedCheckpointer(self.core, cfg.OUTPUT_DIR)
            figure, period = cfg.SOLVER.BEST_FIGURE, cfg.TEST.EVAL_PERIOD
            result.append(hooks.BestCheckpointHook(writer, figure, period, cfg.SOLVER.PATIENCE))
        if comm.is_main_process():
            result.append(PeriodicWriter(self.build_writers(), period=10))
        return result

    def build_writers(self):
        """Build the writers of figures: the log, metrics.json, TensorBoard and a tracker."""
        folder = Path(self.cfg.OUTPUT_DIR)
        folder.mkdir(parents=True, exist_ok=True)
        tracker = [TRACKERS[self.cfg.TRACKER](self.cfg)] if self.cfg.TRACKER != "none" else []
        return [
            CommonMetricPrinter(self.max_iter),
            JSONWriter(str(folder / "metrics.json")),
            *tracker,
            TensorboardXWriter(str(folder)),
        ]

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from OUTPUT_DIR's last checkpoint if asked and there is one; else load weights.

        A run continues as if it had not stopped: with as many ranks as before, weights, optimiser,
        averages and scaler end equal to the last bit on a CPU.
        """
        if resume and self.checkpointer.has_checkpoint():
            self.checkpointer.resume_or_load("", resume=True)
            self.start_iter = self.iter + 1
            logger.info("Resuming at step %d of %d", self.start_iter, self.max_iter)
            if self.start_iter >= self.max_iter:
                logger.warning(
                    "all %d steps are done: only the evaluation follows. Train longer with a "
                    "larger SOLVER.MAX_ITER",
                    self.max_iter,
                )
        else:
            load_weights(self.cfg, self.core, training=True)
            if self.ema is not None:
                # It was copied from a model without weights.
                self.ema.module.load_state_dict(self.core.state_dict())
        sampler = getattr(self.data_loader, "batch_sampler", None)
        if hasattr(sampler, "start"):  # a user's own loader may have no start
            sampler.start = self.start_iter * self.cfg.SOLVER.ACCUMULATION

    def train(self):
        """Run `DefaultTrainer.train`, which SOLVER.PATIENCE may end before SOLVER.MAX_ITER."""
        with contextlib.suppress(_EndedEarly):
            return super().train()

    def after_step(self):
        """Run the hooks, and end the run after its last step, which a hook may have moved."""
        super().after_step()
        if self.iter + 1 == self.max_iter < self.cfg.SOLVER.MAX_ITER:
            self.iter += 1  # as after the last step of all: the run is complete
            raise _EndedEarly

    def run_step(self):
        """Take one step.

        Raises:
            FloatingPointError: loss or gradient is not finite; the last good checkpoint is named.
        """
        try:
            super().run_step()
        except FloatingPointError as error:
            good = last_checkpoint(Path(self.cfg.OUTPUT_DIR))
            raise FloatingPointError(
                f"{error}. Last good checkpoint: {good or 'none'}; look at the images, or lower "
                "SOLVER.BASE_LR"
            ) from None

    @property
    def core(self) -> nn.Module:
        """The network itself, without the wrapper that several processes need."""
        return unwrap(self.model)

    def _evaluate(self):
        """Evaluate the weights of this step, and their average into a folder of its own."""
        finished = self.iter >= self.max_iter
        cost = {"step": min(self.iter + 1, self.max_iter), **self.cost.facts()}

        def evaluate(cfg, model, name):
            if not finished and isinstance(model, EoMT):
                model.info = replace(model.info, score_statistics={})  # those of earlier weights
            facts = dict(cost)
            if comm.is_main_process():  # which writes the report
                file = Path(self.cfg.OUTPUT_DIR) / name
                # In the middle of a run these weights are not in a file yet.
                saved = file if finished and file.is_file() else None
                facts |= {"weights": saved and str(saved), **describe_weights(model, saved)}
            return self.test(cfg, model, facts=facts)

        found = {"": evaluate(self.cfg, self.core, "model_final.pth")}
        if self.ema is not None:
            cfg = self.cfg.clone()
            cfg.defrost()
            cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / "ema")
            found["_ema"] = evaluate(cfg, self.ema.module, "model_ema.pth")
        self._last_eval_results = {
            k + end: v for end, each in found.items() for k, v in each.items()
        }
        names = self.cfg.DATASETS.TEST
        if len(names) > 1:
            return self._last_eval_results
        # `test` leaves out the name of the only dataset; tags of figures always have it.
        return {names[0] + end: each for end, each in found.items()}

    @classmethod
    def test(cls, cfg, model, evaluators=None, *, facts: dict | None = None, resume: bool = False):
        """Evaluate a model on DATASETS.TEST and write the report under OUTPUT_DIR.

        Args:
            cfg: config node.
            model: with its weights; left in the mode it came in.
            evaluators: one per dataset; None asks `build_evaluator`.
            facts: about these weights, for results.json.
            resume: keep the figures of datasets that an interrupted evaluation of the same weights
                has finished.
        Returns:
            as `DefaultTrainer.test`: figures per dataset, or of the only one; without those that
            were not evaluated again.
        """
        core = unwrap(model)
        measure_ensembles(cfg, core, cls.build_test_loader)
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        evaluators = list(evaluators) if isinstance(evaluators, (list, tuple)) else [evaluators]
        by_name = dict(zip(cfg.DATASETS.TEST, evaluators, strict=True))
        unfinished = UnfinishedEvaluation(cfg, core, resume)
        results = OrderedDict()
        for name, evaluator in by_name.items():
            if name in unfinished.finished:
                logger.info("%s was evaluated before the interruption; its figures are kept", name)
                continue
            loader = cls.build_test_loader(cfg, name)
            results[name] = inference_on_dataset(core, loader, evaluator)
            if comm.is_main_process() and not isinstance(evaluator, OURS):
                print_csv_format(results[name])
            unfinished.add(name)
        if comm.is_main_process():
            report_evaluation(cfg, core, by_name, facts)
        unfinished.end()
        comm.synchronize()
        return results if len(results) != 1 else next(iter(results.values()))


class _EndedEarly(BaseException):
    """Leaves the loop of detectron2, which logs the traceback of any `Exception`."""


def _measure_before_the_end(trainer) -> None:
    """Measure ensembles after the last step, so that the last checkpoint holds their statistics."""
    if trainer.iter + 1 >= trainer.max_iter and trainer.cfg.DATASETS.TEST:
        models = [unwrap(trainer.model)] + ([] if trainer.ema is None else [trainer.ema.module])
        for model in models:
            if isinstance(model, EoMT):
                model.info = replace(model.info, score_statistics={})
                measure_ensembles(trainer.cfg, model, trainer.build_test_loader)


def _device(model: nn.Module) -> torch.device:
    return next(unwrap(model).parameters()).device
