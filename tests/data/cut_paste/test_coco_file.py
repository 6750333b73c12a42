"""Names, ids, areas and masks of annotation files, as their exporters write them."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from anoseg_d2.data.cut_paste.coco_file import (
    fold_name,
    is_file_name,
    looks_like,
    mask_decides,
    to_rle,
    touches_edge,
    whole_number,
)


@pytest.mark.parametrize(
    "name", ["Traffic_Light", "traffic-light", " TRAFFIC light ", "Traffic.light"]
)
def test_one_name_has_many_spellings(name):
    assert fold_name(name) == "traffic light"
    assert fold_name("car_(automobile)") == fold_name("Car (automobile)") == "car"


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("cars", ["bus", "car"], "car"),
        ("trafficlight", ["traffic light"], "traffic light"),
        ("School_Bus", ["bus"], "bus"),
        ("cat", ["car", "train"], None),
        ("fire hydrant", ["traffic light", "stop sign"], None),
        ("(?)", ["car"], None),
    ],
)
def test_a_category_that_looks_like_a_known_class_is_found(name, known, found):
    assert looks_like(name, known) == found


@pytest.mark.parametrize(
    ("value", "number"),
    [(3, 3), (3.0, 3), ("3", 3), ("007", 7), (-1, -1), (3.5, None), ("3.0", None), ("a", None)]
    + [
        (True, None),
        (None, None),
        ([3], None),
        (2**63, None),
        (float("inf"), None),
        ("9" * 40, None),
    ],
)
def test_an_id_is_a_whole_number_however_it_is_written(value, number):
    assert whole_number(value) == number


@pytest.mark.parametrize(
    ("area", "pixels", "decides"),
    [(2400, None, False), (2400, 2000, False), (2400, 500, True), (0, None, True)]
    + [(0.12, None, True), ("2400", None, True), ([2400], None, True), (None, None, True)]
    + [(float("nan"), None, True)],
)
def test_an_area_that_cannot_be_true_is_taken_from_the_mask(area, pixels, decides):
    assert mask_decides(area, pixels) == decides


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../a.png", "a/../../b.png", "C:\\a.png", "a\0.png"]
)
def test_a_file_name_stays_in_its_folder(name):
    assert is_file_name("val/a.png") and not is_file_name(name)


def test_masks_that_reach_the_border_are_told_from_those_inside():
    inside = to_rle([[20, 20, 40, 20, 40, 40, 20, 40]], 60, 80)
    cut = to_rle([[0, 20, 40, 20, 40, 40, 0, 40]], 60, 80)
    assert not touches_edge(inside) and touches_edge(cut)
    assert int(coco_mask.area(inside)) == np.prod((20, 20))
