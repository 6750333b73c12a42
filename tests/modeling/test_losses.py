"""Mask losses on points, class loss, outlier hinge."""

import pytest
import torch
from detectron2.projects.point_rend.point_features import point_sample
from torch.nn import functional as F

from anoseg_d2.modeling import losses


def test_points_at_pixel_centres_read_the_pixels():
    maps = torch.randn(2, 1, 3, 5)
    points = losses.dense_points(3, 5, "cpu").expand(2, -1, -1)
    torch.testing.assert_close(losses.sample_points(maps, points), maps.flatten(1))


def test_bilinear_points_equal_detectron2s_reading_up_to_the_border():
    maps, points = torch.randn(3, 1, 4, 6), torch.rand(3, 500, 2)
    points[:, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.01, 0.5], [0.5, 0.99]])
    expected = point_sample(maps, points, align_corners=False)[:, 0]
    torch.testing.assert_close(losses.sample_points(maps, points), expected, rtol=0, atol=1e-6)


def test_x_runs_along_columns_and_y_along_rows():
    maps = torch.zeros(1, 1, 2, 4)
    maps[0, 0, 1, 2] = 1.0
    points = torch.tensor([[[0.625, 0.75], [0.625, 0.25]]])
    assert losses.sample_points(maps, points).tolist() == [[1.0, 0.0]]


def test_uncertain_points_are_the_least_certain_candidates_and_the_rest_uniform():
    logits = torch.linspace(-4, 4, 64).expand(1, 1, 64, 64).contiguous()
    state = torch.get_rng_state()
    points = losses.uncertain_points(logits, 200, 3.0, 0.75)
    torch.set_rng_state(state)
    candidates, uniform = torch.rand(1, 600, 2), torch.rand(1, 50, 2)
    order = losses.sample_points(logits, candidates)[0].abs().argsort()[:150]
    assert points.shape == (1, 200, 2)
    found = {tuple(point) for point in points[0, :150].tolist()}
    assert found == {tuple(point) for point in candidates[0, order].tolist()}
    assert torch.equal(points[0, 150:], uniform[0])
    # The logit is 0 in the middle column, and a quarter of the candidates lies nearest to it.
    assert (points[0, :150, 0] - 0.5).abs().max() < 0.2
    assert (points[0, 150:, 0] - 0.5).abs().max() > 0.3


def test_default_counts_of_points_are_those_of_the_method():
    drawn = []

    def record(*args, **kwargs):
        drawn.append(args[:2])
        return original(*args, **kwargs)

    original, torch.rand = torch.rand, record
    try:
        points = losses.uncertain_points(torch.randn(1, 1, 8, 8), 12544, 3.0, 0.75)
    finally:
        torch.rand = original
    assert drawn == [(1, 37632), (1, 3136)]
    assert points.shape == (1, 12544, 2)


def test_bce_and_dice_by_hand():
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    targets = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    log2 = torch.log(torch.tensor(2.0))
    torch.testing.assert_close(losses.bce_loss(logits, targets, 4.0), 2 * log2 / 4)
    # p = 1/2: 1 - (2 * 1/2 + 1) / (1 + 1 + 1) = 1/3 and 1 - (2 + 1) / (1 + 2 + 1) = 1/4
    expected = torch.tensor((1 / 3 + 1 / 4) / 4)
    torch.testing.assert_close(losses.dice_loss(logits, targets, 4.0), expected)


def test_invalid_points_change_neither_loss_nor_gradient():
    logits = torch.randn(2, 6, requires_grad=True)
    targets = (torch.rand(2, 6) > 0.5).float()
    valid = torch.tensor([[1, 1, 0, 1, 0, 1], [1, 0, 1, 1, 1, 1]]).float()
    for loss in (losses.bce_loss, losses.dice_loss):
        (gradient,) = torch.autograd.grad(loss(logits, targets, 1.0, valid), logits)
        assert (gradient[valid == 0] == 0).all()
        assert (gradient[valid == 1] != 0).all()
        flipped = torch.where(valid == 0, 1 - targets, targets)
        torch.testing.assert_close(
            loss(logits, targets, 1.0, valid), loss(logits, flipped, 1.0, valid)
        )


def test_valid_points_count_as_if_the_others_were_not_there():
    logits, targets = torch.randn(1, 6), (torch.rand(1, 6) > 0.5).float()
    keep = torch.tensor([0, 2, 3])
    valid = torch.zeros(1, 6)
    valid[0, keep] = 1
    for loss in (losses.bce_loss, losses.dice_loss):
        expected = loss(logits[:, keep], targets[:, keep], 1.0)
        torch.testing.assert_close(loss(logits, targets, 1.0, valid), expected)


def test_a_mask_without_valid_points_costs_nothing():
    logits = torch.randn(1, 4, requires_grad=True)
    for loss in (losses.bce_loss, losses.dice_loss):
        value = loss(logits, torch.ones(1, 4), 1.0, torch.zeros(1, 4))
        (gradient,) = torch.autograd.grad(value, logits)
        assert value == 0 and (gradient == 0).all()


