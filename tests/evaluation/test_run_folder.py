"""The figures in a run's folder: checked when they are read again, whatever was done to them."""

import json
import math

import pytest
import small_sets
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anoseg_d2.data.image_io import read_label
from anoseg_d2.evaluation.kept_maps import FileMaps
from anoseg_d2.evaluation.map_evaluation import MapEvaluator
from anoseg_d2.evaluation.map_files import MapReader
from anoseg_d2.evaluation.run_folder import add_scores, check_method, read_record
from anoseg_d2.report.write import write_report


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run's folder in which one score of one method was evaluated on two images."""
    folder = tmp_path_factory.mktemp("run")
    images = small_sets.anomaly_set(folder, count=2)
    maps = FileMaps([], MapReader(), small_sets.ANOMALY_RULE, "rba")
    facts = {"maps": maps, "method": "mine", "labels": "1", "warnings": []}
    evaluator = MapEvaluator("test_anomaly", "rba", folder, **facts)
    evaluator.reset()
    for index, image in enumerate(images):
        label = read_label(image["sem_seg_file_name"])
        evaluator.process([image], [small_sets.outputs_for(label, index, names=("rba",))])
    evaluator.evaluate()
    return folder


def use(folder) -> None:
    """Do with a result.json all that is ever done with one."""
    path = folder / "inference/test_anomaly/result.json"
    check_method(folder, "mine")
    record = read_record(path)
    if record["kind"] == "anomaly":
        new = {**record, "result": {"scores": {}, "warnings": []}}
        add_scores(record, {**new, "labels": record["labels"], "dataset": "test_anomaly"})
    write_report(folder, name="mine")


def replaced(value, place: list[int], new):
    """A copy of a nest of lists and dicts with one entry replaced, as `place` leads to it."""
    if not place or not isinstance(value, (dict, list)) or not value:
        return new
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[place[0] % len(keys)]
    changed = value.copy()
    changed[key] = replaced(value[key], place[1:], new)
    return changed


OTHER = st.sampled_from([None, True, -1, 1e400, "x", "../../up", [], {}, [1], {"a": 1}, [{}]])


@given(st.lists(st.integers(0, 30), max_size=7), OTHER)
@example([6, 0, 3, 0], math.inf)  # a precision of one image
@example([7, 0, 0, 5], math.inf)  # a point of a curve
@example([14, 0, 0, 14, 0], {})  # a threshold
@settings(max_examples=60, deadline=None)
@pytest.mark.slow
def test_an_entry_of_another_kind_is_used_or_ends_in_a_named_error(folder, place, new):
    path = folder / "inference/test_anomaly/result.json"
    whole = path.read_bytes()
    try:
        path.write_text(json.dumps(replaced(json.loads(whole), place, new)))
        use(folder)
    except ValueError as error:
        assert str(path.parents[1]) in str(error) or str(folder) in str(error)
    finally:
        path.write_bytes(whole)


@given(st.floats(0, 1), st.integers(0, 255), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_changed_byte_or_a_cut_is_used_or_ends_in_a_named_error(folder, place, value, cut):
    path = folder / "inference/test_anomaly/result.json"
    whole = path.read_bytes()
    index = int(place * (len(whole) - 1))
    try:
        path.write_bytes(whole[:index] + (b"" if cut else bytes([value]) + whole[index + 1 :]))
        use(folder)
    except ValueError as error:
        assert str(path.parents[1]) in str(error) or str(folder) in str(error)
    finally:
        path.write_bytes(whole)


def test_a_crop_outside_of_its_folder_is_refused(folder):
    path = folder / "inference/test_anomaly/result.json"
    whole = path.read_bytes()
    record = json.loads(whole)
    record["failures"][0]["file"] = "../../../../up-00.npz"
    try:
        path.write_text(json.dumps(record))
        with pytest.raises(ValueError, match="result.json.*up-00.npz.*evaluate again"):
            read_record(path)
    finally:
        path.write_bytes(whole)
