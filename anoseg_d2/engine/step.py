"""Take one optimiser step with micro-batches, mixed precision, clipping and a finite loss."""

import contextlib
import math
import time

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from anoseg_d2.modeling.criterion import present_classes
from anoseg_d2.modeling.patch_heads import PATCH_HEADS
from anoseg_d2.utils.unwrap import unwrap


class StepTrainer(SimpleTrainer):
    """detectron2's `SimpleTrainer` with micro-batches, mixed precision and clipping once per step.

    Args:
        model: EoMT, possibly in DistributedDataParallel.
        data_loader: gives micro-batches, `accumulation` of them per step.
        optimizer: see `solver.build_optimizer`.
        accumulation: micro-batches per step.
        dtype: of autocast; None for float32. float16 scales the loss.
        clip_norm: largest global gradient norm, see `_clip`; 0 for no clipping.
        ema: averaged copy to update after each step.
    """

    def __init__(
        self, model, data_loader, optimizer, *, accumulation=1, dtype=None, clip_norm=0.0, ema=None
    ):
        super().__init__(model, data_loader, optimizer)
        self.accumulation, self.dtype, self.clip_norm = accumulation, dtype, clip_norm
        self.ema = ema
        self.device_type = next(model.parameters()).device.type
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=dtype == torch.float16)

    def run_step(self):
        """Train on the next `accumulation` micro-batches.

        Raises:
            FloatingPointError: the loss or the gradient is not finite; nothing was changed.
        """
        start = time.perf_counter()
        batches = [next(self._data_loader_iter) for _ in range(self.accumulation)]
        data_time = time.perf_counter() - start
        # Masks are averaged over the whole batch, so the count is taken before it is split.
        core = unwrap(self.model)
        normalizers, options = (), {}
        if hasattr(core, "criterion"):
            counts = [len(present_classes(x["sem_seg"])) for batch in batches for x in batch]
            normalizers = (core.criterion.normalizers(counts, core.num_queries),)
            if self.scaler.is_enabled():
                one = torch.ones((), device=self.device_type)
                options["loss_scale"] = self.scaler.scale(one)
        # None and not zero: a parameter without gradient is then left out of weight decay too.
        self.optimizer.zero_grad(set_to_none=True)
        total: dict[str, torch.Tensor] = {}
        for index, batch in enumerate(batches):
            losses = self._backward(batch, normalizers, options, last=index == len(batches) - 1)
            for name, value in losses.items():
                total[name] = total.get(name, 0) + value
        self.scaler.unscale_(self.optimizer)
        norms = self._clip()
        loss, norm = float(sum(total.values())), sum(norms.values())
        # In float16 an infinite gradient is how the scaler finds its scale: it skips the step.
        if not math.isfinite(loss) or not (math.isfinite(norm) or self.scaler.is_enabled()):
            images = ", ".join(str(x.get("file_name", "?")) for batch in batches for x in batch)
            raise FloatingPointError(
                f"step {self.iter}: the loss is {loss:g} and the gradient norm {norm:g}; nothing "
                f"was changed. Images: {images}"
            )
        if math.isfinite(norm):
            get_event_storage().put_scalars(**norms)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(unwrap(self.model))
        self._write_metrics(total, data_time)

    def _backward(self, batch, normalizers, options, last: bool) -> dict[str, torch.Tensor]:
        distributed = isinstance(self.model, DistributedDataParallel)
        # Gradients cross ranks once per step, with the last micro-batch.
        with self.model.no_sync() if distributed and not last else contextlib.nullcontext():
            with torch.autocast(self.device_type, self.dtype, enabled=bool(self.dtype)):
                losses = self.model(batch, *normalizers, **options)
            self.scaler.scale(sum(losses.values())).backward()
        return {name: value.detach() for name, value in losses.items()}

    def _clip(self) -> dict[str, float]:
        """Clip the gradients; returns their norms before clipping.

        Each patch head is clipped by a norm of its own. It takes no part in the other losses, and
        in one norm with them its gradient would shrink theirs: switching it on would change how
        everything else trains.
        """
        norms, apart = {}, set(PATCH_HEADS)
        for kind in (None, *PATCH_HEADS):
            groups = self.optimizer.param_groups
            groups = [g for g in groups if (g["kind"] if g.get("kind") in apart else None) == kind]
            parameters = [p for group in groups for p in group["params"]]
            name = "grad_norm" if kind is None else f"grad_norm_{kind}"
            if not parameters:
                continue
            if self.clip_norm > 0:
                norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm)
            else:
                norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            norms[name] = float(norm)
        return norms

    def state_dict(self):
        return {**super().state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state_dict):
        self.scaler.load_state_dict(state_dict.pop("scaler", {}) or self.scaler.state_dict())
        super().load_state_dict(state_dict)
