"""Models for the tests of export, and comparisons of what a file and its model give."""

import numpy as np
import torch
from tiny_models import set_inference, set_info, tiny_eomt
from torch import nn

from anoseg_d2.export.check import draw_image

STATISTICS = {"rba": (-1.2, 0.3), "anomaly": (0.1, 0.2)}


def make_model(head="linear", vit=None, **options):
    """Build a model in eval mode that uses its tensors and sees several classes."""
    sizes = {"num_known": 5, "num_blocks": 1, "num_queries": 12}
    model = tiny_eomt(head, vit={"depth": 2, **(vit or {})}, **sizes, **options).eval()
    set_info(model, score_statistics=dict(STATISTICS))
    for seed in range(20):
        randomize(model, seed)
        classes = model([{"image": image} for image in photographs(2, 32, 32)])
        if all(len(result["sem_seg"].unique()) > 1 for result in classes):
            return model
    raise AssertionError("no seed gives a model that tells classes apart")


def randomize(model, seed):
    generator = torch.Generator().manual_seed(seed)
    stds = {"query.weight": 2, "class_head.weight": 0.5}
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=stds.get(name, 0.2), generator=generator)


def photographs(count, height, width):
    return torch.stack([draw_image(height, width, seed) for seed in range(1, count + 1)])


def answers(model, images, names):
    """What the model itself says: {output: (B, H, W)}."""
    set_inference(model, scores=list(names))
    results = model([{"image": image} for image in images])
    flat = [
        {**r["scores"], "sem_seg": r["sem_seg"], "confidence": r["confidence"]} for r in results
    ]
    return {key: np.stack([values[key].numpy() for values in flat]) for key in flat[0]}


def assert_same(found, expected, tolerance=1e-4):
    assert len(np.unique(expected["sem_seg"])) > 1  # or the comparison says nothing
    for name, values in found.items():
        assert values.shape == expected[name].shape and values.dtype == expected[name].dtype, name
        if name == "sem_seg":
            assert (values != expected[name]).mean() < 1e-3
        else:
            np.testing.assert_allclose(
                values, expected[name], atol=tolerance, rtol=1e-5, err_msg=name
            )
