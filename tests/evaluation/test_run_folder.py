"""The figures in a run's folder: known again when they are read."""

import pytest

from anoseg_d2.evaluation.run_folder import read_record, read_stored, write_record
from anoseg_d2.utils.files import write_json


def test_a_record_comes_back_with_its_version(tmp_path):
    write_record(tmp_path, {"kind": "closed_set", "result": {"mIoU": 50.0}})
    record = read_record(tmp_path / "result.json")
    assert record["version"] == 1 and record["result"] == {"mIoU": 50.0}
    assert record["kind"] == "closed_set" and record["curves"] == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [([], "no 'datasets'"), ({"datasets": [1]}, "no 'datasets'"),
     ({"datasets": {}, "version": 2}, "version is 2")],
)  # fmt: skip
def test_what_is_something_else_is_named_with_the_way_out(tmp_path, content, message):
    path = tmp_path / "results.json"
    write_json(path, content)
    with pytest.raises(ValueError, match=f"results.json.*{message}.*evaluate again"):
        read_stored(path, "datasets")
