"""The set criterion of EoMT matches every prediction with the targets and sums the losses.

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
from anoseg_d2.utils.constants import NO_OBJECT_WEIGHT, VOID

__all__ = [
    "LossNormalizers",
    "Matches",
    "SetCriterion",
    "Target",
    "present_classes",
    "targets_from_sem_seg",
]


class Target(NamedTuple):
    """Ground truth of one image: its label map, from which the losses read masks at points.

    classes: (T,) int64, the classes that occur; the anomaly class is one of them.
    sem_seg: (H, W) uint8 class of each pixel, 255 for void and padding.
    """

    classes: Tensor
    sem_seg: Tensor

    @property
    def masks(self) -> Tensor:
        """One mask per class, (T, H, W) bool. The losses never build them."""
        return self.sem_seg[None] == self.classes[:, None, None]

    @property
    def valid(self) -> Tensor:
        """Labelled pixels, (H, W) bool."""
        return self.sem_seg != VOID

    def to(self, device: torch.device) -> "Target":
        """Move to a device; from pinned memory this does not wait."""
        return Target(*(tensor.to(device, non_blocking=True) for tensor in self))


class LossNormalizers(NamedTuple):
    """Divisors of the losses of one optimiser step, averaged over ranks.

    They follow only from the targets, so that accumulated and distributed batches give the
    gradient of the whole batch.

    num_masks: divisor of the mask losses.
    class_weight: divisor of the class loss.
    num_images: number of images of this rank in the step; a micro-batch contributes its
        fraction of the outlier term.
    """

    num_masks: float
    class_weight: float
    num_images: int


def present_classes(sem_seg: Tensor) -> Tensor:
    """Return the values of a label map (any shape, not negative), except void, ascending."""
    counts = torch.bincount(sem_seg.flatten(), minlength=VOID + 1)
    counts[VOID] = 0
    return counts.nonzero()[:, 0]


def targets_from_sem_seg(sem_seg: Tensor, num_classes: int) -> Target:
    """Check a label map and name its classes.

    Args:
        sem_seg: (H, W) integers, 0..num_classes - 1, or 255 for void and padding.
        num_classes: K, or K + 1 with the anomaly class.
    Raises:
        ValueError: a value that is neither a class nor void.
    """
    classes = present_classes(sem_seg)
    if len(classes) and classes[-1] >= num_classes:
        raise ValueError(
            f"label map has values {classes.tolist()}, the model has classes 0..{num_classes - 1} "
            f"and void {VOID}; pasted objects need MODEL.EOMT.ANOMALY_CLASS True"
        )
    return Target(classes, sem_seg.to(torch.uint8))


class Matches(NamedTuple):
    """Matched pairs of one prediction layer, M over all images of the batch, each (M,) int64.

    images: index of the image in the batch.
    queries: matched query.
    classes: class of the target that it is matched to.
    """

    images: Tensor
    queries: Tensor
    classes: Tensor


def _gather_matches(
    pairs: list[tuple[Tensor, Tensor]], targets: list[Target], device: torch.device
) -> Matches:
    """Join the pairs (queries, target indices on the host) of every image."""
    images = [torch.full_like(queries, i) for i, (queries, _) in enumerate(pairs)]
    columns = torch.stack(
        [torch.cat(images), *(torch.cat(part) for part in zip(*pairs, strict=True))]
    ).to(device, non_blocking=True)
    images, queries, indices = columns
    starts = torch.tensor([0, *(len(target.classes) for target in targets)]).cumsum(0)
    classes = torch.cat([target.classes for target in targets])
    return Matches(images, queries, classes[starts.to(device)[images] + indices])


class SetCriterion(nn.Module):
    """Losses of "Your ViT is Secretly an Image Segmentation Model" (arXiv:2503.19108).

    The mask losses are BCE and dice at points that are mostly uncertain; the class loss is a
    weighted cross entropy over all queries, where unmatched ones are no-object. Every prediction
    is matched separately. Everything is float32.

    Args:
        num_classes: number of class rows without no-object.
        mask_weight, dice_weight, class_weight: weights of the three losses.
        no_object_weight: weight of no-object rows in the cross entropy.
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
        no_object_weight: float = NO_OBJECT_WEIGHT,
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
        """Return the arguments other than `num_classes` from `cfg.MODEL.CRITERION`."""
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
        """Return the divisors for one optimiser step; every rank must call this.

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
            normalizers: those of the whole step; None if this batch is the whole step.
        Returns:
            weighted scalars `loss_mask`, `loss_dice`, `loss_class` of the last prediction, the same
            with suffix `_0`, `_1`, ... for those before it, and `loss_outlier` if it is on.
        """
        if normalizers is None:
            normalizers = self.normalizers(
                [len(target.classes) for target in targets], predictions[-1][0].shape[1]
            )
        result = {}
        for layer, (prediction, matched) in enumerate(
            zip(predictions, self.match_layers(predictions, targets), strict=True)
        ):
            final = layer == len(predictions) - 1
            values = self.layer_losses(prediction, targets, matched, head, normalizers, final)
            suffix = "" if final else f"_{layer}"
            result.update({f"{name}{suffix}": value for name, value in values.items()})
        return result

    def layer_losses(
        self,
        prediction: tuple[Tensor, Tensor],
        targets: list[Target],
        matches: Matches,
        head: ClassHead,
        normalizers: LossNormalizers,
        final: bool,
    ) -> dict[str, Tensor]:
        """Return the weighted losses of one prediction layer.

        Args:
            prediction: mask logits (B, Q, h, w) and class logits (B, Q, R).
            targets, head, normalizers: see `forward`; the divisors are required.
            matches: of this layer, see `match_layers`.
            final: whether it is the last one, which alone has the outlier term.
        Returns:
            scalars `loss_mask`, `loss_dice`, `loss_class`, and `loss_outlier` if it is on.
        """
        mask_logits, class_logits = prediction[0], prediction[1].float()
        class_targets = class_logits.new_full(
            class_logits.shape[:2], self.num_classes, dtype=torch.int64
        )
        class_targets[matches.images, matches.queries] = matches.classes
        row_weights = class_logits.new_ones(self.num_classes + 1)
        row_weights[-1] = self.no_object_weight
        class_loss = losses.weighted_cross_entropy(
            head.loss_logits(class_logits, class_targets),
            class_targets,
            row_weights,
            normalizers.class_weight,
        )
        mask_loss, dice_loss = self._mask_losses(mask_logits, targets, matches, normalizers)
        result = {
            "loss_mask": self.mask_weight * mask_loss,
            "loss_dice": self.dice_weight * dice_loss,
            "loss_class": self.class_weight * class_loss,
        }
        if final and self.outlier_weight > 0:
            fraction = len(targets) / normalizers.num_images
            result["loss_outlier"] = (fraction * self.outlier_weight) * self._outlier_loss(
                mask_logits, class_logits, targets, head.num_known
            )
        return result

    @torch.no_grad()
    def match_layers(
        self, predictions: list[tuple[Tensor, Tensor]], targets: list[Target]
    ) -> list[Matches]:
        """Match every prediction layer separately.

        All costs of all layers reach the host in one transfer, because the assignment runs there
        and each transfer makes a GPU wait for everything before it.

        Args:
            predictions: per layer mask logits (B, Q, h, w) and class logits (B, Q, R), without
                margin.
            targets: one per image.
        """
        costs = [
            self._image_costs(mask_logits[image].float(), class_logits[image].float(), target)
            for mask_logits, class_logits in predictions
            for image, target in enumerate(targets)
        ]
        pairs = assign(costs)
        per_layer = [pairs[i : i + len(targets)] for i in range(0, len(pairs), len(targets))]
        device = predictions[0][0].device
        return [_gather_matches(layer, targets, device) for layer in per_layer]

    def _image_costs(self, mask_logits: Tensor, class_logits: Tensor, target: Target) -> Tensor:
        """Return the matching costs (Q, T) of one image and layer."""
        if len(target.classes) == 0:
            return class_logits.new_zeros(len(class_logits), 0)
        points = self._match_points(mask_logits)
        images = torch.zeros_like(target.classes)
        sem_seg = target.sem_seg[None]
        return pair_costs(
            losses.sample_points(mask_logits[:, None], points),
            losses.sample_class_masks(sem_seg, images, target.classes, points),
            class_logits,
            target.classes,
            self.match_weights,
            losses.sample_valid(sem_seg, images, points)[0] if self.exclude_void else None,
        )

    def _match_points(self, mask_logits: Tensor) -> Tensor:
        """Return one set of points (1, P, 2) for all queries and targets of an image."""
        if self.match_points == 0:
            return losses.dense_points(*mask_logits.shape[-2:], mask_logits.device)[None]
        return torch.rand(1, self.match_points, 2, device=mask_logits.device)

    def _mask_losses(self, mask_logits, targets, matches, normalizers):
        if len(matches.images) == 0:
            # Not a plain zero: the graph must reach every parameter, or a rank without targets
            # would have no gradients where DistributedDataParallel waits for them.
            zero = 0.0 * mask_logits.float().sum()
            return zero, zero
        # Unmatched masks have no mask loss: only the matched ones are converted to float32.
        matched = mask_logits[matches.images, matches.queries].float()[:, None]
        points = self._loss_points(matched)
        sem_seg = torch.stack([target.sem_seg for target in targets])
        point_logits = losses.sample_points(matched, points)
        with torch.no_grad():
            point_targets = losses.sample_class_masks(
                sem_seg, matches.images, matches.classes, points
            )
            valid = None
            if self.exclude_void:
                valid = losses.sample_valid(sem_seg, matches.images, points)
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
        known, outlier = _pixel_kinds(targets, num_known, mask_logits.shape[-2:])
        return losses.outlier_hinge(
            mask_logits.float(),
            class_logits,
            known,
            outlier,
            num_known,
            self.outlier_upper,
            self.outlier_lower,
        )


def _pixel_kinds(targets: list[Target], num_known: int, size) -> tuple[Tensor, Tensor]:
    """Return which pixels of a mask grid are known and which are unknown, (B, h, w) bool each."""
    sem_seg = torch.stack([target.sem_seg for target in targets])
    labels = F.interpolate(sem_seg[:, None].float(), size=size, mode="nearest")[:, 0]
    return labels < num_known, (labels >= num_known) & (labels != VOID)
