"""detectron2's `DefaultTrainer` with this project's loaders, optimiser, steps and evaluators."""

import logging
import sys
import weakref
from collections import OrderedDict
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer, TrainerBase, hooks
from detectron2.evaluation import print_csv_format
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter, TensorboardXWriter
from detectron2.utils.logger import setup_logger
from tabulate import tabulate
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from anoseg_d2.checkpoint import AnosegCheckpointer, describe_weights
from anoseg_d2.checkpoint.files import last_checkpoint
from anoseg_d2.checkpoint.from_config import load_weights, resolve_weights
from anoseg_d2.checkpoint.transfer import UNTRAINED
from anoseg_d2.config import check_config
from anoseg_d2.data.builtin import register_cards
from anoseg_d2.data.loader import build_test_loader, build_train_loader, training_dicts
from anoseg_d2.engine.evaluate import (
    build_evaluator,
    evaluate_dataset,
    is_ours,
    measure_ensembles,
    report_evaluation,
)
from anoseg_d2.engine.hooks import (
    BestCheckpointHook,
    CheckpointHook,
    CostHook,
    EvaluationHook,
    LearningRateHook,
    ProgressHook,
    SeedHook,
    StopHook,
    UntaggedCheckpointer,
)
from anoseg_d2.engine.pictures import PictureHook
from anoseg_d2.engine.run_log import StepPrinter, WriterHook, log_data
from anoseg_d2.engine.solver import build_optimizer, build_scheduler
from anoseg_d2.engine.step import StepTrainer
from anoseg_d2.engine.trackers import TrackerWriter, check_tracker
from anoseg_d2.engine.unfinished import UnfinishedEvaluation
from anoseg_d2.modeling.inference import is_out_of_memory
from anoseg_d2.modeling.lora import lora_state_dict
from anoseg_d2.modeling.scores import ensemble_parts
from anoseg_d2.utils.precision import amp_dtype
from anoseg_d2.utils.unwrap import unwrap

__all__ = ["Trainer", "check_inputs", "load_evaluated", "parameter_table"]

logger = logging.getLogger(__name__)

MIB = 2**20


def check_inputs(cfg, training: bool, resume: bool = False) -> None:
    """Find every dataset and the weights before anything long starts.

    Args:
        cfg: config node.
        training: else evaluation.
        resume: OUTPUT_DIR's last checkpoint, if there is one, takes the place of MODEL.WEIGHTS.
    Raises:
        FileNotFoundError, ValueError: what is missing or wrong, and the way out.
    """
    check_config(cfg)
    check_tracker(cfg.TRACKER)
    register_cards(cfg)
    for name in (*(cfg.DATASETS.TRAIN if training else ()), *cfg.DATASETS.TEST):
        if name not in DatasetCatalog.list():
            known = ", ".join(n for n in DatasetCatalog.list() if _is_ours(n))
            raise ValueError(f"no dataset named {name!r} is registered; ours: {known}")
        DatasetCatalog.get(name)
    if training:
        training_dicts(cfg)
    if not cfg.DATASETS.TEST:
        if not training:
            raise ValueError("DATASETS.TEST is empty: --eval-only has nothing to evaluate")
        logger.warning("DATASETS.TEST is empty: the run will end without an evaluation")
    kinds = {MetadataCatalog.get(name).get("evaluator_type") for name in cfg.DATASETS.TEST}
    ensembles = [name for name in cfg.TEST.ANOMALY.SCORES if len(ensemble_parts(name)) > 1]
    if training and ensembles and kinds and "closed_set" not in kinds:
        raise ValueError(
            f"TEST.ANOMALY.SCORES has {', '.join(ensembles)}, which are measured on known pixels "
            "first: DATASETS.TEST needs a closed set"
        )
    if resume and last_checkpoint(Path(cfg.OUTPUT_DIR)) is not None:
        return
    weights = resolve_weights(cfg)
    if weights and "://" not in weights and not Path(weights).exists():
        raise FileNotFoundError(
            f"MODEL.WEIGHTS {weights} does not exist. A stage starts from the checkpoint of the "
            "one before it: train that first, or give MODEL.WEIGHTS the path of its model_final.pth"
        )
    if cfg.MODEL.DELTA_BASE and not weights:
        raise ValueError(
            f"MODEL.DELTA_BASE is {cfg.MODEL.DELTA_BASE}, but MODEL.WEIGHTS is empty: there is "
            "nothing to add it to"
        )
    if not training and resume:
        raise FileNotFoundError(
            f"--eval-only --resume evaluates the last checkpoint of OUTPUT_DIR {cfg.OUTPUT_DIR}, "
            "which has none; leave --resume out to evaluate MODEL.WEIGHTS"
        )
    if not training and not weights:
        raise ValueError(
            "--eval-only needs the checkpoint to evaluate: give MODEL.WEIGHTS, or --resume for the "
            "last checkpoint of OUTPUT_DIR"
        )


