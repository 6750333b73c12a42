"""Check config values by rules that also state in words what is allowed."""

import math
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

_LARGEST = sys.float_info.max


@dataclass(frozen=True)
class Rule:
    """A rule for one config value.

    Args:
        words: completes the sentence "it must be ..."; a function if the answer can change.
        allows: returns whether a value is allowed; must accept values of any type.
        choices: the allowed values, or those of each entry, if they are few and fixed.
        lengths: the allowed numbers of entries of a list; empty for any.
    """

    words: str | Callable[[], str]
    allows: Callable[[Any], bool]
    choices: tuple | None = None
    lengths: tuple[int, ...] = ()

    @property
    def says(self) -> str:
        """The allowed values in words, up to date with a registry."""
        return self.words if isinstance(self.words, str) else self.words()

    def check(self, key: str, value: Any) -> None:
        """Raise ValueError, with key, value and what is allowed, unless `value` is allowed."""
        if not self.allows(value):
            raise ValueError(f"{key} is {shown(value)}; it must be {self.says}")


def shown(value: Any) -> str:
    """Format a value for an error, shortened because a file may hold thousands of digits."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 300 else f"{text[:300]}..."


def integer(low: int, high: int | None = None, also: str = "") -> Rule:
    """Allow whole numbers from `low` to `high`; `also` explains a special value."""
    says = f"an integer of at least {low}" if high is None else f"an integer in {low}..{high}"

    def allows(value):
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        return whole and low <= value and (high is None or value <= high)

    return Rule(says + (f" ({also})" if also else ""), allows)


def number(low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> Rule:
    """Allow finite numbers from `low` to `high`.

    Args:
        above: `low` itself is not allowed.
    """
    if low == -math.inf and high == math.inf:
        says = "a finite number"
    elif high == math.inf:
        says = f"a number {'above' if above else 'of at least'} {low:g}"
    else:
        says = f"a number {'above' if above else 'from'} {low:g} {'and at most' if above else 'to'}"
        says += f" {high:g}"

    def allows(value):
        # Compared, not converted: an integer may be larger than any float.
        real = isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= _LARGEST
        return real and low <= value <= high and not (above and value == low)

    return Rule(says, allows)


def flag() -> Rule:
    """Allow True and False."""
    return Rule("True or False", lambda value: isinstance(value, bool))


def one_of(*choices) -> Rule:
    """Allow the listed values."""
    return Rule(
        "one of " + ", ".join(map(str, choices)),
        lambda value: any(type(value) is type(choice) and value == choice for choice in choices),
        choices,
    )


def registered(names: Collection[str]) -> Rule:
    """Allow the names in a registry, which may still grow."""
    return Rule(
        lambda: "one of " + ", ".join(names),
        lambda value: isinstance(value, str) and value in names,
    )


def text(empty: bool = True) -> Rule:
    """Allow a string."""
    says = "a string" if empty else "a string that is not empty"

    def allows(value):
        if not isinstance(value, str) or "\0" in value:
            return False
        try:
            value.encode()  # a name that is not UTF-8 could be written to no log and no yaml
        except UnicodeEncodeError:
            return False
        return empty or bool(value)

    return Rule(says + ", in UTF-8", allows)


def sequence(entry: Rule, lengths: tuple[int, ...] = (), *, ascending: bool = False) -> Rule:
    """Allow a list or tuple.

    Args:
        entry: rule of each of its entries.
        lengths: allowed numbers of entries; empty for any.
        ascending: no entry may be smaller than the one before it.
    """
    count = f"{' or '.join(map(str, lengths))} entries" if lengths else "entries"
    more = ", the smaller first" if ascending else ""

    def words():  # called when it is needed, because those of a registry may change
        return f"a list of {count}, each {entry.says}{more}"

    def allows(value):
        if not isinstance(value, (list, tuple)) or (lengths and len(value) not in lengths):
            return False
        if not all(entry.allows(part) for part in value):
            return False
        return not ascending or list(value) == sorted(value)

    return Rule(words, allows, entry.choices, lengths)
