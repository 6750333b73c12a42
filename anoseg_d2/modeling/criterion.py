"""Set criterion of EoMT: match every prediction with the targets, then sum the losses.

Shape letters: B images, Q queries, R class rows, T targets of one image, M matched masks,
(H, W) label size, (h, w) mask grid.
"""

from typing import NamedTuple

import torch
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F

from anoseg_d2.modeling import losses
from anoseg_d2.modeling.heads import ClassHead
from anoseg_d2.modeling.matcher import assign, pair_costs

__all__ = [
    "LossNormalizers",
    "SetCriterion",
    "Target",
    "present_classes",
    "targets_from_sem_seg",
]

IGNORE_LABEL = 255


class Target(NamedTuple):
    """What one image asks for.

    classes: (T,) int64, one entry per class that occurs; the anomaly class is one of them.
    masks: (T, H, W) bool.
    valid: (H, W) bool, False on void and padding.
    """

    classes: Tensor
    masks: Tensor
    valid: Tensor


class LossNormalizers(NamedTuple):
    """Divisors of the losses of one optimiser step, averaged over ranks.

    They follow from the targets alone, so that accumulated and distributed batches give the
    gradient of the whole batch.

    num_masks: of the mask losses.
    class_weight: of the class loss.
    num_images: of this rank in the step; a micro-batch takes its share of the outlier term.
    """

    num_masks: float
    class_weight: float
    num_images: int


def present_classes(sem_seg: Tensor) -> Tensor:
    """Values of a label map (any shape, int64, not negative) but void, ascending."""
    counts = torch.bincount(sem_seg.flatten(), minlength=IGNORE_LABEL + 1)
    counts[IGNORE_LABEL] = 0
    return counts.nonzero()[:, 0]


def targets_from_sem_seg(sem_seg: Tensor, num_classes: int) -> Target:
    """One mask per class present.

    Args:
        sem_seg: (H, W) int64, 0..num_classes - 1, or 255 for void and padding.
        num_classes: K, or K + 1 with the anomaly class.
    Raises:
        ValueError: a value that is neither a class nor void.
    """
    classes = present_classes(sem_seg)
    if len(classes) and classes[-1] >= num_classes:
        raise ValueError(
            f"label map has values {classes.tolist()}, the model has classes 0..{num_classes - 1} "
            f"and void {IGNORE_LABEL}; pasted objects need MODEL.EOMT.ANOMALY_CLASS True"
        )
    return Target(classes, sem_seg[None] == classes[:, None, None], sem_seg != IGNORE_LABEL)


