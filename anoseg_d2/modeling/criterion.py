"""Match every prediction with the targets and sum the losses (EoMT's set criterion).

Shape letters: B images, Q queries, R class rows, T targets of one image, M matched masks,
(H, W) label size, (h, w) mask grid.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from anoseg_d2.modeling import losses
from anoseg_d2.modeling.heads import ClassHead
from anoseg_d2.modeling.matcher import assign, pair_costs
from anoseg_d2.utils.constants import NO_OBJECT_WEIGHT, VOID
from anoseg_d2.utils.options import check_options, names_of, option, options_of
from anoseg_d2.utils.ranges import integer, number, one_of


class Target(NamedTuple):
    """Ground truth of one image: its label map, from which the losses read masks at points.

    classes: (T,) int64, the classes that occur; the anomaly class is one of them.
    sem_seg: (H, W) uint8 class of each pixel, 255 for void and padding.
    """

    classes: Tensor
    sem_seg: Tensor

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
    # Counting bytes is many times faster than `unique`, which sorts every pixel.
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


@dataclass(frozen=True)
class CriterionOptions:
    """Options of `SetCriterion`."""

    mask_weight: float = option(5.0, number(0), "weight of the binary cross entropy of masks")
    dice_weight: float = option(5.0, number(0), "weight of the dice loss of masks")
    class_weight: float = option(2.0, number(0), "weight of the cross entropy of classes")
    no_object_weight: float = option(
        NO_OBJECT_WEIGHT, number(0), "weight of the no-object class in that loss"
    )
    match_mask_cost: float = option(
        5.0, number(0), "weight of the mask loss in matching queries with classes"
    )
    match_dice_cost: float = option(5.0, number(0), "weight of the dice loss in matching")
    match_class_cost: float = option(2.0, number(0), "weight of the class probability in matching")
    match_points: int = option(
        12544,
        integer(0, 10**6, "0: every pixel of the mask grid"),
        "points of an image at which masks are matched",
    )
    loss_points: int = option(
        12544,
        integer(0, 10**6, "0: every pixel of the mask grid"),
        "points of a matched mask at which the loss is taken",
    )
    oversample_ratio: float = option(
        3.0, number(1, 10), "LOSS_POINTS are chosen from this many times as many random ones"
    )
    importance_ratio: float = option(
        0.75, number(0, 1), "fraction of LOSS_POINTS where the mask is least certain"
    )
    void: str = option(
        "negative",
        one_of("negative", "exclude"),
        "loss at void pixels; negative: they are outside of every mask; exclude: none",
    )
    outlier_weight: float = option(
        0.0, number(0), "weight of RbA's hinge on pasted and known pixels; 0: none"
    )
    outlier_upper: float = option(
        -0.7, number(), "the hinge pushes the RbA score of known pixels below this"
    )
    outlier_lower: float = option(
        -0.1, number(), "the hinge pushes the RbA score of pasted pixels above this"
    )

    def __post_init__(self):
        check_options(self)
        if self.outlier_upper > self.outlier_lower:
            upper, lower = names_of(self, "outlier_upper", "outlier_lower")
            raise ValueError(
                f"{upper} is {self.outlier_upper}; it must be at most {lower}, {self.outlier_lower}"
            )


def of_layer(losses: dict[str, Tensor], layer: int, final: bool) -> dict[str, Tensor]:
    """Name the losses of a prediction layer: those of the last one keep their names."""
    return losses if final else {f"{name}_{layer}": loss for name, loss in losses.items()}


class SetCriterion(nn.Module):
    """Losses of "Your ViT is Secretly an Image Segmentation Model" (arXiv:2503.19108).

    The mask losses are BCE and dice at points that are mostly uncertain; the class loss is a
    weighted cross entropy over all queries, where unmatched ones are no-object. Every prediction
    is matched separately. Everything is float32.

    Args:
        num_classes: number of class rows without no-object.
        options: of `CriterionOptions`, by name.
    """

    def __init__(self, num_classes: int, **options):
        super().__init__()
        self.num_classes = num_classes
        self.options = CriterionOptions(**options)

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Return the arguments other than `num_classes` from `cfg.MODEL.CRITERION`."""
        return vars(options_of(cfg, "MODEL.CRITERION", CriterionOptions))

    def normalizers(self, num_targets: list[int], num_queries: int) -> LossNormalizers:
        """Return the divisors for one optimiser step; every rank must call this.

        Args:
            num_targets: T of every image of this rank in the step, all micro-batches.
            num_queries: Q.
        """
        matched = float(sum(min(count, num_queries) for count in num_targets))
        unmatched = num_queries * len(num_targets) - matched
        totals = torch.tensor([matched, matched + self.options.no_object_weight * unmatched])
        if distributed.is_available() and distributed.is_initialized():
            if distributed.get_backend() == "nccl":
                totals = totals.to(torch.device("cuda", torch.cuda.current_device()))
            distributed.all_reduce(totals)
            # Ranks average their gradients: with the mean count that is the whole batch's.
            totals = totals / distributed.get_world_size()
        num_masks, class_weight = totals.tolist()
        # A step may show nothing but void.
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
            result |= of_layer(values, layer, final)
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
            final: whether it is the last one; only that has the outlier term.
        Returns:
            scalars `loss_mask`, `loss_dice`, `loss_class`, and `loss_outlier` if it is on.
        """
        mask_logits, class_logits = prediction[0], prediction[1].float()
        class_targets = class_logits.new_full(
            class_logits.shape[:2], self.num_classes, dtype=torch.int64
        )
        # All other queries keep the last row, no-object.
        class_targets[matches.images, matches.queries] = matches.classes
        row_weights = class_logits.new_ones(self.num_classes + 1)
        row_weights[-1] = self.options.no_object_weight
        loss_logits = head.loss_logits(class_logits, class_targets).flatten(0, 1)
        # Over all B * Q rows, each with the weight of its target's class.
        class_loss = F.cross_entropy(
            loss_logits, class_targets.flatten(), row_weights, reduction="sum"
        )
        mask_loss, dice_loss = self._mask_losses(mask_logits, targets, matches, normalizers)
        result = {
            "loss_mask": self.options.mask_weight * mask_loss,
            "loss_dice": self.options.dice_weight * dice_loss,
            "loss_class": self.options.class_weight * (class_loss / normalizers.class_weight),
        }
        if final and self.options.outlier_weight > 0:
            fraction = len(targets) / normalizers.num_images
            # Nearest: between two labels there is no other one.
            sem_seg = torch.stack([target.sem_seg for target in targets])[:, None].float()
            labels = F.interpolate(sem_seg, size=mask_logits.shape[-2:], mode="nearest")[:, 0]
            known = labels < head.num_known
            outlier = (labels >= head.num_known) & (labels != VOID)
            bounds = head.num_known, self.options.outlier_upper, self.options.outlier_lower
            hinge = losses.outlier_hinge(mask_logits.float(), class_logits, known, outlier, *bounds)
            result["loss_outlier"] = (fraction * self.options.outlier_weight) * hinge
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
        # Image by image, because each has its own number of targets.
        costs = [
            self._image_costs(mask_logits[image].float(), class_logits[image].float(), target)
            for mask_logits, class_logits in predictions
            for image, target in enumerate(targets)
        ]
        pairs, device = assign(costs), predictions[0][0].device
        starts = torch.tensor([0, *(len(target.classes) for target in targets)]).cumsum(0)
        starts, classes = starts.to(device), torch.cat([target.classes for target in targets])
        matches = []
        for first in range(0, len(pairs), len(targets)):
            own = pairs[first : first + len(targets)]  # (queries, target indices) of every image
            numbers = [torch.full_like(queries, image) for image, (queries, _) in enumerate(own)]
            columns = [torch.cat(part) for part in (numbers, *zip(*own, strict=True))]
            images, queries, indices = torch.stack(columns).to(device, non_blocking=True)
            matches.append(Matches(images, queries, classes[starts[images] + indices]))
        return matches

    def _image_costs(self, mask_logits: Tensor, class_logits: Tensor, target: Target) -> Tensor:
        """Return the matching costs (Q, T) of one image and layer."""
        if len(target.classes) == 0:
            return class_logits.new_zeros(len(class_logits), 0)
        options = self.options
        if options.match_points == 0:
            points = losses.dense_points(*mask_logits.shape[-2:], mask_logits.device)[None]
        else:  # one set for all queries and targets of the image
            points = torch.rand(1, options.match_points, 2, device=mask_logits.device)
        images = torch.zeros_like(target.classes)
        sem_seg = target.sem_seg[None]
        return pair_costs(
            losses.sample_points(mask_logits[:, None], points),
            losses.sample_class_masks(sem_seg, images, target.classes, points),
            class_logits,
            target.classes,
            (options.match_mask_cost, options.match_dice_cost, options.match_class_cost),
            losses.sample_valid(sem_seg, images, points)[0] if options.void == "exclude" else None,
        )

    def _mask_losses(self, mask_logits, targets, matches, normalizers):
        if len(matches.images) == 0:
            # Not a plain zero: the graph must reach every parameter, or a rank without targets
            # would have no gradients where DistributedDataParallel waits for them.
            zero = 0.0 * mask_logits.float().sum()
            return zero, zero
        # Unmatched masks have no mask loss: only the matched ones are converted to float32.
        matched = mask_logits[matches.images, matches.queries].float()[:, None]
        options = self.options
        if options.loss_points == 0:
            points = losses.dense_points(*matched.shape[-2:], matched.device)
            points = points.expand(len(matched), -1, -1)
        else:
            points = losses.uncertain_points(
                matched, options.loss_points, options.oversample_ratio, options.importance_ratio
            )
        sem_seg = torch.stack([target.sem_seg for target in targets])
        point_logits = losses.sample_points(matched, points)
        with torch.no_grad():  # or the backward pass would keep every target
            point_targets = losses.sample_class_masks(
                sem_seg, matches.images, matches.classes, points
            )
            valid = None
            if options.void == "exclude":
                valid = losses.sample_valid(sem_seg, matches.images, points)
        return (
            losses.bce_loss(point_logits, point_targets, normalizers.num_masks, valid),
            losses.dice_loss(point_logits, point_targets, normalizers.num_masks, valid),
        )