def load_evaluated(cfg, model: nn.Module, resume: bool = False) -> None:
    """Load the weights that `--eval-only` evaluates, and note on the model where they are from.

    Args:
        cfg: config node.
        model: built from it.
        resume: load OUTPUT_DIR's last checkpoint instead of MODEL.WEIGHTS.
    Raises:
        FileNotFoundError, ValueError: see `load_weights`.
    """
    cfg = cfg.clone()
    cfg.defrost()
    if resume:
        cfg.MODEL.WEIGHTS = str(last_checkpoint(Path(cfg.OUTPUT_DIR)))
    report = load_weights(cfg, model)
    if report.file is not None and report.file.name == "model_ema.pth":
        model.averaged = True  # files of older versions say it only by their name
    model.run_facts = {"weights": resolve_weights(cfg), **describe_weights(model, report.file)}
    untrained = sorted(name for action in UNTRAINED for name in report.names(action))
    if untrained:  # MODEL.ALLOW_UNTRAINED True
        model.run_facts["untrained_tensors"] = untrained
    logger.info("Evaluating %s", report.source)


def _is_ours(name: str) -> bool:
    return MetadataCatalog.get(name).get("evaluator_type") in ("closed_set", "anomaly")


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
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        self.ema = None
        if cfg.SOLVER.EMA.ENABLED:
            self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(cfg.SOLVER.EMA.DECAY))
            self.ema.module.averaged = True
        clip, amp = cfg.SOLVER.CLIP_GRADIENTS, cfg.SOLVER.AMP
        self._trainer = StepTrainer(
            _distribute(model),
            data_loader,
            optimizer,
            accumulation=cfg.SOLVER.ACCUMULATION,
            dtype=amp_dtype(amp.PRECISION, _device(model)) if amp.ENABLED else None,
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
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg) -> nn.Module:
        """Build MODEL.META_ARCHITECTURE, and log how many parameters it has."""
        model = build_model(cfg)
        if cfg.DATASETS.TRAIN:
            model.class_names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("stuff_classes")
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
        """Build the evaluator of one dataset of DATASETS.TEST."""
        return build_evaluator(cfg, dataset_name, output_folder)

    def build_hooks(self):
        """Build the hooks: seeds, progress, learning rate, checkpoints, stop, evaluation, logs."""
        cfg, device = self.cfg, _device(self.model)
        self.cost = CostHook(device)
        checkpoints = CheckpointHook(
            self.checkpointer,
            cfg.SOLVER.CHECKPOINT_PERIOD,
            cfg.SOLVER.KEEP_CHECKPOINTS,
            None if self.ema is None else self.ema.module,
        )
        stop = StopHook(checkpoints, device)
        evaluate = self._evaluate if cfg.DATASETS.TEST else dict
        result = [
            hooks.IterationTimer(),
            SeedHook(self.seed),
            ProgressHook(),
            LearningRateHook(),  # before the scheduler moves on to the next step's
            hooks.LRScheduler(),
            self.cost,
            # Before the last checkpoint, which keeps the figures.
            hooks.CallbackHook(after_step=_measure_before_the_end),
            checkpoints,
            stop,
            EvaluationHook(cfg.TEST.EVAL_PERIOD, evaluate, stop),
        ]
        if cfg.SOLVER.BEST_FIGURE:
            writer = UntaggedCheckpointer(unwrap(self.model), cfg.OUTPUT_DIR)
            result.append(BestCheckpointHook(writer, cfg.SOLVER.BEST_FIGURE, cfg.TEST.EVAL_PERIOD))
        if comm.is_main_process():
            if cfg.VIS_PERIOD:
                result.append(PictureHook(cfg))
            result.append(WriterHook(self.build_writers()))
        return result

    def build_writers(self):
        """Build what writes figures down: the log, metrics.json, TensorBoard, and a tracker."""
        folder = Path(self.cfg.OUTPUT_DIR)
        folder.mkdir(parents=True, exist_ok=True)
        tracker = [] if self.cfg.TRACKER == "none" else [TrackerWriter(self.cfg)]
        return [
            StepPrinter(self.max_iter),
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
                    "larger SOLVER.MAX_ITER in another OUTPUT_DIR",
                    self.max_iter,
                )
        else:
            load_weights(self.cfg, unwrap(self.model), training=True)
            if self.ema is not None:
                self.ema.module.load_state_dict(unwrap(self.model).state_dict())
        sampler = getattr(self.data_loader, "batch_sampler", None)
        if hasattr(sampler, "start"):  # a loader of the user's own starts where it likes
            sampler.start = self.start_iter * self.cfg.SOLVER.ACCUMULATION

    def train(self):
        """Train, and evaluate at the end.

        Returns:
            results, if TEST.EXPECTED_RESULTS are verified, as `DefaultTrainer.train`.
        """
        with _TracebackOnlyInFiles():
            try:
                return super().train()
            except KeyError as error:
                # detectron2 looks the names of TEST.EXPECTED_RESULTS up when all is done.
                wanted = [entry[0] for entry in self.cfg.TEST.EXPECTED_RESULTS]
                found = getattr(self, "_last_eval_results", None)
                if found is None or error.args[0] not in wanted:
                    raise
                raise ValueError(
                    f"TEST.EXPECTED_RESULTS names {error.args[0]!r}; what was evaluated: "
                    f"{', '.join(found)}"
                ) from None

    def run_step(self):
        """Take one step.

        Raises:
            FloatingPointError: loss or gradient is not finite; the last good checkpoint is named.
            MemoryError: names the keys that reduce what a step needs.
        """
        try:
            super().run_step()
        except FloatingPointError as error:
            good = last_checkpoint(Path(self.cfg.OUTPUT_DIR))
            raise FloatingPointError(
                f"{error}. Last good checkpoint: {good or 'none'}; look at the images, or lower "
                "SOLVER.BASE_LR"
            ) from None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(
                f"step {self.iter} ran out of memory: {self.memory_needs()}. "
                f"{_ways_to_need_less(self.cfg)} ({str(error).splitlines()[0]})"
            ) from None
        if self.iter == self.start_iter:
            logger.info("This run needs about %s", self.memory_needs())

    def memory_needs(self) -> str:
        """Memory of a step in words; activations are those that the first step saved."""
        parameters = list(unwrap(self.model).parameters())
        everything = sum(p.nbytes for p in parameters)
        trained = sum(p.nbytes for p in parameters if p.requires_grad)
        parts = {
            "parameters": everything,
            "gradients": trained,
            "optimiser": 2 * trained,
            "averaged copy": everything if self.ema is not None else 0,
            "activations": self._trainer.activation_bytes or 0,
        }
        words = [f"{name} {size / MIB:,.1f} MiB" for name, size in parts.items() if size]
        total = f"{sum(parts.values()) / MIB:,.1f} MiB per process ({', '.join(words)})"
        if self.cfg.MODEL.EOMT.RECOMPUTE != "none":
            # Pieces that are not kept come and go, which the count after the forward pass misses.
            total += ", and for a moment one prediction's or block's activations"
        return total

    def _evaluate(self):
        core = unwrap(self.model)
        finished = self.iter >= self.max_iter
        if not finished:
            core.score_statistics = {}  # those of earlier weights
        facts = {"step": min(self.iter + 1, self.max_iter), **self.cost.facts()}
        final = Path(self.cfg.OUTPUT_DIR) / "model_final.pth"
        core.run_facts = facts | _saved_weights(core, final, finished)
        self._last_eval_results = self.test(self.cfg, self.model)
        if self.ema is not None:
            averaged = self.ema.module
            if not finished:
                averaged.score_statistics = {}
            file = final.with_name("model_ema.pth")
            averaged.run_facts = facts | _saved_weights(averaged, file, finished)
            cfg = self.cfg.clone()
            cfg.defrost()
            cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / "ema")
            for name, figures in self.test(cfg, averaged).items():
                self._last_eval_results[f"{name}_ema"] = figures
        return self._last_eval_results

    @classmethod
    def test(cls, cfg, model, evaluators=None, *, unfinished: UnfinishedEvaluation | None = None):
        """Evaluate a model on DATASETS.TEST and write the report under OUTPUT_DIR.

        Args:
            cfg: config node.
            model: with its weights; left in the mode it came in.
            evaluators: one per dataset; None asks `build_evaluator`.
            unfinished: datasets that an interrupted evaluation has finished; they are part of the
                report, but not evaluated again. None evaluates all.
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
        results = OrderedDict()
        for name, evaluator in by_name.items():
            if unfinished is not None and unfinished.has(name):
                logger.info("%s was evaluated before the interruption; its figures are kept", name)
                continue
            loader = cls.build_test_loader(cfg, name)
            results[name] = evaluate_dataset(name, core, loader, evaluator)
            if comm.is_main_process() and not is_ours(evaluator):
                print_csv_format(results[name])
            if unfinished is not None:
                unfinished.add(name)
        if comm.is_main_process():
            report_evaluation(cfg, core, by_name)
        if unfinished is not None:
            unfinished.end()
        comm.synchronize()
        return results if len(results) != 1 else next(iter(results.values()))


def _saved_weights(model: nn.Module, file: Path, finished: bool) -> dict:
    """Say which weights are evaluated; in the middle of a run they are in no file."""
    if not comm.is_main_process():
        return {}
    saved = file if finished and file.is_file() else None
    return {"weights": saved and str(saved), **describe_weights(model, saved)}


def _measure_before_the_end(trainer) -> None:
    """Measure ensembles in the last step, so that the last checkpoint has what they need."""
    if trainer.iter + 1 >= trainer.max_iter and trainer.cfg.DATASETS.TEST:
        models = [unwrap(trainer.model)] + ([] if trainer.ema is None else [trainer.ema.module])
        for model in models:
            if hasattr(model, "score_statistics"):
                model.score_statistics = {}
                measure_ensembles(trainer.cfg, model, trainer.build_test_loader)


class _TracebackOnlyInFiles(logging.Filter):
    """Keep detectron2's "Exception during training" off the terminal, in the log file only."""

    def filter(self, record):
        return not str(record.msg).startswith("Exception during training")

    def __enter__(self):
        # Its log file goes through a plain stream as well, so the type of a handler says nothing.
        handlers = logging.getLogger("detectron2").handlers
        self._handlers = [h for h in handlers if h.stream in (sys.stdout, sys.stderr)]
        for handler in self._handlers:
            handler.addFilter(self)

    def __exit__(self, *_):
        for handler in self._handlers:
            handler.removeFilter(self)


