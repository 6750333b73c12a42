"""The comparison of a file with its model."""

import numpy as np
import torch

from anoseg_d2.export.check import compare_output, draw_image
from anoseg_d2.export.spec import ExportSpec


def test_a_difference_of_nan_fails():
    expected = np.zeros((1, 2, 2), np.float32)
    assert compare_output("rba", expected, expected, ExportSpec(("rba",)), None).passed
    assert not compare_output("rba", expected * np.nan, expected, ExportSpec(("rba",)), None).passed


def test_differing_classes_are_counted_as_a_fraction():
    expected = np.array([[[0, 1], [2, 2]]])
    found = np.array([[[0, 1], [2, 0]]])
    difference = compare_output("sem_seg", found, expected, ExportSpec(("rba",)), None)
    assert difference.largest == 0.25 and not difference.passed


def test_the_drawn_image_is_the_same_each_time_and_has_contrast():
    assert torch.equal(draw_image(40, 60), draw_image(40, 60))
    assert not torch.equal(draw_image(40, 60), draw_image(40, 60, seed=1))
    assert draw_image(40, 60).float().std() > 20
