"""Score map files of any method: every format, and files that are damaged or hostile."""

import re
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from anoseg_d2.evaluation.map_files import find_maps, read_map, write_map


def test_all_formats_give_the_same_map(tmp_path):
    score = np.arange(12, dtype=np.float32).reshape(3, 4) * 100
    np.save(tmp_path / "a.npy", score[None])
    np.savez(tmp_path / "b.npz", score)
    np.savez(tmp_path / "c.npz", anomaly=score, other=np.zeros(2))
    Image.fromarray(score.astype(np.uint16)).save(tmp_path / "d.png")
    Image.fromarray(score).save(tmp_path / "e.tiff")
    read = [read_map(tmp_path / n) for n in ("a.npy", "b.npz", "d.png", "e.tiff")]
    read.append(read_map(tmp_path / "c.npz", "anomaly"))
    for values in read:
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, score)


def test_values_that_float32_would_merge_stay_apart(tmp_path):
    saturated = 1 - np.float64([[1e-9, 1e-10], [1e-11, 0.5]])
    np.save(tmp_path / "a.npy", saturated)
    np.save(tmp_path / "b.npy", np.int64([[2**24, 2**24 + 1]]))
    np.save(tmp_path / "c.npy", np.int64([[2**53, 2**53 + 1]]))
    assert read_map(tmp_path / "a.npy").tolist() == saturated.tolist()
    assert read_map(tmp_path / "b.npy").tolist() == [[2**24, 2**24 + 1]]
    with pytest.raises(ValueError, match="c.npy: .* of 2 distinct ones 1 would be left"):
        read_map(tmp_path / "c.npy")
    write_map(tmp_path / "d.npy", saturated)
    assert read_map(tmp_path / "d.npy").tolist() == saturated.tolist()


def test_float16_says_how_many_scores_it_merges(tmp_path, caplog):
    pytest.importorskip("h5py", reason="h5py is optional and not installed")
    write_map(tmp_path / "a.hdf5", np.float32([[1, 2, 1024]]))
    assert not caplog.text
    write_map(tmp_path / "b.hdf5", np.float32([[1, 1.0001, 1.0002, 2]]))
    assert "b.hdf5" in caplog.text and "of 4 distinct scores 2 are left" in caplog.text


def test_hdf5_as_segment_me_if_you_can_writes_it(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is optional and not installed")
    score = np.arange(12, dtype=np.float16).reshape(3, 4)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["value"] = score
    np.testing.assert_array_equal(read_map(tmp_path / "a.hdf5"), score)


def test_without_h5py_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.hdf5").write_bytes(b"")
    with pytest.raises(ImportError, match="pip install h5py"):
        read_map(tmp_path / "a.hdf5")


def test_what_is_no_single_map_is_refused(tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros(4))
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "colour.png")
    for name, message in (
        ("flat.npy", "shape (4,)"),
        ("text.npy", "not real numbers"),
        ("two.npz", "it holds a, b"),
        ("colour.png", "one channel"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*{re.escape(message)}"):
            read_map(tmp_path / name)


def test_devices_are_no_maps(tmp_path):
    (tmp_path / "zero.npy").symlink_to("/dev/zero")
    with pytest.raises(FileNotFoundError, match="not a regular file"):
        read_map(tmp_path / "zero.npy")


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_object_arrays_are_refused_and_not_run(tmp_path):
    planted = np.array([[Harmful(tmp_path / "trap")]], dtype=object)
    np.save(tmp_path / "a.npy", planted, allow_pickle=True)
    np.savez(tmp_path / "b.npz", planted)
    for name in ("a.npy", "b.npz"):
        with pytest.raises(ValueError, match=f"{name}.*allow_pickle"):
            read_map(tmp_path / name)
    assert not (tmp_path / "trap").exists()


SCORE = np.linspace(-3, 3, 48, dtype=np.float32).reshape(6, 8)


def written(folder, form):
    path = folder / f"map.{form}"
    if form == "npy":
        np.save(path, SCORE)
    elif form == "npz":
        np.savez_compressed(path, value=SCORE)
    elif form == "hdf5":
        h5py = pytest.importorskip("h5py", reason="h5py is optional and not installed")
        with h5py.File(path, "w") as file:
            file["value"] = SCORE
    elif form == "tiff":
        Image.fromarray(SCORE).save(path)
    else:
        write_map(path, SCORE)
    return path


def mutated(data: bytes, place: float, value: int, cut: bool) -> bytes:
    index = int(place * (len(data) - 1))
    return data[:index] if cut else data[:index] + bytes([value]) + data[index + 1 :]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("form", ["npy", "npz", "png", "tiff", "hdf5"])
@given(st.floats(0, 1), st.integers(0, 255), st.booleans())
@example(0.205078125, 0, False)  # a zero byte in the header of an npy file
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_changed_or_truncated_map_loads_or_ends_in_a_named_error(
    tmp_path, form, place, value, cut
):
    path = written(tmp_path, form)
    path.write_bytes(mutated(path.read_bytes(), place, value, cut))
    try:
        found = read_map(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert found.ndim == 2 and found.dtype in (np.float32, np.float64)
        assert not np.isnan(found).any()


def test_maps_are_found_by_id_photograph_or_pattern(tmp_path):
    image = {"image_id": "city__1", "file_name": "/data/1_leftImg8bit.png"}
    for name in ("city__1", "1_leftImg8bit", "city__1_score"):
        folder = tmp_path / name / "deep"
        folder.mkdir(parents=True)
        np.save(folder / f"{name}.npy", np.zeros((1, 1)))
        pattern = "{id}_score" if name.endswith("_score") else "{id}"
        (found,), extra = find_maps(tmp_path / name, [image], pattern)
        assert found.stem == name and extra == []
    np.save(tmp_path / "city__1/city__1.npy", np.zeros((1, 1)))
    with pytest.raises(ValueError, match="several maps for city__1"):
        find_maps(tmp_path / "city__1", [image])
    with pytest.raises(ValueError, match="1 of 1 images have no map.*city__1"):
        find_maps(tmp_path / "1_leftImg8bit", [{**image, "file_name": "other.png"}])


def test_a_map_with_nan_is_named_and_one_of_confidence_is_turned(tmp_path):
    np.save(tmp_path / "a.npy", np.float32([[1, np.nan]]))
    with pytest.raises(ValueError, match="a.npy: 1 of 2 scores are NaN"):
        read_map(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.float32([[1, 2]]))
    assert read_map(tmp_path / "b.npy", negate=True).tolist() == [[-1, -2]]