def _device(model: nn.Module) -> torch.device:
    return next(unwrap(model).parameters()).device


def _ways_to_need_less(cfg) -> str:
    """Name the keys, and only those, that this run does not use to the full already."""
    ways = [f"SOLVER.ACCUMULATION {2 * cfg.SOLVER.ACCUMULATION} halves the activations"]
    if cfg.MODEL.EOMT.RECOMPUTE != "all":
        more = "heads or all" if cfg.MODEL.EOMT.RECOMPUTE == "none" else "all"
        ways.append(f"MODEL.EOMT.RECOMPUTE {more} keeps fewer of them")
    if not cfg.MODEL.LORA.ENABLED:
        ways.append("MODEL.LORA.ENABLED True drops most gradients and optimiser state")
    elif not cfg.MODEL.LORA.BLOCKS:
        ways.append("MODEL.LORA.BLOCKS [first, last] keeps nothing of the blocks before the first")
    return f"{', '.join(ways)}, and a smaller INPUT.CROP_SIZE takes less of everything"


def _distribute(model: nn.Module) -> nn.Module:
    if comm.get_world_size() == 1:
        return model
    device = _device(model)
    device_ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)


def parameter_table(model: nn.Module) -> str:
    """What trains: total, trainable, only the adapters, and the memory that training them takes.

    Gradients and AdamW's two moments are counted at 4 bytes each; activations are not.
    """
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    adapters = sum(value.numel() for value in lora_state_dict(model).values())
    rows = [
        [name, f"{count:,}", f"{100 * count / max(total, 1):.2f} %", memory]
        for name, count, memory in (
            ("all parameters", total, ""),
            ("trainable", trainable, f"{12 * trainable / MIB:,.1f} MiB"),
            ("only LoRA adapters", adapters, f"{12 * adapters / MIB:,.1f} MiB"),
        )
    ]
    return tabulate(rows, headers=["", "parameters", "fraction", "gradients + AdamW state"])
