"""Training and evaluation on detectron2's trainer: steps, precision, checkpoints, reports."""

import contextlib
import logging
import os
import time
import weakref
from collections import OrderedDict
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer, SimpleTrainer, TrainerBase, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from anoseg_d2.checkpoint import AnosegCheckpointer
from anoseg_d2.data.builtin import register_all, register_cards
from anoseg_d2.data.loader import build_test_loader, build_train_loader, training_dicts
from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator
from anoseg_d2.evaluation.closed_set_evaluation import ClosedSetEvaluator
from anoseg_d2.evaluation.report import write_report
from anoseg_d2.evaluation.score_statistics import ScoreStatistics
from anoseg_d2.hooks import CostHook, ProgressHook, StopHook, unwrap
from anoseg_d2.modeling import eomt  # noqa: F401  registers the meta-architecture
from anoseg_d2.modeling.criterion import present_classes
from anoseg_d2.modeling.lora import parameter_table
from anoseg_d2.modeling.scores import ensemble_parts, single_scores
from anoseg_d2.solver import build_optimizer, build_scheduler
from anoseg_d2.weights import load_weights, resolve_weights

__all__ = ["Trainer", "amp_dtype", "check_inputs", "evaluate", "measure_ensembles"]

logger = logging.getLogger(__name__)


