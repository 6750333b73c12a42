"""Choice by name."""

import pytest

from anoseg_d2 import modeling
from anoseg_d2.checkpoint.metadata import head_name
from anoseg_d2.modeling.heads import CLASS_HEADS
from anoseg_d2.utils.registry import Registry


def test_a_duplicate_and_an_unknown_name_are_refused_by_name():
    parts = Registry("part")
    parts.register("first")(1)
    with pytest.raises(ValueError, match="part 'first' is already registered: 1"):
        parts.register("first")(2)
    with pytest.raises(ValueError, match="unknown part 'second'; known: first"):
        parts["second"]
    parts.remove("first")
    parts.register("first")(2)
    assert dict(parts) == {"first": 2}


def test_a_registered_class_says_its_name():
    assert {name: head.name for name, head in CLASS_HEADS.items()} == {n: n for n in CLASS_HEADS}


def test_a_subclass_of_a_registered_head_does_not_pass_for_its_parent(tiny_eomt):
    model = tiny_eomt("arcface")
    assert head_name(model) == "arcface"

    class Mine(CLASS_HEADS["arcface"]):
        pass

    model.class_head = Mine(32, 3)
    assert head_name(model) is None


def test_the_index_of_modeling_finds_every_name_and_describes_it():
    for name in modeling.__all__:
        assert getattr(modeling, name) is not None
        assert f"`{name}`" in modeling.__doc__
