"""Filters of score maps."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from anoseg_d2.config import load_config
from anoseg_d2.modeling.postprocess import POSTPROCESS, gaussian, road_prior


def test_gaussian_is_scipys_within_the_kernels_reach():
    score = torch.rand(40, 50, generator=torch.Generator().manual_seed(0))
    expected = gaussian_filter(score.numpy().astype(np.float64), 2.0, mode="mirror", truncate=3.0)
    np.testing.assert_allclose(gaussian(score, None).numpy(), expected, atol=1e-5)


def test_gaussian_keeps_a_constant_and_a_single_row():
    constant = torch.full((9, 9), 0.3)
    torch.testing.assert_close(gaussian(constant, None), constant)
    row = torch.rand(1, 9)
    assert torch.equal(gaussian(row, None), row)


def test_road_prior_keeps_what_lies_on_the_ground_and_what_interrupts_it():
    # columns: ground from row 1 with an obstacle in it; none; pavement from row 2
    sem_seg = torch.tensor([[10, 10, 10], [0, 10, 10], [13, 2, 1], [0, 2, 1]])
    score = torch.arange(12.0).view(4, 3) + 1
    low = 1.0
    expected = torch.tensor([[low, low, low], [4, low, low], [7, low, 9], [10, low, 12]])
    assert torch.equal(road_prior(score, sem_seg), expected)


def test_filters_are_off_by_default_and_chosen_by_name():
    assert list(load_config().TEST.ANOMALY.POSTPROCESS) == []
    with pytest.raises(ValueError, match="unknown post-processing filter 'blur'.*gaussian"):
        POSTPROCESS["blur"]
