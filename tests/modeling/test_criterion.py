"""Set criterion: against transformers, against dense computation, and its identities."""

import pytest
import torch
from torch.nn import functional as F
from transformers import EomtConfig, Mask2FormerConfig
from transformers.models.eomt.modeling_eomt import EomtLoss
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from anoseg_d2.modeling.criterion import SetCriterion, Target, targets_from_sem_seg
from anoseg_d2.modeling.heads import ArcFaceHead, LinearHead

KNOWN, QUERIES = 4, 7
POINTS = 160
HEAD = LinearHead(8, KNOWN)


def scene(seed=0, size=(32, 48), classes=(0, 2, 3), void=0.1, num_classes=KNOWN):
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(len(classes), (size[0] // 8, size[1] // 8), generator=generator)
    sem_seg = torch.tensor(classes)[cells].repeat_interleave(8, 0).repeat_interleave(8, 1)
    sem_seg[torch.rand(size, generator=generator) < void] = 255
    return targets_from_sem_seg(sem_seg, num_classes)


def predictions(images=2, rows=KNOWN + 1, size=(8, 12), layers=1):
    return [
        (3 * torch.randn(images, QUERIES, *size), 2 * torch.randn(images, QUERIES, rows))
        for _ in range(layers)
    ]


def dense(num_classes=KNOWN, **options):
    return SetCriterion(num_classes, match_points=0, loss_points=0, **options)


def masks_of(target):
    """One mask per class, (T, H, W) bool."""
    return target.sem_seg[None] == target.classes[:, None, None]


def reference_loss(kind):
    """transformers' criterion, unweighted, with the same numbers of points."""
    if kind == "eomt":
        labels = {"num_labels": KNOWN, "train_num_points": POINTS}
        return EomtLoss(EomtConfig(**labels), {})
    config = Mask2FormerConfig(num_labels=KNOWN, train_num_points=POINTS)
    config.class_weight, config.mask_weight, config.dice_weight = 2.0, 5.0, 5.0
    return Mask2FormerLoss(config, {})


@pytest.mark.parametrize("kind", ["eomt", "mask2former"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_losses_equal_transformers_on_the_same_points(kind, seed):
    torch.manual_seed(seed)
    targets = [scene(seed), scene(seed + 10, classes=(1, 3))]
    ((mask_logits, class_logits),) = predictions()
    masks = [masks_of(target).float() for target in targets]
    classes = [target.classes for target in targets]
    torch.manual_seed(seed)  # both draw the same points, in the same order
    theirs = reference_loss(kind)(mask_logits, class_logits, masks, classes)
    torch.manual_seed(seed)
    criterion = SetCriterion(KNOWN, match_points=POINTS, loss_points=POINTS)
    ours = criterion([(mask_logits, class_logits)], targets, HEAD)
    weights = {"mask": 5.0, "dice": 5.0, "cross_entropy": 2.0}
    for name, weight in weights.items():
        found = ours["loss_class" if name == "cross_entropy" else f"loss_{name}"]
        expected = weight * theirs[f"loss_{name}"]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def dense_reference(mask_logits, class_logits, targets):
    """All losses of matched pairs, pixel by pixel, for the assignment given as (q, t) lists."""
    mask_loss = dice_loss = 0.0
    labels = torch.full(class_logits.shape[:2], KNOWN)
    count = 0
    for image, (target, pairs) in enumerate(targets):
        for query, index in pairs:
            labels[image, query] = target.classes[index]
            mask = masks_of(target)[index].float()
            logits = mask_logits[image, query]
            mask_loss = mask_loss + F.binary_cross_entropy_with_logits(logits, mask)
            prob = logits.sigmoid()
            ratio = (2 * (prob * mask).sum() + 1) / (prob.sum() + mask.sum() + 1)
            dice_loss = dice_loss + 1 - ratio
            count += 1
    weights = torch.ones(KNOWN + 1)
    weights[-1] = 0.1
    class_loss = F.cross_entropy(class_logits.flatten(0, 1), labels.flatten(), weights)
    return 5 * mask_loss / count, 5 * dice_loss / count, 2 * class_loss


def test_all_points_equal_a_dense_computation():
    ((mask_logits, class_logits),) = predictions(size=(32, 48))
    targets = [scene(0), scene(1, classes=(1,))]
    criterion = dense()
    (matches,) = criterion.match_layers([(mask_logits, class_logits)], targets)
    pairs = [[], []]
    for image, query, label in zip(*(column.tolist() for column in matches), strict=True):
        pairs[image].append((query, targets[image].classes.tolist().index(label)))
    found = criterion([(mask_logits, class_logits)], targets, HEAD)
    expected = dense_reference(mask_logits, class_logits, list(zip(targets, pairs, strict=True)))
    for name, value in zip(("loss_mask", "loss_dice", "loss_class"), expected, strict=True):
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("void", ["negative", "exclude"])
def test_losses_do_not_depend_on_the_order_of_targets(void):
    layers = predictions(images=1, layers=2)
    target = scene(0)
    order = torch.tensor([2, 0, 1])
    shuffled = Target(target.classes[order], target.sem_seg)
    first = dense(void=void)(layers, [target], HEAD)
    second = dense(void=void)(layers, [shuffled], HEAD)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-6, atol=1e-6)


def mask_gradient(criterion, target, mask_logits, class_logits):
    mask_logits = mask_logits.clone().requires_grad_()
    losses = criterion([(mask_logits, class_logits)], [target], HEAD)
    (losses["loss_mask"] + losses["loss_dice"]).backward()
    return mask_logits.grad[0]


@pytest.mark.parametrize("points", [0, 4000])
def test_excluded_void_has_zero_gradient(points):
    target = scene(0, size=(16, 16), void=0.0)
    void = torch.zeros(16, 16, dtype=torch.bool)
    void[4:12, 4:12] = True
    target = Target(target.classes, target.sem_seg.masked_fill(void, 255))
    criterion = SetCriterion(KNOWN, match_points=points, loss_points=points, void="exclude")
    ((mask_logits, class_logits),) = predictions(images=1, size=(16, 16))
    gradient = mask_gradient(criterion, target, mask_logits, class_logits)
    # A bilinear read at a valid point touches its void neighbours, so one pixel in from the edge.
    inner = void if points == 0 else F.pad(torch.ones(6, 6), (5, 5, 5, 5)).bool()
    assert (gradient[:, inner] == 0).all()
    assert gradient[:, ~void].abs().sum() > 0


def test_excluded_void_does_not_decide_the_matching():
    criterion = dense(void="exclude")
    mask_logits = torch.full((1, 2, 2, 2), -4.0)
    mask_logits[0, 0, 0] = 4.0  # query 0 is right on the valid row
    mask_logits[0, 0, 1] = 4.0  # and claims void, query 1 claims nothing
    mask_logits[0, 1, 0, 0] = 4.0
    target = targets_from_sem_seg(torch.tensor([[1, 1], [255, 255]]), KNOWN)
    (matches,) = criterion.match_layers([(mask_logits, torch.zeros(1, 2, KNOWN + 1))], [target])
    assert matches.queries.tolist() == [0]


def test_void_as_negative_pushes_every_matched_mask_down():
    target = scene(0, size=(16, 16), void=0.3)
    ((mask_logits, class_logits),) = predictions(images=1, size=(16, 16))
    criterion = dense(void="negative")
    gradient = mask_gradient(criterion, target, mask_logits, class_logits)
    (matches,) = criterion.match_layers([(mask_logits, class_logits)], [target])
    queries = matches.queries
    assert (gradient[queries][:, target.sem_seg == 255] > 0).all()
    others = sorted(set(range(QUERIES)) - set(queries.tolist()))
    assert (gradient[others] == 0).all()


def test_an_image_without_targets_asks_all_queries_for_no_object():
    ((mask_logits, class_logits),) = predictions(images=1)
    empty = targets_from_sem_seg(torch.full((32, 48), 255), KNOWN)
    losses = dense()([(mask_logits, class_logits)], [empty], HEAD)
    expected = 2 * F.cross_entropy(class_logits[0], torch.full((QUERIES,), KNOWN))
    torch.testing.assert_close(losses["loss_class"], expected)
    assert losses["loss_mask"] == losses["loss_dice"] == 0


def test_a_batch_without_targets_still_gives_every_parameter_a_gradient(tiny_eomt, tiny_batch):
    model = tiny_eomt(has_anomaly=True).train()
    batch = tiny_batch()
    for sample in batch:
        sample["sem_seg"] = torch.full_like(sample["sem_seg"], 255)
    losses = model(batch)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(p.grad.abs().sum() == 0 for p in model.mask_head.parameters())


def test_more_targets_than_queries_count_the_matched_masks_alone():
    criterion = dense()
    normalizers = criterion.normalizers([KNOWN, 1], num_queries=2)
    assert normalizers.num_masks == 3
    assert normalizers.class_weight == pytest.approx(3 + 0.1 * 1)


def test_every_prediction_is_matched_and_weighed_by_itself():
    layers = predictions(layers=3)
    targets = [scene(0), scene(1)]
    together = dense()(layers, targets, HEAD)
    assert len(together) == 9
    for index, layer in enumerate(layers):
        alone = dense()([layer], targets, HEAD)
        suffix = "" if index == 2 else f"_{index}"
        for name, value in alone.items():
            torch.testing.assert_close(together[name + suffix], value)


def test_weights_scale_their_losses():
    layers, targets = predictions(), [scene(0), scene(1)]
    base = dense()(layers, targets, HEAD)
    other = dense(mask_weight=20.0, dice_weight=1.0, class_weight=4.0)(layers, targets, HEAD)
    for name, factor in (("loss_mask", 4.0), ("loss_dice", 0.2), ("loss_class", 2.0)):
        torch.testing.assert_close(other[name], factor * base[name])


@pytest.mark.parametrize("head", [HEAD, ArcFaceHead(8, KNOWN, margin=0.5)])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 3), (2, 2)])
def test_micro_batches_with_the_normalizers_of_the_step_sum_to_the_whole(head, sizes):
    layers = predictions(images=4, layers=2)
    layers = [(masks, classes.clamp(-25, 25)) for masks, classes in layers]
    void = torch.full((32, 48), 255)
    targets = [scene(0), scene(1, classes=(1,)), targets_from_sem_seg(void, KNOWN), scene(2)]
    criterion = dense()
    whole = criterion(layers, targets, head)
    normalizers = criterion.normalizers([len(t.classes) for t in targets], QUERIES)
    total, start = dict.fromkeys(whole, 0.0), 0
    for size in sizes:
        part = slice(start, start + size)
        pieces = [(masks[part], classes[part]) for masks, classes in layers]
        for name, value in criterion(pieces, targets[part], head, normalizers).items():
            total[name] = total[name] + value
        start += size
    for name, value in whole.items():
        torch.testing.assert_close(total[name], value, rtol=1e-5, atol=1e-5)


