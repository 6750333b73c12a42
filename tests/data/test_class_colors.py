"""Every class of a model has a name and a colour, those of its dataset where it is known."""

import numpy as np

from anoseg_d2.data.class_colors import class_colors
from anoseg_d2.utils.constants import CITYSCAPES_CLASSES, CITYSCAPES_COLORS


def test_nineteen_classes_without_names_are_those_of_cityscapes():
    names, palette = class_colors(19)
    assert names == list(CITYSCAPES_CLASSES)
    assert np.array_equal(palette[:19], CITYSCAPES_COLORS)


def test_unknown_classes_get_distinct_hues_and_not_those_of_cityscapes():
    for given, expected in ((None, ["class 0", "class 1", "class 2"]), (["a", "b", "c"],) * 2):
        names, palette = class_colors(3, given)
        assert names == expected
        assert len({tuple(color) for color in palette[:3].tolist()}) == 3
        assert palette[0].tolist() != list(CITYSCAPES_COLORS[0])
