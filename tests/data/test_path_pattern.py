"""Patterns of cards match what they say, and end, whatever a stranger wrote."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anoseg_d2.data.path_pattern import PathPattern, is_simple_regex

PIECES = ("{a}", "{b}", "*", "?", "**/", "/", "x", "_", ".")


def as_regex(pattern):
    """The slow twin: a regular expression, whose backtracking may take for ever."""
    regex, seen = "", set()
    for name, folders, mark, text in re.findall(r"\{(\w)\}|(\*\*/)|([*?])|([^{*?])", pattern):
        if name:
            regex += f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+)"
            seen.add(name)
        else:
            wild = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
            regex += wild.get(folders or mark) or re.escape(text)
    return regex


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=7), st.text("x_./", max_size=9))
def test_a_pattern_matches_as_its_regular_expression_would(pieces, path):
    pattern = "".join(pieces) + "#"  # no extension
    expected = re.fullmatch(as_regex(pattern), path + "#")
    found = PathPattern(pattern).match(path + "#")
    assert found == (expected.groupdict() if expected else None)


def test_extensions_are_compared_without_case_and_a_star_is_any():
    assert PathPattern("a/{id}.png").match("a/1.PNG") == {"id": "1"}
    assert PathPattern("a/{id}.*").match("a/1.b.jpg") == {"id": "1.b"}
    assert PathPattern("a/{id}.*").match("a/1") is None


@pytest.mark.parametrize(
    "pattern",
    ["*a*a*a*a*a*a*a*a*a*a*a{id}z.png", "{a}a{b}a{c}a{d}a{e}a{f}a{g}a{h}a{i}a{j}a{k}z.png"],
)
def test_a_pattern_that_fits_in_too_many_ways_is_refused_soon(pattern):
    start = time.monotonic()
    with pytest.raises(ValueError, match="too many ways"):
        PathPattern(pattern).match("a" * 240 + ".png")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "regex", [".*", "(0001TP|0016E5)_.*", r"\d{4}_x", "(?:a|b).*", "frame_0[0-4].*", r"a\.b"]
)
def test_simple_expressions_choose_frames(regex):
    assert is_simple_regex(regex)


@pytest.mark.parametrize(
    "regex",
    [
        *("(a+)+$", "(a|a)*$", "(a*)*b", "(.*){1,30}b", r"(a*)(a*)\1b", "(a|a)(a|a)", "a?" * 50),
        *(".*a.*a.*b", "((((", "[a", 5, None, "x" * 201),
    ],
)
def test_expressions_that_could_take_for_ever_are_refused(regex):
    assert not is_simple_regex(regex)