def test_outlier_term_is_shared_by_micro_batches_not_multiplied():
    criterion = dense(KNOWN + 1, outlier_weight=3.0)
    head = LinearHead(8, KNOWN, has_anomaly=True)
    ((mask_logits, class_logits),) = predictions(images=1, rows=KNOWN + 2)
    target = scene(0, classes=(0, 2, KNOWN), num_classes=KNOWN + 1)
    once = criterion([(mask_logits, class_logits)], [target], head)["loss_outlier"]
    normalizers = criterion.normalizers([len(target.classes)] * 4, QUERIES)
    parts = [
        criterion([(mask_logits, class_logits)], [target], head, normalizers)["loss_outlier"]
        for _ in range(4)
    ]
    assert once > 0
    torch.testing.assert_close(sum(parts), once)


def test_outlier_term_is_off_by_default():
    assert "loss_outlier" not in dense()(predictions(), [scene(0), scene(1)], HEAD)


def test_targets_are_one_mask_per_class_and_the_anomaly_is_one_of_them():
    sem_seg = torch.tensor([[0, 0, 255], [4, 2, 4]])
    target = targets_from_sem_seg(sem_seg, KNOWN + 1)
    assert target.classes.tolist() == [0, 2, 4]
    assert masks_of(target)[2].tolist() == [[False, False, False], [True, False, True]]


