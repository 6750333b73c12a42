"""Options declared once: constructor, config and command line agree on default, range and name."""

import argparse
import dataclasses
import json
from dataclasses import dataclass

import pytest
from yacs.config import CfgNode

from anoseg_d2.utils.options import (
    add_arguments,
    check_options,
    keys_of,
    names_of,
    option,
    options_from,
    options_of,
)
from anoseg_d2.utils.ranges import integer, number, one_of, sequence


@dataclass(frozen=True)
class Hinge:
    weight: float = option(0.0, number(0), "weight, at most 100 % of it")
    upper: float = option(-0.7, number(), "above")
    lower: float = option(-0.1, number(), "below", argument="--least")
    kind: str = option("soft", one_of("soft", "hard"), "kind", key="FORM")
    ways: tuple[str, ...] = option(["a"], sequence(one_of("a", "b")), "ways")
    count: tuple[int, int] = option(
        (1, 3), sequence(integer(0, 9), (2,), ascending=True), "count", key="MORE.COUNT"
    )
    squared: bool = option(False, says="square it")
    width: int = option(5, integer(1), "of the data", key="", argument="")
    plain: int = 7

    def __post_init__(self):
        check_options(self)
        if self.upper > self.lower:
            upper, lower = names_of(self, "upper", "lower")
            raise ValueError(f"{upper} is {self.upper}; it must be at most {lower}")


def config(**changed):
    node = {"WEIGHT": 0.0, "UPPER": -0.7, "LOWER": -0.1, "FORM": "soft", "WAYS": ["a"]}
    node |= {"MORE": {"COUNT": [1, 3]}, "SQUARED": False}
    return CfgNode({"MODEL": {"HINGE": CfgNode({**node, **changed})}})


def test_keys_have_the_defaults_rules_and_meanings_of_the_fields():
    keys = keys_of("MODEL.HINGE", Hinge)
    names = "WEIGHT UPPER LOWER FORM WAYS MORE.COUNT SQUARED"
    assert list(keys) == [f"MODEL.HINGE.{name}" for name in names.split()]
    assert keys["MODEL.HINGE.WAYS"].default == ["a"] and Hinge().ways == ("a",)
    assert keys["MODEL.HINGE.MORE.COUNT"].default == (1, 3)
    assert all(rule.allows(default) for default, rule, _ in keys.values())
    assert "WEIGHT" in keys_of("", Hinge)


def test_a_config_gives_the_options_and_lists_become_tuples():
    built = options_of(config(MORE=CfgNode({"COUNT": [2, 2]})), "MODEL.HINGE", Hinge, width=8)
    assert built == Hinge(count=(2, 2), width=8) and built.ways == ("a",)
    assert hash(built) == hash(Hinge(count=[2, 2], width=8))


@pytest.mark.parametrize(
    "changed,words",
    [
        ({"WEIGHT": -1}, "MODEL.HINGE.WEIGHT is -1; it must be a number of at least 0"),
        ({"FORM": "new"}, "MODEL.HINGE.FORM is 'new'; it must be one of soft, hard"),
        ({"MORE": CfgNode({"COUNT": [3, 1]})}, r"HINGE.MORE.COUNT is \(3, 1\).*smaller first"),
        ({"SQUARED": 1}, "MODEL.HINGE.SQUARED is 1; it must be True or False"),
        ({"UPPER": 0.5}, "MODEL.HINGE.UPPER is 0.5; it must be at most MODEL.HINGE.LOWER"),
    ],
)
def test_errors_name_the_config_key(changed, words):
    with pytest.raises(ValueError, match=words):
        options_of(config(**changed), "MODEL.HINGE", Hinge)


@pytest.mark.parametrize(
    "changed,words",
    [
        ({"weight": float("nan")}, "^weight is nan"),
        ({"upper": 0.5}, "^upper is 0.5; it must be at most lower"),
        ({"width": 0}, "^width is 0"),
    ],
)
def test_errors_name_the_argument_in_python(changed, words):
    with pytest.raises(ValueError, match=words):
        Hinge(**changed)


def parse(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser, Hinge)
    return parser, parser.parse_args(words)


def test_the_command_line_has_an_option_for_each_field():
    parser, args = parse("--count", "2", "4", "--squared", "--ways", "a", "b", "--least", "1")
    built = options_from(args, Hinge, plain=1)
    assert built == Hinge(count=(2, 4), squared=True, ways=("a", "b"), lower=1.0, plain=1)
    assert isinstance(built.count[0], int) and isinstance(built.lower, float)
    assert options_from(parse()[1], Hinge) == Hinge()
    text = parser.format_help()
    assert "at most 100 % of it (default: 0.0)" in " ".join(text.split())
    assert "{soft,hard}" in text and "--width" not in text


@pytest.mark.parametrize(
    "words,message",
    [
        (("--weight", "-1"), "^--weight is -1.0; it must be"),
        (("--upper", "3"), "^--upper is 3.0; it must be at most --least"),
        (("--count", "4", "2"), "^--count is .*smaller first"),
    ],
)
def test_errors_name_the_command_line_option(words, message):
    with pytest.raises(ValueError, match=message):
        options_from(parse(*words)[1], Hinge)


def test_options_survive_json():
    options = Hinge(ways=["b"], count=[0, 2])
    assert Hinge(**json.loads(json.dumps(dataclasses.asdict(options)))) == options


def test_an_option_without_a_rule_is_a_mistake_of_ours():
    with pytest.raises(TypeError, match="needs a rule"):
        option(3)