def amp_dtype(cfg, device: torch.device) -> torch.dtype | None:
    """Type of mixed precision, or None for float32.

    Raises:
        ValueError: SOLVER.AMP.PRECISION is not auto, bf16 or fp16.
    """
    known = {"bf16": torch.bfloat16, "fp16": torch.float16}
    precision = cfg.SOLVER.AMP.PRECISION
    if precision not in (*known, "auto"):
        raise ValueError(f"SOLVER.AMP.PRECISION is {precision!r}; allowed: auto, bf16, fp16")
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    if precision != "auto":
        return known[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.bfloat16
    logger.info("SOLVER.AMP.PRECISION auto: this device has no fast bf16; training in float32")
    return None


def check_inputs(cfg, training: bool) -> None:
    """Find every data set and the weights before anything long starts.

    Raises:
        FileNotFoundError, ValueError: what is missing or wrong, and the way out.
    """
    register_all()
    register_cards(cfg)
    for name in (*(cfg.DATASETS.TRAIN if training else ()), *cfg.DATASETS.TEST):
        if name not in DatasetCatalog.list():
            known = ", ".join(n for n in DatasetCatalog.list() if _is_ours(n))
            raise ValueError(f"no data set named {name!r} is registered; ours: {known}")
        DatasetCatalog.get(name)
    if training:
        training_dicts(cfg)
    weights = resolve_weights(cfg)
    if weights and "://" not in weights and not Path(weights).exists():
        raise FileNotFoundError(
            f"MODEL.WEIGHTS {weights} does not exist. A stage starts from the checkpoint of the "
            "one before it: train that first, or give MODEL.WEIGHTS the path of its model_final.pth"
        )
    if not training and not weights:
        raise ValueError("--eval-only needs MODEL.WEIGHTS: the checkpoint to evaluate")


def _is_ours(name: str) -> bool:
    return MetadataCatalog.get(name).get("evaluator_type") in ("closed_set", "anomaly")


def evaluate(
    cfg, model: nn.Module, output_dir: str | None = None, facts: dict | None = None
) -> OrderedDict:
    """Run every data set of DATASETS.TEST and write `report/` under the output folder.

    Args:
        cfg: config node.
        model: in any mode; left in the mode it came in.
        output_dir: where `report/` goes; OUTPUT_DIR by default.
        facts: what else results.json says of the model, such as what its training took.
    Returns:
        figures per data set, for detectron2's printers; empty on ranks other than the first.
    """
    output_dir = output_dir or cfg.OUTPUT_DIR
    measure_ensembles(cfg, unwrap(model))
    results = OrderedDict()
    for name in cfg.DATASETS.TEST:
        evaluator = _build_evaluator(cfg, unwrap(model), name, output_dir)
        figures = inference_on_dataset(unwrap(model), build_test_loader(cfg, name), evaluator)
        if comm.is_main_process():
            results[name] = figures
            print_csv_format(figures)
    if comm.is_main_process() and results:
        path = write_report(
            output_dir,
            list(results),
            model={**_describe(cfg, model), **(facts or {})},
            config=cfg.dump(),
        )
        logger.info("Report: %s", path)
    comm.synchronize()
    return results


def measure_ensembles(cfg, model: nn.Module) -> bool:
    """Measure what the model's ensembles need, on the first closed set of DATASETS.TEST.

    The figures stay with the model (`score_statistics`) and in its next checkpoint.

    Returns:
        whether anything had to be measured.
    Raises:
        ValueError: an ensemble is asked for, its statistics are unknown, and there is no closed
            set to measure them on.
    """
    ensembles = [name for name in model.score_names if len(ensemble_parts(name)) > 1]
    parts = single_scores(ensembles)
    if all(part in model.score_statistics for part in parts):
        return False
    closed = [n for n in cfg.DATASETS.TEST if MetadataCatalog.get(n).evaluator_type == "closed_set"]
    if not closed:
        raise ValueError(
            f"ensembles {', '.join(ensembles)} are measured on known pixels first; "
            "DATASETS.TEST has no closed set"
        )
    logger.info("Measuring %s on %s", ", ".join(parts), closed[0])
    names, model.score_names = model.score_names, parts
    try:
        loader = build_test_loader(cfg, closed[0])
        found = inference_on_dataset(model, loader, ScoreStatistics(closed[0]))
    finally:
        model.score_names = names
    model.score_statistics = {**model.score_statistics, **found}
    return True


def _build_evaluator(cfg, model, name: str, output_dir: str):
    kind = MetadataCatalog.get(name).evaluator_type
    if kind == "closed_set":
        return ClosedSetEvaluator(name, output_dir)
    return AnomalyEvaluator(
        name,
        model.score_names,
        output_dir,
        components=cfg.TEST.ANOMALY.COMPONENTS,
        exact=cfg.TEST.ANOMALY.EXACT,
        keep_images=cfg.TEST.ANOMALY.REPORT_IMAGES,
    )


def _describe(cfg, model: nn.Module) -> dict:
    """What results.json says of the model."""
    core = unwrap(model)
    parameters = list(core.parameters())
    return {
        "weights": resolve_weights(cfg),
        "head": cfg.MODEL.HEAD.NAME,
        "num_known": core.num_known,
        "anomaly_class": core.has_anomaly,
        "lora": bool(cfg.MODEL.LORA.ENABLED),
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "image_size": list(core.image_size),
    }


class StepTrainer(SimpleTrainer):
    """One optimiser step: micro-batches, mixed precision, one clip of the global norm.

    Args:
        model: EoMT, possibly in DistributedDataParallel.
        optimizer: see `solver.build_optimizer`.
        accumulation: micro-batches per step.
        dtype: of autocast; None for float32. float16 scales the loss.
        clip_norm: largest global gradient norm; 0 for no clipping.
        ema: averaged copy to update after each step.
    """

    def __init__(self, model, optimizer, *, accumulation=1, dtype=None, clip_norm=0.0, ema=None):
        super().__init__(model, [], optimizer)
        self.accumulation, self.dtype, self.clip_norm, self.ema = (
            accumulation,
            dtype,
            clip_norm,
            ema,
        )
        self.device_type = unwrap(model).device.type
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=dtype == torch.float16)

    def run_step(self):
        start = time.perf_counter()
        batches = [next(self._data_loader_iter) for _ in range(self.accumulation)]
        data_time = time.perf_counter() - start
        core = unwrap(self.model)
        normalizers = core.criterion.normalizers(
            [len(present_classes(sample["sem_seg"])) for batch in batches for sample in batch],
            core.num_queries,
        )
        self.optimizer.zero_grad(set_to_none=True)
        total: dict[str, torch.Tensor] = {}
        for index, batch in enumerate(batches):
            losses = self._backward(batch, normalizers, last=index == len(batches) - 1)
            for name, value in losses.items():
                total[name] = total.get(name, 0) + value
        self._step()
        self._write_metrics(total, data_time)

    def _backward(self, batch, normalizers, last: bool) -> dict[str, torch.Tensor]:
        distributed = isinstance(self.model, DistributedDataParallel)
        # Gradients cross ranks once per step, with the last micro-batch.
        with self.model.no_sync() if distributed and not last else contextlib.nullcontext():
            with torch.autocast(self.device_type, self.dtype, enabled=self.dtype is not None):
                losses = self.model(batch, normalizers)
            self.scaler.scale(sum(losses.values())).backward()
        return {name: value.detach() for name, value in losses.items()}

    def _step(self) -> None:
        if self.clip_norm > 0:
            self.scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(unwrap(self.model))

    def state_dict(self):
        return {**super().state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state_dict):
        self.scaler.load_state_dict(state_dict.pop("scaler", {}) or self.scaler.state_dict())
        super().load_state_dict(state_dict)