def test_label_maps_of_any_integer_type_give_the_same_target():
    sem_seg = torch.tensor([[0, 0, 255], [4, 2, 4]])
    for dtype in (torch.uint8, torch.int32, torch.int64):
        target = targets_from_sem_seg(sem_seg.to(dtype), KNOWN + 1)
        assert target.sem_seg.dtype == torch.uint8
        assert torch.equal(target.sem_seg.long(), sem_seg)


def test_every_layer_is_matched_as_if_it_were_the_only_one():
    layers, targets = predictions(layers=3), [scene(0), scene(1, classes=(1,))]
    criterion = dense()
    together = criterion.match_layers(layers, targets)
    for layer, matches in zip(layers, together, strict=True):
        (alone,) = criterion.match_layers([layer], targets)
        assert all(map(torch.equal, matches, alone))


def test_an_anomaly_label_without_the_anomaly_class_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 4\].*0\.\.3.*ANOMALY_CLASS"):
        targets_from_sem_seg(torch.tensor([[0, 4]]), KNOWN)


def test_unknown_treatment_of_void_is_refused():
    with pytest.raises(ValueError, match="void is 'ignore'.*negative, exclude"):
        SetCriterion(KNOWN, void="ignore")


def test_losses_are_float32_for_half_precision_predictions():
    layers = [(m.bfloat16(), c) for m, c in predictions()]
    losses = dense()(layers, [scene(0), scene(1)], HEAD)
    assert all(value.dtype == torch.float32 for value in losses.values())
