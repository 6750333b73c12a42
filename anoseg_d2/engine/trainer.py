"""Training and evaluation on detectron2's trainer: steps, precision, checkpoints, reports."""

import contextlib
import logging
import os
import time
import weakref
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer, SimpleTrainer, TrainerBase, hooks
from detectron2.modeling import build_model
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from anoseg_d2.checkpoint import AnosegCheckpointer
from anoseg_d2.checkpoint.from_config import load_weights, resolve_weights
from anoseg_d2.data.builtin import register_all, register_cards
from anoseg_d2.data.loader import build_train_loader, training_dicts
from anoseg_d2.engine.evaluate import evaluate, measure_ensembles
from anoseg_d2.engine.hooks import CostHook, ProgressHook, StopHook
from anoseg_d2.engine.solver import build_optimizer, build_scheduler
from anoseg_d2.modeling import eomt  # noqa: F401  registers the meta-architecture
from anoseg_d2.modeling.criterion import present_classes
from anoseg_d2.modeling.lora import lora_state_dict
from anoseg_d2.utils.unwrap import unwrap

__all__ = ["Trainer", "amp_dtype", "check_inputs", "parameter_table"]

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
    """Find every dataset and the weights before anything long starts.

    Raises:
        FileNotFoundError, ValueError: what is missing or wrong, and the way out.
    """
    register_all()
    register_cards(cfg)
    for name in (*(cfg.DATASETS.TRAIN if training else ()), *cfg.DATASETS.TEST):
        if name not in DatasetCatalog.list():
            known = ", ".join(n for n in DatasetCatalog.list() if _is_ours(n))
            raise ValueError(f"no dataset named {name!r} is registered; ours: {known}")
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
            load_weights(self.cfg, unwrap(self.model), training=True)
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


def parameter_table(model: nn.Module) -> str:
    """What trains: total, trainable, adapters alone, and the memory that training them takes.

    Gradients and AdamW's two moments are counted at 4 bytes each; activations are not.
    """
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    adapters = sum(value.numel() for value in lora_state_dict(model).values())
    rows = [
        [name, f"{count:,}", f"{100 * count / max(total, 1):.2f} %", memory]
        for name, count, memory in (
            ("all parameters", total, ""),
            ("trainable", trainable, f"{12 * trainable / 2**20:,.1f} MiB"),
            ("LoRA adapters alone", adapters, f"{12 * adapters / 2**20:,.1f} MiB"),
        )
    ]
    return tabulate(rows, headers=["", "parameters", "share", "gradients + AdamW state"])
