"""Saved counts come back bit for bit, or are refused."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anoseg_d2.evaluation.saved_state import load_state, save_state


def mutated(data: bytes, place: float, value: int, cut: bool) -> bytes:
    index = int(place * (len(data) - 1))
    return data[:index] if cut else data[:index] + bytes([value]) + data[index + 1 :]


STATE = {
    "tpr": [0.95, 0.1],
    "pixels": {"a": np.arange(5, dtype=np.uint32), "b": np.zeros((2, 0), np.int64)},
    "list": [{"photo": np.ones((2, 2, 3), np.uint8), "value": -1e-300}, None, "ö"],
}


def assert_equal(one, other):
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype and np.array_equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_equal(*pair)
    else:
        assert one == other and type(one) is type(other)


def test_a_saved_state_comes_back_bit_for_bit(tmp_path):
    save_state(tmp_path / "state.npz", STATE)
    assert_equal(STATE, load_state(tmp_path / "state.npz"))


@given(st.floats(0, 1), st.integers(0, 255), st.booleans())
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_changed_or_truncated_state_loads_equal_or_ends_in_a_named_error(
    tmp_path, place, value, cut
):
    path = tmp_path / "state.npz"
    save_state(path, STATE)
    path.write_bytes(mutated(path.read_bytes(), place, value, cut))
    try:
        found = load_state(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert_equal(STATE, found)


def test_a_compressed_state_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "state.npz", tree=np.zeros(1 << 20, np.uint8))
    with pytest.raises(ValueError, match="compressed"):
        load_state(tmp_path / "state.npz")