class SetCriterion(nn.Module):
    """Losses of "Your ViT is Secretly an Image Segmentation Model" (arXiv:2503.19108).

    mask: BCE and dice on points that are mostly uncertain; class: weighted cross entropy over all
    queries, where unmatched ones are no-object. Every prediction is matched separately. All in
    float32.

    Args:
        num_classes: rows of the class head without no-object.
        mask_weight, dice_weight, class_weight: of the three losses.
        no_object_weight: of no-object rows in the cross entropy.
        match_weights: costs of BCE, dice and class in the matching.
        match_points, loss_points: number of points; 0 takes every pixel of the mask grid.
        oversample_ratio, importance_ratio: see `losses.uncertain_points`.
        void: "negative" counts void and padding as outside every mask, "exclude" leaves them out
            of losses and matching.
        outlier_weight, outlier_upper, outlier_lower: see `losses.outlier_hinge`; weight 0 is off.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        class_weight: float = 2.0,
        no_object_weight: float = 0.1,
        match_weights: tuple[float, float, float] = (5.0, 5.0, 2.0),
        match_points: int = 12544,
        loss_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_ratio: float = 0.75,
        void: str = "negative",
        outlier_weight: float = 0.0,
        outlier_upper: float = -0.7,
        outlier_lower: float = -0.1,
    ):
        super().__init__()
        if void not in ("negative", "exclude"):
            raise ValueError(f"MODEL.CRITERION.VOID is {void!r}; allowed: negative, exclude")
        self.num_classes = num_classes
        self.mask_weight, self.dice_weight = mask_weight, dice_weight
        self.class_weight, self.no_object_weight = class_weight, no_object_weight
        self.match_weights = tuple(match_weights)
        self.match_points, self.loss_points = match_points, loss_points
        self.oversample_ratio, self.importance_ratio = oversample_ratio, importance_ratio
        self.exclude_void = void == "exclude"
        self.outlier_weight = outlier_weight
        self.outlier_upper, self.outlier_lower = outlier_upper, outlier_lower

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Arguments beyond `num_classes` from `cfg.MODEL.CRITERION`."""
        node = cfg.MODEL.CRITERION
        return {
            "mask_weight": node.MASK_WEIGHT,
            "dice_weight": node.DICE_WEIGHT,
            "class_weight": node.CLASS_WEIGHT,
            "no_object_weight": node.NO_OBJECT_WEIGHT,
            "match_weights": (node.MATCH_MASK_COST, node.MATCH_DICE_COST, node.MATCH_CLASS_COST),
            "match_points": node.MATCH_POINTS,
            "loss_points": node.LOSS_POINTS,
            "oversample_ratio": node.OVERSAMPLE_RATIO,
            "importance_ratio": node.IMPORTANCE_RATIO,
            "void": node.VOID,
            "outlier_weight": node.OUTLIER_WEIGHT,
            "outlier_upper": node.OUTLIER_UPPER,
            "outlier_lower": node.OUTLIER_LOWER,
        }

    def normalizers(self, num_targets: list[int], num_queries: int) -> LossNormalizers:
        """Divisors for one optimiser step; every rank must call it.

        Args:
            num_targets: T of every image of this rank in the step, all micro-batches.
            num_queries: Q.
        """
        matched = float(sum(min(count, num_queries) for count in num_targets))
        unmatched = num_queries * len(num_targets) - matched
        totals = torch.tensor([matched, matched + self.no_object_weight * unmatched])
        if comm.get_world_size() > 1:
            if torch.distributed.get_backend() == "nccl":
                totals = totals.to(torch.device("cuda", torch.cuda.current_device()))
            torch.distributed.all_reduce(totals)
            totals = totals / comm.get_world_size()
        num_masks, class_weight = totals.tolist()
        return LossNormalizers(max(num_masks, 1.0), max(class_weight, 1e-6), len(num_targets))

    def forward(
        self,
        predictions: list[tuple[Tensor, Tensor]],
        targets: list[Target],
        head: ClassHead,
        normalizers: LossNormalizers | None = None,
    ) -> dict[str, Tensor]:
        """Sum the weighted losses of every prediction.

        Args:
            predictions: per prediction layer mask logits (B, Q, h, w) and class logits (B, Q, R).
            targets: one per image.
            head: gives the logits that the class loss sees, with a margin where it has one.
            normalizers: of the whole step; None takes this batch as the step.
        Returns:
            weighted scalars `loss_mask`, `loss_dice`, `loss_class` of the last prediction, and
            with suffix `_0`, `_1`, ... of those before it; `loss_outlier` when it is on.
        """
        if normalizers is None:
            normalizers = self.normalizers(
                [len(target.classes) for target in targets], predictions[-1][0].shape[1]
            )
        result = {}
        for layer, (mask_logits, class_logits) in enumerate(predictions):
            suffix = "" if layer == len(predictions) - 1 else f"_{layer}"
            layer_losses = self._layer_losses(
                mask_logits.float(), class_logits.float(), targets, head, normalizers
            )
            result.update({f"{name}{suffix}": value for name, value in layer_losses.items()})
        if self.outlier_weight > 0:
            share = len(targets) / normalizers.num_images
            result["loss_outlier"] = (share * self.outlier_weight) * self._outlier_loss(
                *predictions[-1], targets, head.num_known
            )
        return result

    @torch.no_grad()
    def match(self, mask_logits: Tensor, class_logits: Tensor, targets: list[Target]):
        """Match one prediction layer; per image query and target indices.

        Args:
            mask_logits: (B, Q, h, w).
            class_logits: (B, Q, R) without margin.
        """
        return [
            self._match_image(masks, classes, target)
            for masks, classes, target in zip(mask_logits, class_logits, targets, strict=True)
        ]

    def _match_image(self, mask_logits: Tensor, class_logits: Tensor, target: Target):
        if len(target.classes) == 0:
            empty = target.classes.new_zeros(0)
            return empty, empty
        points = self._match_points(mask_logits)
        valid = None
        if self.exclude_void:
            valid = losses.sample_points(target.valid[None, None].float(), points, "nearest")[0]
        costs = pair_costs(
            losses.sample_points(mask_logits[:, None], points),
            losses.sample_points(target.masks[:, None].float(), points),
            class_logits,
            target.classes,
            self.match_weights,
            valid,
        )
        return assign(costs)

    def _match_points(self, mask_logits: Tensor) -> Tensor:
        """One set of points (1, P, 2) for all queries and targets of an image."""
        if self.match_points == 0:
            return losses.dense_points(*mask_logits.shape[-2:], mask_logits.device)[None]
        return torch.rand(1, self.match_points, 2, device=mask_logits.device)

    def _layer_losses(self, mask_logits, class_logits, targets, head, normalizers):
        matches = self.match(mask_logits, class_logits, targets)
        class_targets = class_logits.new_full(
            class_logits.shape[:2], self.num_classes, dtype=torch.int64
        )
        for image, (queries, indices) in enumerate(matches):
            class_targets[image, queries] = targets[image].classes[indices]
        row_weights = class_logits.new_ones(self.num_classes + 1)
        row_weights[-1] = self.no_object_weight
        class_loss = losses.weighted_cross_entropy(
            head.loss_logits(class_logits, class_targets),
            class_targets,
            row_weights,
            normalizers.class_weight,
        )
        mask_loss, dice_loss = self._mask_losses(mask_logits, targets, matches, normalizers)
        return {
            "loss_mask": self.mask_weight * mask_loss,
            "loss_dice": self.dice_weight * dice_loss,
            "loss_class": self.class_weight * class_loss,
        }

    def _mask_losses(self, mask_logits, targets, matches, normalizers):
        if sum(len(queries) for queries, _ in matches) == 0:
            zero = 0.0 * mask_logits.sum()  # keeps the graph, so that every rank has gradients
            return zero, zero
        matched = torch.cat([mask_logits[i, q] for i, (q, _) in enumerate(matches)])[:, None]
        masks = torch.cat([targets[i].masks[t] for i, (_, t) in enumerate(matches)])[:, None]
        points = self._loss_points(matched)
        point_logits = losses.sample_points(matched, points)
        with torch.no_grad():
            point_targets = losses.sample_points(masks.float(), points)
            valid = None
            if self.exclude_void:
                maps = torch.cat(
                    [targets[i].valid.expand(len(t), 1, -1, -1) for i, (_, t) in enumerate(matches)]
                )
                valid = losses.sample_points(maps.float(), points, "nearest")
        return (
            losses.bce_loss(point_logits, point_targets, normalizers.num_masks, valid),
            losses.dice_loss(point_logits, point_targets, normalizers.num_masks, valid),
        )

    def _loss_points(self, matched: Tensor) -> Tensor:
        if self.loss_points == 0:
            points = losses.dense_points(*matched.shape[-2:], matched.device)
            return points.expand(len(matched), -1, -1)
        return losses.uncertain_points(
            matched, self.loss_points, self.oversample_ratio, self.importance_ratio
        )

    def _outlier_loss(self, mask_logits, class_logits, targets, num_known: int) -> Tensor:
        known, outlier = [], []
        for target in targets:
            is_known = (target.masks & (target.classes < num_known)[:, None, None]).any(dim=0)
            is_outlier = (target.masks & (target.classes >= num_known)[:, None, None]).any(dim=0)
            grids = F.interpolate(
                torch.stack([is_known, is_outlier])[None].float(),
                size=mask_logits.shape[-2:],
                mode="nearest",
            )[0]
            known.append(grids[0].bool())
            outlier.append(grids[1].bool())
        return losses.outlier_hinge(
            mask_logits.float(),
            class_logits.float(),
            torch.stack(known),
            torch.stack(outlier),
            num_known,
            self.outlier_upper,
            self.outlier_lower,
        )
