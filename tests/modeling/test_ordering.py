"""Margin ordering: the loss of pairs of crops in the model, off unless it is asked for."""

import pytest
import torch
from tiny_models import tiny_criterion

from anoseg_d2.modeling import EoMT
from anoseg_d2.modeling.losses import ordering_hinge

WEIGHT = 3.0


def paired_batch(tiny_batch):
    """Two samples whose upper half is pasted over, the second one with void on the left."""
    samples = tiny_batch(2)
    for index, sample in enumerate(samples):
        sample["original"], sample["original_sem_seg"] = sample["image"], sample["sem_seg"]
        sample["image"], sample["sem_seg"] = sample["image"].clone(), sample["sem_seg"].clone()
        sample["image"][:, :16] = 90
        sample["sem_seg"][:16] = 3
        sample["original_sem_seg"] = sample["original_sem_seg"].clone()
        sample["original_sem_seg"][:, : 4 * index] = 255
    return samples


@pytest.fixture
def model(tiny_eomt):
    criterion = tiny_criterion(4, order_weight=WEIGHT)
    model = tiny_eomt(has_anomaly=True, masked_attention=False, criterion=criterion)
    torch.nn.init.normal_(model.query.weight)
    return model.train()


def test_the_model_orders_the_anomaly_score_of_each_pair(model, tiny_batch):
    samples = paired_batch(tiny_batch)
    losses = model(samples)
    per_image = []
    for sample in samples:
        maps = []
        for image in (sample["original"], sample["image"]):
            mask_logits, class_logits = model.predict_masks(image[None])[-1]
            probs = class_logits.softmax(-1)[0, :, 3]
            maps.append((probs[:, None, None] * mask_logits[0].sigmoid()).sum(0))
        # The mask grid has a quarter of the image's side; nearest takes every fourth label.
        before, after = (sample[k][::4, ::4] for k in ("original_sem_seg", "sem_seg"))
        per_image.append(ordering_hinge(*maps, before < 3, after < 3, after == 3))
    expected = WEIGHT * sum(per_image) / 2
    assert expected > 0.1
    torch.testing.assert_close(losses["loss_order"], expected, rtol=1e-4, atol=1e-5)


def test_micro_batches_add_up_and_both_images_get_a_gradient(model, tiny_batch):
    samples = paired_batch(tiny_batch)
    normalizers = model.criterion.normalizers([3, 3], model.num_queries)
    parts = [model([sample], normalizers)["loss_order"] for sample in samples]
    whole = model(samples, normalizers)["loss_order"]
    torch.testing.assert_close(sum(parts), whole)
    seen = []
    run = model.predict_masks
    model.predict_masks = lambda images, **options: seen.append(run(images, **options)) or seen[-1]
    loss = model(samples)["loss_order"]
    seen[0][-1][0].retain_grad()
    loss.backward()
    assert seen[0][-1][0].grad.abs().sum() > 0
    assert model.backbone.blocks[0].mlp.fc1.weight.grad.abs().sum() > 0


def test_the_ordering_has_the_same_gradient_however_much_is_kept(model, tiny_batch):
    gradients = []
    for mode in ("none", "heads"):
        model.recompute = mode
        model.zero_grad()
        sum(model(paired_batch(tiny_batch)).values()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-5, msg=name)


def test_without_the_weight_nothing_is_added(tiny_eomt, tiny_batch):
    model = tiny_eomt(has_anomaly=True).train()
    assert "loss_order" not in model(paired_batch(tiny_batch))


def test_samples_without_their_original_are_refused(model, tiny_batch):
    samples = paired_batch(tiny_batch)
    del samples[1]["original"]
    with pytest.raises(ValueError, match="a sample has none; AnosegDatasetMapper adds it"):
        model(samples)


@pytest.mark.parametrize(
    "overrides,message",
    [
        (["MODEL.EOMT.ANOMALY_CLASS", False], "ANOMALY_CLASS must be True"),
        (["INPUT.CUT_PASTE.ENABLED", False], "CUT_PASTE.ENABLED must be True"),
        (["MODEL.RATIO.ALONE", True], "RATIO.ALONE must be False"),
        (["MODEL.CRITERION.ORDER_MARGINS", (0.7, 0.5)], "ORDER_MARGINS"),
    ],
)
def test_what_it_needs_is_checked_in_the_config(tiny_cfg, overrides, message):
    needed = ["MODEL.EOMT.ANOMALY_CLASS", True, "INPUT.CUT_PASTE.ENABLED", True]
    needed += ["MODEL.CRITERION.ORDER_WEIGHT", 1.0]
    assert EoMT(tiny_cfg(*needed)).criterion.order_weight == 1
    with pytest.raises(ValueError, match=message):
        EoMT(tiny_cfg(*needed, *overrides))
