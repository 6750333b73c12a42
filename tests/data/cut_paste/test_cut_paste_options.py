"""One declaration of pasting serves the config, the command and the constructor."""

import argparse

import pytest

from anoseg_d2.config import load_config
from anoseg_d2.data.cut_paste.options import CutPasteOptions, ObjectOptions, read_options
from anoseg_d2.utils.options import add_arguments, options_from, options_of


def parsed(cls, *words):
    parser = argparse.ArgumentParser()
    add_arguments(parser, cls)
    return options_from(parser.parse_args(words), cls)


def test_defaults_are_the_same_on_every_road():
    cfg = load_config()
    assert parsed(CutPasteOptions) == read_options(cfg) == CutPasteOptions()
    node = "INPUT.CUT_PASTE"
    assert parsed(ObjectOptions) == options_of(cfg, node, ObjectOptions) == ObjectOptions()


def test_a_config_and_a_command_give_the_same_options():
    values = {"COUNT": (2, 4), "CONTROL_LEAST": 1, "CONTROL_OBJECTS": 2, "CLOSED_SET_OBJECTS": 3}
    values |= {"SCALE_MODE": "perspective", "FEATHER": (2, 0.1), "OPAQUE_CORE": True}
    pairs = [part for key, value in values.items() for part in (f"INPUT.CUT_PASTE.{key}", value)]
    words = "--count 2 4 --controls 1 2 --closed-set 0 3 --size perspective --feather 2 0.1"
    assert read_options(load_config("", pairs)) == parsed(
        CutPasteOptions, *words.split(), "--opaque-core"
    )


def test_nothing_to_paste_is_refused_under_the_name_that_was_used():
    with pytest.raises(ValueError, match="^count is .*nothing is pasted"):
        CutPasteOptions(count=(0, 0))
    with pytest.raises(ValueError, match="^--count is .*nothing"):
        parsed(CutPasteOptions, "--count", "0", "0")
    with pytest.raises(ValueError, match="^INPUT.CUT_PASTE.COUNT is .*nothing"):
        load_config("", ["INPUT.CUT_PASTE.COUNT", (0, 0)])
    assert CutPasteOptions(count=(0, 0), control_count=(0, 2)).control_count == (0, 2)


def test_annotations_without_photographs_are_refused():
    with pytest.raises(ValueError, match="--coco-json.*--coco-images"):
        parsed(ObjectOptions, "--coco-json", "a.json")
    with pytest.raises(ValueError, match="COCO_JSON.*COCO_IMAGES"):
        load_config("", ["INPUT.CUT_PASTE.COCO_IMAGES", "photos"])
