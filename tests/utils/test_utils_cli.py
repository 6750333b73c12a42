"""Options with a range, and modules that cannot be imported."""

from argparse import Namespace

import pytest

from anoseg_d2.utils.cli import check_options, import_modules
from anoseg_d2.utils.ranges import integer, number

RULES = {"--min-size": integer(1, 9), "--range": number(), "--alpha": number(0, 1, above=True)}


def options(**changed):
    return Namespace(**{"min_size": 3, "range": [0.0, 1.0], "alpha": None, **changed})


def test_options_in_their_range_pass_and_those_left_out_do_too():
    check_options(options(), RULES)
    check_options(options(range=None, alpha=1.0), RULES)


@pytest.mark.parametrize(
    "changed,message",
    [
        ({"min_size": 0}, "--min-size is 0; it must be an integer in 1..9"),
        ({"min_size": 10**25}, "--min-size is 10{25}; it must be"),
        ({"range": [0.0, float("inf")]}, "--range is inf; it must be a finite number"),
        ({"alpha": float("nan")}, "--alpha is nan; it must be a number above 0 and at most 1"),
    ],
)
def test_an_option_out_of_its_range_is_named_with_what_is_allowed(changed, message):
    with pytest.raises(ValueError, match=message):
        check_options(options(**changed), RULES)


@pytest.mark.parametrize("name", ["", ".", ".relative", "no.such.module", "a b"])
def test_a_module_that_cannot_be_imported_is_named(name):
    with pytest.raises(ImportError, match=f"cannot import '{name}', given by --import"):
        import_modules([name])
