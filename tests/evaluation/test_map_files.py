"""Score map files of any method: every format, and files that are damaged or hostile."""

import io
import re
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from anoseg_d2.evaluation.map_files import read_map, write_map


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
        ("text.npy", "not numbers"),
        ("two.npz", "it holds a, b"),
        ("colour.png", "one channel"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*{re.escape(message)}"):
            read_map(tmp_path / name)


def bomb_npy(path, shape=(1 << 20, 1 << 20)):
    """A header that declares a huge array, and no values."""
    with open(path, "wb") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "<f4", "fortran_order": False, "shape": shape}
        )


def test_stated_sizes_are_compared_before_memory_is_taken(tmp_path):
    bomb_npy(tmp_path / "a.npy")
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((8192, 8192), np.uint8))
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", buffer.getvalue())
    del buffer
    Image.new("L", (9000, 9000)).save(tmp_path / "c.png")
    for name, message in (
        ("a.npy", "declares 4398046511104 bytes"),
        ("b.npz", "is 8192x8192 (HxW), expected 96x128"),
        ("c.png", "is 9000x9000 (HxW), expected 96x128"),
    ):
        tracemalloc.start()
        with pytest.raises(ValueError, match=f"{name}.*{re.escape(message)}"):
            read_map(tmp_path / name, expected=(96, 128))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4e6, name


def test_more_pixels_than_any_camera_are_refused_without_a_label_too(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is optional and not installed")
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("value", (1 << 20, 1 << 20), "f4", chunks=(64, 64))
    with pytest.raises(ValueError, match=r"a\.hdf5: declares 1048576x1048576 pixels"):
        read_map(tmp_path / "a.hdf5")
    with pytest.raises(ValueError, match=r"expected 96x128"):
        read_map(tmp_path / "a.hdf5", expected=(96, 128))


def test_hdf5_links_to_other_files_are_not_followed(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is optional and not installed")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["value"] = np.zeros((2, 2), np.float32)
    (tmp_path / "raw").write_bytes(bytes(16))
    with h5py.File(tmp_path / "link.hdf5", "w") as file:
        file["value"] = h5py.ExternalLink("secret.h5", "/value")
    with h5py.File(tmp_path / "raw.hdf5", "w") as file:
        file.create_dataset("value", (2, 2), "f4", external=[(str(tmp_path / "raw"), 0, 16)])
    with pytest.raises(ValueError, match="it holds nothing"):
        read_map(tmp_path / "link.hdf5")
    with pytest.raises(ValueError, match="other files"):
        read_map(tmp_path / "raw.hdf5")


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
        with pytest.raises(ValueError, match=f"{name}.*never unpickled"):
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
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_changed_or_truncated_map_loads_or_ends_in_a_named_error(
    tmp_path, form, place, value, cut
):
    path = written(tmp_path, form)
    path.write_bytes(mutated(path.read_bytes(), place, value, cut))
    try:
        found = read_map(path, expected=SCORE.shape)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert found.shape == SCORE.shape and found.dtype in (np.float32, np.float64)
        assert not np.isnan(found).any()
