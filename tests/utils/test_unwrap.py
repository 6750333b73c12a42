"""The model itself, whatever training puts around it."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from anoseg_d2.utils.unwrap import unwrap


@pytest.mark.slow
def test_every_wrapper_is_taken_off_and_a_model_without_is_itself():
    model = nn.Linear(2, 2)
    assert unwrap(model) is model
    assert unwrap(nn.DataParallel(model)) is model
    assert unwrap(torch.compile(nn.DataParallel(torch.compile(model)))) is model


def test_averaged_weights_are_a_model_of_their_own():
    averaged = AveragedModel(nn.Linear(2, 2))
    assert unwrap(averaged) is averaged.module
