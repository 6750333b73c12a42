import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anoseg_d2.data.label_rules import LABEL_RULES, LabelRule, load_label
from anoseg_d2.utils.constants import VOID

# Written out from the official table (labels.py of cityscapesScripts), id -> trainId
OFFICIAL = {
    **dict(zip((7, 8, 11, 12, 13, 17), range(6), strict=True)),
    **{19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15},
    **{31: 16, 32: 17, 33: 18},
}


def apply(rule: str, values, where="x.png"):
    return LABEL_RULES[rule].apply(np.array([values], dtype=np.uint8), where)[0].tolist()


@pytest.mark.parametrize("rule", ["cityscapes", "cityscapes_outlier"])
def test_label_ids_follow_the_official_table_and_all_other_official_ids_are_void(rule):
    ids = list(range(34))
    assert apply(rule, ids, "a_gtFine_labelIds.png") == [OFFICIAL.get(i, VOID) for i in ids]


def test_pasted_id_is_the_anomaly_in_an_outlier_set_and_refused_elsewhere():
    assert apply("cityscapes_outlier", [254, 7]) == [19, 0]
    with pytest.raises(ValueError, match=r"254\] are not covered.*cityscapes"):
        apply("cityscapes", [254, 7])


def test_train_ids_are_read_as_such_only_by_the_name_of_the_file():
    assert apply("cityscapes", [7, 8, 255], "/d/a_gtFine_labelTrainIds.png") == [7, 8, 255]
    assert apply("cityscapes", [7, 8], "/a_labelTrainIds.png/a_gtFine_labelIds.png") == [0, 1]
    assert apply("cityscapes_outlier", [18, 254], "a_gtFine_labelTrainIds.png") == [18, 19]
    with pytest.raises(ValueError, match=r"33\] are not covered"):
        apply("cityscapes", [33], "a_gtFine_labelTrainIds.png")


def test_error_names_the_file_the_values_found_and_those_allowed():
    with pytest.raises(ValueError) as error:
        apply("anomaly", [0, 1, 7, 8, 9, 128], "/some/where.png")
    message = str(error.value)
    assert "/some/where.png" in message
    assert "[7, 8, 9, 128] are not covered" in message
    assert "Found: [0, 1, 7, 8, 9, 128]" in message
    assert "Allowed: [0, 1, 255]" in message


def test_road_anomaly_release_has_the_anomaly_at_2_and_does_not_guess_at_1():
    where = "frames/a.labels/labels_semantic.png"
    assert apply("road_anomaly", [0, 2, 255], where) == [0, 1, 255]
    with pytest.raises(ValueError, match=r"1\] are not covered.*RoadAnomaly release"):
        apply("road_anomaly", [0, 1, 2], where)


def test_road_anomaly_repacks_may_have_1_or_2_but_not_both_in_a_map():
    where = "RoadAnomaly_labels_semantic.png.d/a_labels_semantic.png"
    assert apply("road_anomaly", [0, 1, 255], where) == [0, 1, 255]
    assert apply("road_anomaly", [0, 2, 255], where) == [0, 1, 255]
    with pytest.raises(ValueError, match=r"\[1, 2\] in one map contradict"):
        apply("road_anomaly", [0, 1, 2], where)


def test_lost_and_found_is_road_objects_and_void():
    assert apply("lost_and_found", [0, 1, 2, 100, 200, 255]) == [255, 0, 1, 1, 1, 255]
    with pytest.raises(ValueError, match=r"201\] are not"):
        apply("lost_and_found", [201])


@pytest.mark.parametrize("value", [-1, 256, 26001])
def test_values_beyond_a_byte_are_refused_not_wrapped(value):
    with pytest.raises(ValueError, match="are not covered"):
        LABEL_RULES["cityscapes"].apply(np.array([[value, 7]], dtype=np.int32), "x")


def test_rules_for_16_bit_values_work():
    rule = LabelRule("wide", ((1000, 0), (26001, 1)))
    assert rule.apply(np.array([[26001, 1000]], dtype=np.int32), "x").tolist() == [[1, 0]]


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=40), st.sampled_from(sorted(LABEL_RULES)))
def test_apply_is_the_dictionary_pixel_by_pixel(values, name):
    rule = LABEL_RULES[name]
    table = dict(rule.values)
    fits = all(v in table for v in values) and not {1, 2} <= set(values) & set(rule.exclusive or ())
    if fits:
        assert apply(name, values) == [table[v] for v in values]
    else:
        with pytest.raises(ValueError):
            apply(name, values)


@pytest.mark.parametrize("train_id", [-1, 253, 254, 256])
def test_a_rule_with_impossible_train_ids_is_refused(train_id):
    with pytest.raises(AssertionError):
        LabelRule("bad", ((0, train_id),))


def test_rules_travel_to_worker_processes():
    for rule in LABEL_RULES.values():
        copy = pickle.loads(pickle.dumps(rule))
        assert copy == rule
        stored = np.zeros((2, 2), np.uint8)
        assert np.array_equal(copy.apply(stored, "x"), rule.apply(stored, "x"))


def test_labels_are_read_from_equal_channels_and_from_palette_indices(tmp_path):
    stored = np.array([[0, 1], [255, 1]], dtype=np.uint8)
    rgb = np.stack([stored] * 3, axis=2)
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    palette = Image.fromarray(stored, mode="P")
    palette.putpalette([200, 10, 10] * 256)
    palette.save(tmp_path / "palette.png")
    for name in ("rgb.png", "palette.png"):
        assert np.array_equal(load_label(tmp_path / name, LABEL_RULES["anomaly"]), stored)
