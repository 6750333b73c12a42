"""The lazy index of a package: names resolve, unknown ones are refused as Python does."""

import pytest

from anoseg_d2 import modeling
from anoseg_d2.modeling.eomt import EoMT


def test_a_name_is_what_its_module_defines():
    assert modeling.EoMT is EoMT


def test_the_index_is_listed_next_to_what_is_there():
    assert {"EoMT", "__name__"} <= set(dir(modeling))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'anoseg_d2.modeling'.*attribute 'EoMTT'"):
        modeling.EoMTT  # noqa: B018
