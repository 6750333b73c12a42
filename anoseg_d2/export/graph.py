"""Build the exported module, which maps images to scores and a segmentation."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anoseg_d2.checkpoint.metadata import weights_hash
from anoseg_d2.evaluation.alarm_rate import BELOW_HALF, unit_steepness
from anoseg_d2.export.fixed_resize import FixedResize
from anoseg_d2.export.spec import ExportSpec
from anoseg_d2.modeling import scores
from anoseg_d2.modeling.filters import GuidedFilter
from anoseg_d2.modeling.inference import filter_radius, predict_windows, read_classes, read_scores
from anoseg_d2.modeling.lora import merge_lora
from anoseg_d2.modeling.windows import WindowPlan


class ExportModel(nn.Module):
    """Map images to `(sem_seg, *scores, confidence)`, all tensors.

    Args:
        model: EoMT; it is copied.
        spec: inputs and outputs.
    Raises:
        ValueError: scores that the model cannot give, ensembles without statistics, a guided
            filter for any size, a second look, or a model in mixed precision.
    """

    def __init__(self, model: nn.Module, spec: ExportSpec):
        super().__init__()
        names, options = model.check_scores(spec.scores), model.inference
        scores.check_statistics(names, model.info.score_statistics)
        if options.dtype is not None:
            raise ValueError(
                "TEST.AMP is True, but an export sets its own precision; set it to False"
            )
        if options.second_look:
            raise ValueError(
                f"TEST.SECOND_LOOK.SCALE is {options.second_look}, but a file runs the same "
                "windows for every image; set it to 0, or add the scale to TEST.SCALES"
            )
        if options.guided_filter > 0 and spec.any_size:
            raise ValueError(
                f"TEST.ANOMALY.GUIDED_FILTER is {options.guided_filter}; its radius in pixels "
                "depends on the size of the image: export for one image size, or with 0"
            )
        missing = [name for name in names if name not in model.info.thresholds]
        if (spec.unit_scale or spec.one_byte) and missing:
            raise ValueError(
                f"a scale of 0..1 needs thresholds, but the weights have none of "
                f"{', '.join(missing)}: find them by `anoseg threshold`"
            )
        self.spec = spec
        # Runtimes multiply one matrix per layer faster than three.
        self.model = merge_lora(copy.deepcopy(model)).eval().requires_grad_(False)
        self.names = names
        self.weights_sha256 = weights_hash(self.model.state_dict())
        size = tuple(spec.image_size or model.image_size)
        self.plans = [options.plan(size, model.image_size, scale) for scale in options.scales]
        self.filter_radius = filter_radius(model, self.plans[0], size)
        self.resizes = nn.ModuleList(
            FixedResize(size, plan.resized) if size != plan.resized else nn.Identity()
            for plan in self.plans
        )
        if spec.half:
            _halve(self.model)

    def forward(self, image: Tensor, maps: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the outputs that the spec names.

        Args:
            image: (B, 3, H, W) RGB 0..255, of the type that the spec names; for images of any size
                the windows (n, 3, h, w) of one image.
            maps: only for images of any size, whose windows are merged outside (`any_size`): the
                merged maps (S, M, H, W) of S scales. The maps of the windows (n, M, h, w) are
                returned first.
        """
        any_size = self.spec.any_size
        cut = [image.float()] if any_size else self._cut(image.float())
        crops = cut[0] if len(cut) == 1 else torch.cat(cut)
        mask_logits, coefficients, patch_maps = predict_windows(self.model, crops, self.names)
        # One matrix product and one resize for all maps keep the graph small.
        channels = {name: value.shape[-1] for name, value in coefficients.items()}
        channels |= {name: value.shape[1] for name, value in patch_maps.items()}
        stacked = torch.cat(list(coefficients.values()), dim=-1)
        parts = mask_logits, stacked, *patch_maps.values()
        window_maps = ()
        if any_size:
            window_maps = (self._window_maps(*parts),)
        else:
            counts = [windows.shape[0] for windows in cut]
            own = zip(*(part.split(counts) for part in parts), strict=True)
            merged = [self._merge(plan, of) for plan, of in zip(self.plans, own, strict=True)]
            maps = merged[0] if len(merged) == 1 else torch.cat(merged)
        named = dict(zip(channels, maps.split(list(channels.values()), dim=1), strict=True))
        filtered = read_scores(self.model, named, self.names)
        filtered = {name: self._mean(value) for name, value in filtered.items()}
        sem_seg, confidence = read_classes(self.model, self._mean(named["probs"]))
        if self.model.inference.guided_filter > 0:
            guide = GuidedFilter(image, self.filter_radius)
            filtered = {name: guide(value) for name, value in filtered.items()}
        last = [confidence] if self.spec.confidence else []
        if self.spec.unit_scale or self.spec.one_byte:
            scaled = {name: self._on_unit_scale(name, v) for name, v in filtered.items()}
            filtered = scaled if self.spec.unit_scale else filtered
            if self.spec.one_byte:  # 0.5 is 128
                last += [(v * 256).clamp(max=255).to(torch.uint8) for v in scaled.values()]
        return (*window_maps, sem_seg, *filtered.values(), *last)

    def _mean(self, values: Tensor) -> Tensor:
        """Average values (S B, ...) over the scales."""
        count = len(self.plans)
        return values if count == 1 else values.unflatten(0, (count, -1)).mean(dim=0)

    def _on_unit_scale(self, name: str, score: Tensor) -> Tensor:
        """Do what `evaluation.alarm_rate.to_unit` does."""
        record = self.model.info.thresholds[name]
        threshold = record["threshold"]
        steepness = unit_steepness(threshold, record["median"])
        unit = torch.sigmoid((score - threshold) * steepness)
        above, below = unit.clamp(min=0.5), unit.clamp(max=float(BELOW_HALF))
        return torch.where(score >= threshold, above, below)

    def count_maps(self) -> int:
        """Return M, the number of maps that windows are merged by."""
        logits = torch.zeros(1, 1, self.model.class_head.num_rows)
        found = scores.linear_coefficients(logits, self.model.num_known, self.names)
        read = {m for name in scores.single_scores(self.names) for m in scores.SCORES[name].maps}
        return sum(v.shape[-1] for v in found.values()) + len(read & set(self.model.patch_maps))

    def _cut(self, image: Tensor) -> list[Tensor]:
        """Cut the windows of all images at each scale, (B n, 3, h, w) float32."""
        cut = []
        for plan, resize in zip(self.plans, self.resizes, strict=True):
            resized, (height, width) = resize(image), plan.window
            # Slices of constant bounds, because the plan is known when the graph is traced.
            crops = [resized[..., y : y + height, x : x + width] for y, x in plan.origins]
            crops = [c.flip(-1) if f else c for c, f in zip(crops, plan.flipped, strict=True)]
            cut.append(crops[0] if len(crops) == 1 else torch.stack(crops, dim=1).flatten(0, 1))
        return cut

    def _window_maps(self, mask_logits: Tensor, coefficients: Tensor, *patch_maps: Tensor):
        """Return the maps of windows, (B, M, h, w), those of patch tokens last."""
        enlarged = [
            F.interpolate(values, size=self.model.image_size, mode="bilinear")
            for values in (mask_logits, *patch_maps)
        ]
        return torch.cat([scores.combine_masks(coefficients, enlarged[0]), *enlarged[1:]], dim=1)

    def _merge(self, plan: WindowPlan, parts: tuple[Tensor, ...]) -> Tensor:
        """Return the maps (B, M, H, W) of images at one scale, the mean where windows overlap.

        The model itself merges strip by strip (`modeling/inference.py`), which saves memory but
        needs operations that not every runtime has.
        """
        count = len(plan.origins)
        parts = [part.unflatten(0, (-1, count)) for part in parts]
        weights = (plan.weights[0][:, None] * plan.weights[1]).to(parts[0].device)
        merged = total = None
        for index, (y, x) in enumerate(plan.origins):
            maps = self._window_maps(*(part[:, index] for part in parts))
            if plan.flipped[index]:
                maps = maps.flip(-1)
            if merged is None:
                merged = maps.new_zeros(*maps.shape[:-2], *plan.resized)
                total = maps.new_zeros(plan.resized)
            rows, columns = slice(y, y + plan.window[0]), slice(x, x + plan.window[1])
            merged[..., rows, columns] += maps * weights
            total[rows, columns] += weights
        size = self.spec.image_size or plan.resized
        maps = maps if count == 1 else merged.div_(total)
        return maps if plan.resized == size else F.interpolate(maps, size=size, mode="bilinear")


def _halve(model: nn.Module) -> None:
    """Halve the network; pixel normalisation, class head and patch maps stay float32."""
    mean, std, head, maps = model.pixel_mean, model.pixel_std, model.class_head, model.patch_maps
    # Cosines and distances lose their order first when they are rounded.
    model.class_head = model.patch_maps = None
    model.half()
    model.class_head, model.patch_maps = head, maps
    model.pixel_mean, model.pixel_std = mean, std
    model.backbone.patch_embed.register_forward_pre_hook(lambda _, args: (args[0].half(),))
