"""The module that is exported: image in, chosen scores and segmentation out."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anoseg_d2.checkpoint.identity import weights_hash
from anoseg_d2.export.fixed_resize import FixedResize
from anoseg_d2.modeling import scores, windows
from anoseg_d2.modeling.lora import merge_lora

__all__ = ["ExportModel", "ExportSpec"]


INPUTS = {"uint8": torch.uint8, "float32": torch.float32}


@dataclass(frozen=True)
class ExportSpec:
    """What an exported file takes and gives.

    Args:
        scores: names in `SCORES`, or ensembles.
        input: "uint8" or "float32": images (B, 3, H, W), RGB 0..255 in both cases.
        batch: B; None leaves it open.
        image_size: native (H, W). The graph resizes to the model's input, lays the windows of
            `plan_windows`, merges them, and brings the maps back: it equals `AnomalyPredictor`
            for images of this size.
        any_size: H and W stay open. The graph stretches the image to one window, whatever its
            aspect ratio, and brings the maps back: faster and coarser than `AnomalyPredictor`.
            Neither this nor `image_size`: images have the size that the model sees.
        confidence: also give the confidence of the segmentation.
        half: weights and network in float16; the formulas and what they give stay float32.
    """

    scores: tuple[str, ...]
    input: str = "uint8"
    batch: int | None = 1
    image_size: tuple[int, int] | None = None
    any_size: bool = False
    confidence: bool = False
    half: bool = False

    def __post_init__(self):
        if self.input not in INPUTS:
            raise ValueError(f"input is {self.input!r}; allowed: {', '.join(INPUTS)}")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"the batch must be at least 1, is {self.batch}")
        if self.image_size is not None and min(self.image_size) < 1:
            raise ValueError(f"the image size must be positive, is {self.image_size}")
        if self.image_size is not None and self.any_size:
            raise ValueError("an export is for one image size or for any size, not for both")

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs in order."""
        return ["sem_seg", *self.scores, *(["confidence"] if self.confidence else [])]


class ExportModel(nn.Module):
    """Images in, `(sem_seg, *scores, confidence)` out, all tensors.

    Args:
        model: EoMT; it is copied.
        spec: what to take and give.
    Raises:
        ValueError: scores that the model cannot give, ensembles without statistics, or filters
            together with an open batch.
    """

    def __init__(self, model: nn.Module, spec: ExportSpec):
        super().__init__()
        names = scores.available_scores(model.has_anomaly, spec.scores)
        scores.check_statistics(names, model.score_statistics)
        if model.postprocess and spec.batch is None:
            raise ValueError(
                "TEST.ANOMALY.POSTPROCESS works image by image and needs a batch of a fixed size"
            )
        self.spec = spec
        self.model = merge_lora(copy.deepcopy(model)).eval().requires_grad_(False)
        self.model.score_names = names
        self.weights_sha256 = weights_hash(self.model.state_dict())
        size = tuple(spec.image_size or model.image_size)
        self.plan = windows.plan_windows(size, model.image_size, model.window_overlap)
        self.resize = FixedResize(size, self.plan.resized) if size != self.plan.resized else None
        if spec.half:
            _halve(self.model)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Args: image: (B, 3, H, W) RGB 0..255, of the type that the spec names."""
        crops = self._cut(image.float())
        mask_logits, coefficients, channels = self.model.predict_coefficients(crops)
        maps = self._merge(mask_logits, coefficients)
        if self.spec.any_size:
            maps = F.interpolate(maps, size=image.shape[-2:], mode="bilinear", align_corners=False)
        elif self.resize is not None:
            size = self.spec.image_size
            native = windows.resize_rows(maps.flatten(0, 1), size, 0, size[0])
            maps = native.unflatten(0, (-1, maps.shape[1]))
        values = self.model.read_scores(maps, channels)
        filtered = self._filter(values["scores"], values["sem_seg"])
        last = (values["confidence"],) if self.spec.confidence else ()
        return (values["sem_seg"], *filtered.values(), *last)

    def _cut(self, image: Tensor) -> Tensor:
        """Windows of all images, (B n, 3, h, w) float32."""
        if self.spec.any_size:
            return F.interpolate(image, size=self.plan.window, mode="bilinear", antialias=True)
        if self.resize is not None:
            image = self.resize(image)
        height, width = self.plan.window
        crops = [image[..., y : y + height, x : x + width] for y, x in self.plan.origins]
        return torch.stack(crops, dim=1).flatten(0, 1)

    def _merge(self, mask_logits: Tensor, coefficients: Tensor) -> Tensor:
        """Linear maps (B, M, H, W) of the resized images."""
        count = len(self.plan.origins)
        mask_logits = mask_logits.unflatten(0, (-1, count))
        coefficients = coefficients.unflatten(0, (-1, count))
        merger = windows.WindowMerger(self.plan)
        for index in range(count):
            logits = F.interpolate(
                mask_logits[:, index].float(), size=self.plan.window, mode="bilinear"
            )
            maps = scores.combine_masks(coefficients[:, index], logits)
            if count == 1:
                return maps
            merger.add(maps, index)
        return merger.mean()

    def _filter(self, score_maps: dict[str, Tensor], sem_seg: Tensor) -> dict[str, Tensor]:
        for function in self.model.postprocess:
            score_maps = {
                name: torch.stack([function(*pair) for pair in zip(value, sem_seg, strict=True)])
                for name, value in score_maps.items()
            }
        return score_maps


def _halve(model: nn.Module) -> None:
    """Network in float16; normalisation of pixels and the class head stay float32."""
    mean, std, head = model.pixel_mean, model.pixel_std, model.class_head
    model.class_head = None
    model.half()
    model.class_head, model.pixel_mean, model.pixel_std = head, mean, std
    model.backbone.patch_embed.register_forward_pre_hook(lambda _, args: (args[0].half(),))
