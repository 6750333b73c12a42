"""EoMT: mask classification inside a plain vision transformer, as an anomaly detector.

"Your ViT is Secretly an Image Segmentation Model" (arXiv:2503.19108). Departures: at inference no
attention mask is ever used, and annealing follows the fraction of the run that is done.

Shape letters: B images, Q queries, C width, N tokens, K known classes, R class rows
`[known 0..K-1, (anomaly K), no-object]`, (H, W) image size, (h, w) = (H, W) / 4 for patch 16,
(gh, gw) patch grid.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from anoseg_d2.modeling import scores
from anoseg_d2.modeling.annealing import (
    QueryMask,
    annealing_windows,
    draw_query_mask,
    keep_probability,
)
from anoseg_d2.modeling.criterion import LossNormalizers, SetCriterion, Target, targets_from_sem_seg
from anoseg_d2.modeling.heads import CLASS_HEADS, ClassHead, build_head
from anoseg_d2.modeling.inference import InferenceOptions, infer_images
from anoseg_d2.modeling.layer_losses import LayerLosses, can_be_taken_at_once
from anoseg_d2.modeling.lora import LoraOptions, adapt_backbone
from anoseg_d2.modeling.model_info import ModelInfo
from anoseg_d2.modeling.patch_heads import PATCH_HEADS, PatchHead
from anoseg_d2.modeling.patch_model import VitModel
from anoseg_d2.modeling.vit import EoMTOptions, VitOptions, backbone_kind
from anoseg_d2.utils.constants import PIXEL_MEAN, PIXEL_STD
from anoseg_d2.utils.options import options_of


class _Doubling(nn.ConvTranspose2d):
    """A transposed convolution with stride 2 and a 2 x 2 kernel, so outputs never overlap.

    So it is one matrix product for each of the two output rows. Written that way, a CPU with AVX2
    needs a third of the time for forward and backward pass, because torch's own backward pass is
    slow there; values are equal but for rounding. Torch's own is used on other devices, and where
    there is no gradient to compute.

    Args:
        width: channels of input and output.
    """

    def __init__(self, width: int):
        super().__init__(width, width, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_exporting():
            return super().forward(x)
        pixels = x.permute(0, 2, 3, 1)
        weight = self.weight.permute(2, 3, 1, 0).flatten(1, 2)  # (rows, columns * out, in)
        bias = self.bias.repeat(2)
        rows = [F.linear(pixels, row, bias) for row in weight]
        # Two columns of C channels behind each other are two pixels, and two rows of a row are next
        # to each other: (B, h, 2, w, 2 C) is (B, 2 h, 2 w, C).
        doubled = torch.stack(rows, dim=2).unflatten(-1, (2, -1))
        return doubled.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class ScaleBlock(nn.Module):
    """Double the resolution of (B, C, gh, gw) features.

    Args:
        width: C.
    """

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = _Doubling(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width, bias=False)
        self.norm = LayerNorm2d(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv2(F.gelu(self.conv1(x))))


@META_ARCH_REGISTRY.register()
class EoMT(VitModel):
    """Encoder-only mask transformer with anomaly scores.

    Build it from a config, `EoMT(cfg)`, or from parts, keyword-only.

    Args:
        backbone: ViT of `build_vit`: timm `VisionTransformer` whose position embedding holds
            patches only, or `Eva` with rotary positions, which the queries do not get.
        head: name in `CLASS_HEADS`, or a head.
        num_known: K.
        has_anomaly: whether row K is the learned anomaly class.
        num_queries: Q.
        num_blocks: last blocks that see the queries; there is a prediction before each of them
            and one after the last.
        masked_attention: mask the attention of queries in training, annealed over the run.
        annealing_power: exponent of the keep-probability.
        recompute: what is not kept for the backward pass: "none" keeps everything; "heads" nothing
            of the predictions, half of what a step keeps, see `layer_losses`; "all" nothing of
            the ViT blocks either, which the backward pass computes again. Gradients do not change.
        criterion: losses; None for the defaults.
        patch_heads: name in `PATCH_HEADS` to the options of that head, None for the defaults.
        train_only: name of the one patch head that trains; everything else is frozen.
        inference: how images are segmented and scored.
        info: facts about the model that are not in its weights.
        pixel_mean, pixel_std: statistics of RGB 0..255; applied once, here.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        head: str | ClassHead = "linear",
        num_known: int = 19,
        has_anomaly: bool = False,
        num_queries: int = 100,
        num_blocks: int = 4,
        masked_attention: bool = True,
        annealing_power: float = 0.9,
        recompute: str = "heads",
        criterion: SetCriterion | None = None,
        patch_heads: Mapping[str, Any] | None = None,
        train_only: str | None = None,
        inference: InferenceOptions = InferenceOptions(),  # noqa: B008 - frozen
        info: ModelInfo = ModelInfo(),  # noqa: B008 - frozen
        pixel_mean: tuple[float, ...] = PIXEL_MEAN,
        pixel_std: tuple[float, ...] = PIXEL_STD,
    ):
        super().__init__(backbone, inference, info, pixel_mean, pixel_std)
        width, depth = backbone.embed_dim, len(backbone.blocks)
        if not 1 <= num_blocks <= depth:
            raise ValueError(f"MODEL.EOMT.NUM_BLOCKS is {num_blocks}; the ViT has {depth} blocks")
        if recompute not in ("none", "heads", "all"):
            raise ValueError(f"MODEL.EOMT.RECOMPUTE is {recompute!r}; allowed: none, heads, all")
        self.num_known, self.has_anomaly = num_known, has_anomaly
        self.num_queries, self.num_blocks = num_queries, num_blocks
        self.query = nn.Embedding(num_queries, width)
        self._exempt_queries_from_rotation()
        self.class_head = (
            CLASS_HEADS[head](width, num_known, has_anomaly) if isinstance(head, str) else head
        )
        self.mask_head = nn.Sequential(
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, width),
        )
        # Each block doubles the resolution, and masks are at a quarter of the image's: a patch of
        # 2^n pixels needs n - 2 doublings. At least one, for patches smaller than 8.
        num_upscale = max(1, int(math.log2(self.patch_size)) - 2)
        self.upscale = nn.Sequential(*(ScaleBlock(width) for _ in range(num_upscale)))
        self.criterion = criterion or SetCriterion(num_known + int(has_anomaly))
        self.masked_attention, self.annealing_power = masked_attention, annealing_power
        self.recompute = recompute
        self.progress = 0.0
        # Built last, so that the random numbers that initialise the other parts do not change.
        # Checkpoints know the patch heads by this attribute.
        self.patch_maps = nn.ModuleDict()
        for name, options in (patch_heads or {}).items():
            self.add_patch_head(name, options)
        self.train_only: str | None = None
        if train_only is not None:
            self.train_alone(train_only)
        # Patch heads may still come with a checkpoint, so only the other needs are checked.
        scores.available_scores(has_anomaly, inference.scores, PATCH_HEADS)

    @classmethod
    def from_config(cls, cfg) -> dict:
        parts = cls.vit_parts(cfg)
        options = options_of(cfg, "MODEL.EOMT", EoMTOptions)
        known, has_anomaly = options.num_classes, options.anomaly_class
        backbone = parts["backbone"]
        adapt_backbone(backbone, options_of(cfg, "MODEL.LORA", LoraOptions))
        if options.compile:
            for block in backbone.blocks:
                block.compile()
        blocks = options_of(cfg, "MODEL.EOMT", VitOptions).shape.num_blocks
        asked = {name: head.from_config(cfg) for name, head in PATCH_HEADS.items()}
        return parts | {
            "head": build_head(cfg, backbone.embed_dim, known, has_anomaly),
            "num_known": known,
            "has_anomaly": has_anomaly,
            "num_queries": options.num_queries,
            "num_blocks": options.num_blocks or blocks,
            "masked_attention": options.masked_attention,
            "annealing_power": options.annealing_power,
            "recompute": options.recompute,
            "criterion": SetCriterion(known + has_anomaly, **SetCriterion.from_config(cfg)),
            "patch_heads": {
                name: options for name, options in asked.items() if options is not None
            },
            "train_only": "ratio" if cfg.MODEL.RATIO.ALONE else None,
        }

    def add_patch_head(self, name: str, options: Any = None) -> PatchHead:
        """Build the patch head that is registered as `name`, and attach it to the model.

        Args:
            name: name in `PATCH_HEADS`.
            options: of its `options_class`; None for the defaults.
        """
        kind = PATCH_HEADS[name]
        blocks = kind.choose_blocks(len(self.backbone.blocks), self.num_blocks)
        head = kind(self.backbone.embed_dim, blocks, options)
        head.check(self.patch_size)
        self.patch_maps[name] = head.to(self.device)
        return head

    def train_alone(self, name: str) -> None:
        """Train only the patch head `name`; freeze everything else and skip its predictions."""
        self.requires_grad_(False)
        self.patch_maps[name].requires_grad_(True)
        self.train_only = name

    def set_progress(self, progress: float) -> None:
        """Set the fraction of the training run that is done, which annealing and margin follow."""
        self.progress = progress
        self.class_head.set_progress(progress)

    def forward(
        self,
        batched_inputs: list[dict],
        normalizers: LossNormalizers | None = None,
        score_names: Sequence[str] | None = None,
        loss_scale: Tensor | float = 1.0,
    ):
        """Return losses in training, scores in evaluation.

        Args:
            batched_inputs: per image `image` (3, H, W) RGB 0..255, uint8 or float; in training of
                size `image_size` with `sem_seg` (H, W) int64, 255 void; in evaluation of any size,
                with optional `height` and `width` of the output.
            normalizers: those of the whole training step; None if this batch is the whole step.
            score_names: scores to give in evaluation; None for the model's own.
            loss_scale: what losses will be multiplied by before the backward pass, in float16.
        Returns:
            training: `{loss name: scalar}`, weighted. Evaluation: see `infer_images`.
        """
        if not self.training:
            return infer_images(self, batched_inputs, score_names)
        images, targets = self._collate(batched_inputs)
        if normalizers is None:
            counts = [len(target.classes) for target in targets]
            normalizers = self.criterion.normalizers(counts, self.num_queries)
        losses, tokens = self._layer_losses(images, targets, normalizers, loss_scale)
        sem_seg = torch.stack([target.sem_seg for target in targets])
        for name, head in self.patch_maps.items():
            with torch.autocast(self.device.type, enabled=False):
                per_image = head.loss(tokens, sem_seg, self.num_known)
            if per_image is not None:
                # Every image counts alike, however a step is split into micro-batches.
                losses[f"loss_{name}"] = per_image.sum() / normalizers.num_images
        return losses

    def train(self, mode: bool = True) -> "EoMT":
        """Set the mode as `nn.Module.train` does; a frozen ViT stays without its dropout."""
        super().train(mode)
        if self.train_only is not None:
            self.backbone.eval()
        return self

    def _collate(self, batched_inputs: list[dict]) -> tuple[Tensor, list[Target]]:
        """Return images (B, 3, H, W) and targets on the device of the model."""
        if any("label_rule" in sample for sample in batched_inputs):
            raise ValueError(
                "these samples are from detectron2's own mapper, which does not turn label values "
                "into classes: train with anoseg_d2.Trainer in the place of DefaultTrainer, or "
                "give yours our build_train_loader, as docs/extending.md shows"
            )
        images = torch.stack([x["image"] for x in batched_inputs])
        if self.device.type == "cuda" and images.device.type == "cpu":
            images = images.pin_memory()  # a copy from there does not wait
        images = images.to(self.device, non_blocking=True)
        # A patch head trained by itself uses pasted objects even if the network lacks their class.
        num_classes = self.num_known + 1 if self.train_only else self.criterion.num_classes
        # Classes are found on the host, where the labels are; on a GPU the host would have to wait.
        targets = [
            targets_from_sem_seg(x["sem_seg"], num_classes).to(self.device) for x in batched_inputs
        ]
        return images, targets

    def _layer_losses(
        self, images: Tensor, targets: list[Target], normalizers: LossNormalizers, loss_scale
    ) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        """Run the network, and return the losses of its predictions and the patch heads' tokens."""
        blocks = {source for head in self.patch_maps.values() for source in head.sources}
        if self.train_only is not None:  # no prediction is needed
            return {}, self.run_network(images, True, blocks, lambda x: (None, None))[1]
        apart = (self.backbone, self.patch_maps)
        modules = [module for module in self.children() if not any(module is a for a in apart)]
        layers = LayerLosses(
            *(self.criterion, targets, self.class_head, normalizers),
            num_layers=self.num_blocks + 1,
            at_once=self.recompute != "none"
            and torch.is_grad_enabled()
            and can_be_taken_at_once(self.criterion, [self.backbone.norm, *modules]),
            scale=loss_scale,
        )
        predict = functools.partial(layers.predict, self._apply_heads)
        _, tokens = self.run_network(images, blocks=blocks, predict=predict)
        return layers.losses(), tokens

    def check_scores(self, names: Sequence[str]) -> list[str]:
        """Return the scores in `names`, or all that apply when there are none.

        Raises:
            ValueError: an unknown name, or a score that needs what the model does not have.
        """
        found = scores.available_scores(self.has_anomaly, names, self.patch_maps)
        # Memories of a single block, from before there were several, hold no standard units.
        if "joint" in found and self.patch_maps["memory"].mean is None:
            if names:
                raise ValueError(
                    "score 'joint' needs a memory in standard units, which one of several blocks "
                    "has: anoseg memory WEIGHTS --blocks N N"
                )
            found.remove("joint")
        return found

    def predict_masks(
        self, images: Tensor, final_only: bool = False
    ) -> list[tuple[Tensor, Tensor]]:
        """Run the network.

        Args:
            images: (B, 3, H, W) RGB 0..255 of size `image_size`, uint8 or float.
            final_only: compute only the last prediction.
        Returns:
            per prediction layer, the last is final: mask logits (B, Q, h, w) and class logits
            (B, Q, R).
        Raises:
            ValueError: images of another size.
        """
        return self.run_network(images, final_only)[0]

    def run_network(
        self,
        images: Tensor,
        final_only: bool = False,
        blocks: Sequence[int | str] = (),
        predict: Callable[[Tensor], tuple] | None = None,
    ) -> tuple[list[tuple], dict[int | str, Tensor]]:
        """Run the network as `predict_masks` does, and also return patch tokens.

        Args:
            images, final_only: see `predict_masks`.
            blocks: ViT blocks, counted from 0, whose output is returned as well, or other sources
                of patch heads.
            predict: called in place of the heads with all tokens (B, Q + prefix + N, C); gives
                mask logits first.
        Returns:
            predictions, and {source: patch tokens (B, N, C)}.
        """
        vit = self.backbone
        x, rope = self.embed(images)
        first = len(vit.blocks) - self.num_blocks
        predict = predict or self._apply_heads
        predictions: list[tuple] = []
        tokens: dict[int, Tensor] = {}
        for index, block in enumerate(vit.blocks):
            if index == first:
                if any(isinstance(source, str) for source in blocks):
                    tokens |= self.patch_maps["memory"].plain_tokens(x, rope, vit.num_prefix_tokens)
                x = torch.cat([self.query.weight.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
            attention_mask = None
            if index >= first and not final_only:
                predictions.append(predict(x))
                attention_mask = self.attention_mask(predictions[-1][0], index - first)
            options = {"attn_mask": attention_mask} | ({} if rope is None else {"rope": rope})
            if self.recompute == "all" and self.training:
                x = checkpoint(block, x, use_reentrant=False, **options)
            else:
                x = block(x, **options)
            if index in blocks:
                prefix = vit.num_prefix_tokens + (index >= first) * self.num_queries
                tokens[index] = x[:, prefix:]
        predictions.append(predict(x))
        return predictions, tokens

    def _exempt_queries_from_rotation(self) -> None:
        """Set how many tokens before the patches have no rotary position, in each block."""
        if backbone_kind(self.backbone) == "dinov3":
            prefix = self.backbone.num_prefix_tokens
            for index, block in enumerate(self.backbone.blocks):
                has_queries = index >= len(self.backbone.blocks) - self.num_blocks
                block.attn.num_prefix_tokens = prefix + has_queries * self.num_queries

    def _apply_heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mask and class logits of one prediction layer; x (B, Q + prefix + patches, C)."""
        x = self.backbone.norm(x)
        queries = x[:, : self.num_queries]
        patches = x[:, self.num_queries + self.backbone.num_prefix_tokens :]
        grid = patches.transpose(1, 2).unflatten(2, self.backbone.patch_embed.grid_size)
        features = self.upscale(grid.contiguous())
        # Pixels times queries: the gradient of the features then comes out with their channels
        # last, as the layer norm before wants it; the other way round it is copied once more.
        pixels = features.flatten(2).transpose(1, 2)
        mask_logits = (pixels @ self.mask_head(queries).transpose(1, 2)).transpose(1, 2)
        mask_logits = mask_logits.contiguous().unflatten(2, features.shape[-2:])
        return mask_logits, self.class_head(queries)

    def attention_mask(self, mask_logits: Tensor, query_block: int) -> QueryMask | None:
        """Draw the attention mask of a query block; None when all tokens see each other."""
        if not (self.training and self.masked_attention):
            return None
        start, end = annealing_windows(self.num_blocks)[query_block]
        keep = keep_probability(self.progress, start, end, self.annealing_power)
        grid, prefix = self.backbone.patch_embed.grid_size, self.backbone.num_prefix_tokens
        return draw_query_mask(mask_logits, grid, prefix, keep)
