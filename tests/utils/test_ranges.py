"""Rules: what they let through, at the ends of their ranges, and what they say."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anoseg_d2.utils.ranges import flag, integer, number, one_of, registered, sequence, text
from anoseg_d2.utils.registry import Registry


@pytest.mark.parametrize(
    "rule,right,wrong",
    [
        (integer(1, 9), [1, 9, np.int64(3)], [0, 10, 2.0, True, "3", None]),
        (integer(0), [0, 10**400], [-1, math.inf]),
        (number(), [0, -1.5, 10**300], [math.nan, math.inf, 10**400, True, "1", None]),
        (number(0, 1), [0, 1, 0.5], [-1e-9, 1.1]),
        (number(0, 1, above=True), [1e-300, 1], [0, 0.0]),
        (flag(), [True, False], [0, 1, "True", None]),
        (one_of("a", 1), ["a", 1], ["A", True, 1.0, ["a"], None]),
        (text(), ["", "road"], [b"road", None, 3, "a\0b", "\udcff"]),
        (text(empty=False), ["road"], [""]),
        (sequence(integer(0, 9)), [[], (1, 2), [9, 0]], [[10], "12", {1}, [1, [2]]]),
        (sequence(number(0), (2,), ascending=True), [(1, 1), [0, 2]], [(2, 1), (1,), (1, 2, 3)]),
    ],
)
def test_ends_belong_to_a_range_and_other_types_never_do(rule, right, wrong):
    assert [value for value in right if not rule.allows(value)] == []
    assert [value for value in wrong if rule.allows(value)] == []


@given(st.integers(-5, 5), st.integers(-5, 5))
def test_an_integer_is_allowed_exactly_inside(low, value):
    assert integer(low, low + 3).allows(value) == (low <= value <= low + 3)


def test_an_error_names_key_value_and_range():
    with pytest.raises(ValueError, match=r"SOLVER\.X is 7; .*0\.\.5"):
        integer(0, 5).check("SOLVER.X", 7)


def test_names_registered_later_are_allowed_too():
    names = Registry("part")
    rule = sequence(registered(names))
    assert not rule.allows(["first"])
    names.register("first")(1)
    assert rule.allows(["first"]) and "first" in rule.says