def hinge(mask_logit, class_logits, known, outlier, **bounds):
    masks = torch.full((1, 1, 1, 1), mask_logit)
    flags = [torch.tensor([[[flag]]]) for flag in (known, outlier)]
    return losses.outlier_hinge(masks, torch.tensor([[class_logits]]), *flags, 2, **bounds).item()


def test_outlier_hinge_by_hand():
    sure = [40.0, 0.0, 0.0, 0.0]  # class 0 of 2 known, the anomaly, no-object
    claimed = -torch.tanh(torch.tensor(1.0)).item()  # -0.762
    assert hinge(40.0, sure, True, False) == pytest.approx(0.0, abs=1e-6)
    assert hinge(40.0, sure, False, True) == pytest.approx(0.5 * (-0.1 - claimed) ** 2, rel=1e-4)
    assert hinge(-40.0, sure, True, False) == pytest.approx(0.5 * 0.7**2, rel=1e-4)
    assert hinge(-40.0, sure, False, True) == 0  # unclaimed, as an outlier should be
    assert hinge(-40.0, sure, False, False) == 0
    assert hinge(40.0, [0.0, 0.0, 40.0, 0.0], False, True) == 0  # claimed as an anomaly


def test_outlier_hinge_takes_the_mean_over_the_pixels_of_each_side():
    mask_logits = torch.tensor([[[[40.0, -40.0], [-40.0, 40.0]]]])
    class_logits = torch.tensor([[[40.0, 0.0, 0.0, 0.0]]])
    known = torch.tensor([[[True, True], [True, False]]])
    value = losses.outlier_hinge(mask_logits, class_logits, known, ~known, 2)
    claimed = -torch.tanh(torch.tensor(1.0)).item()
    known_side, outlier_side = (0 + 0.7**2 + 0.7**2) / 3, (-0.1 - claimed) ** 2
    assert value.item() == pytest.approx(0.5 * (known_side + outlier_side), rel=1e-4)


def test_outlier_hinge_pushes_masks_off_outliers_and_onto_known_pixels():
    mask_logits = torch.zeros(1, 1, 1, 2, requires_grad=True)
    class_logits = torch.tensor([[[3.0, 0.0, 0.0, 0.0]]])
    known = torch.tensor([[[True, False]]])
    losses.outlier_hinge(mask_logits, class_logits, known, ~known, 2).backward()
    assert mask_logits.grad[0, 0, 0, 0] < 0 < mask_logits.grad[0, 0, 0, 1]


def test_losses_of_extreme_logits_are_finite():
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    targets = torch.tensor([[0.0, 1.0]])
    for loss in (losses.bce_loss, losses.dice_loss):
        value = loss(logits, targets, 1.0)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.isfinite() and gradient.isfinite().all()
    assert losses.bce_loss(logits, targets, 1.0).item() == pytest.approx(
        F.softplus(torch.tensor(1e4)).item()
    )


def test_one_set_of_points_reads_every_map_as_its_own_would():
    maps, points = torch.randn(5, 1, 7, 9), torch.rand(1, 40, 2)
    shared = losses.sample_points(maps, points)
    assert torch.equal(shared, losses.sample_points(maps, points.expand(5, -1, -1)))


@pytest.mark.parametrize("size", [(32, 32), (48, 64), (37, 100)])
def test_masks_read_from_labels_equal_masks_sampled_as_images(size):
    sem_seg = torch.randint(4, (2, *size), dtype=torch.uint8)
    images, classes = torch.tensor([0, 1, 1]), torch.tensor([0, 2, 3])
    points = torch.rand(3, 3000, 2)
    points[:, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.01, 0.5], [0.5, 1.0]])
    masks = (sem_seg[images] == classes[:, None, None])[:, None].float()
    found = losses.sample_class_masks(sem_seg, images, classes, points)
    # Only the rounding of a pixel coordinate differs, where the compiler fuses it.
    torch.testing.assert_close(found, losses.sample_points(masks, points), rtol=0, atol=1e-5)
    dense = losses.dense_points(*size, "cpu")[None]
    one_image = torch.zeros(3, dtype=torch.int64)
    masks = (sem_seg[:1] == classes[:, None, None])[:, None].float()
    shared = losses.sample_class_masks(sem_seg[:1], one_image, classes, dense)
    torch.testing.assert_close(shared, losses.sample_points(masks, dense), rtol=0, atol=1e-5)


def test_valid_points_read_from_labels_equal_the_nearest_reading_of_the_valid_map():
    sem_seg = torch.randint(4, (2, 37, 53), dtype=torch.uint8)
    sem_seg[torch.rand(sem_seg.shape) < 0.3] = 255
    images, points = torch.tensor([1, 0, 1]), torch.rand(3, 3000, 2)
    options = {"mode": "nearest", "padding_mode": "border", "align_corners": False}
    valid = (sem_seg[images] != 255)[:, None].float()
    expected = F.grid_sample(valid, 2 * points[:, :, None] - 1, **options)[:, 0, :, 0]
    assert torch.equal(losses.sample_valid(sem_seg, images, points), expected)