class Trainer(DefaultTrainer):
    """detectron2's trainer with this project's loaders, optimiser, steps and evaluators.

    Args:
        cfg: frozen config node.
    """

    def __init__(self, cfg):
        TrainerBase.__init__(self)
        self.cfg = cfg
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        model = build_model(cfg)
        model.class_names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).stuff_classes
        logger.info("Parameters:\n%s", parameter_table(model))
        self.optimizer_ = build_optimizer(cfg, model)
        self.scheduler = build_scheduler(cfg, self.optimizer_)
        self.ema = _build_ema(cfg, model)
        self._trainer = StepTrainer(
            _distribute(model),
            self.optimizer_,
            accumulation=cfg.SOLVER.ACCUMULATION,
            dtype=amp_dtype(cfg, model.device),
            clip_norm=cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE
            if cfg.SOLVER.CLIP_GRADIENTS.ENABLED
            else 0.0,
            ema=self.ema,
        )
        extra = {"ema": self.ema} if self.ema is not None else {}
        self.checkpointer = AnosegCheckpointer(
            model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self), **extra
        )
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from OUTPUT_DIR's last checkpoint if asked and there is one, else load weights."""
        if resume and self.checkpointer.has_checkpoint():
            self.checkpointer.resume_or_load("", resume=True)
            self.start_iter = self.iter + 1
            logger.info("Going on from step %d of %d", self.start_iter, self.max_iter)
        else:
            load_weights(self.cfg, unwrap(self.model))
            if self.ema is not None:
                self.ema.module.load_state_dict(unwrap(self.model).state_dict())
        self._trainer.data_loader = self._build_train_loader()

    def _build_train_loader(self):
        """Loader of micro-batches that goes on where the last checkpoint stopped."""
        cfg, parts = self.cfg.clone(), self.cfg.SOLVER.ACCUMULATION
        if parts < 1 or cfg.SOLVER.IMS_PER_BATCH % parts:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is not divisible by "
                f"SOLVER.ACCUMULATION {parts}"
            )
        cfg.defrost()
        cfg.SOLVER.IMS_PER_BATCH //= parts
        return build_train_loader(cfg, start=self.start_iter * parts)

    def build_hooks(self):
        """Timer, progress, learning rate, checkpoints, evaluation, logs."""
        self.cost = CostHook(unwrap(self.model).device)
        result = [hooks.IterationTimer(), ProgressHook(), hooks.LRScheduler(), self.cost]
        if comm.is_main_process():
            result.append(
                hooks.PeriodicCheckpointer(self.checkpointer, self.cfg.SOLVER.CHECKPOINT_PERIOD)
            )
        if comm.get_world_size() == 1:
            result.append(StopHook(self.checkpointer))
        result.append(hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate))
        if comm.is_main_process():
            result.append(hooks.PeriodicWriter(self.build_writers(), period=10))
        return result

    def _evaluate(self):
        unwrap(self.model).score_statistics = {}  # those of other weights
        measured = measure_ensembles(self.cfg, unwrap(self.model))
        if measured and self.iter + 1 >= self.max_iter and comm.is_main_process():
            self.checkpointer.save("model_final", iteration=self.iter)
        facts = self.cost.facts()
        self._last_eval_results = evaluate(self.cfg, self.model, facts=facts)
        if self.ema is not None:
            self.ema.module.score_statistics = {}
            folder = os.path.join(self.cfg.OUTPUT_DIR, "ema")
            for name, figures in evaluate(self.cfg, self.ema.module, folder, facts).items():
                self._last_eval_results[f"{name}_ema"] = figures
        return self._last_eval_results

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """Evaluate a model that has its weights; see `evaluate`."""
        return evaluate(cfg, model)


def _build_ema(cfg, model: nn.Module) -> AveragedModel | None:
    if not cfg.SOLVER.EMA.ENABLED:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(cfg.SOLVER.EMA.DECAY))


def _distribute(model: nn.Module) -> nn.Module:
    if comm.get_world_size() == 1:
        return model
    device_ids = [model.device.index] if model.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)
