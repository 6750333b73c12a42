"""Declare an option's default, rule and meaning once, in one field of a dataclass.

An option class is a frozen dataclass next to what it configures. Its fields give the constructor
its arguments, the config its keys (`keys_of`), a command its options (`add_arguments`) and
docs/config.md its lines; `check_options` is the only place where their ranges are checked.

Example::

    @dataclass(frozen=True)
    class HingeOptions:
        weight: float = option(0.0, number(0), "weight of the hinge; 0: none")
        upper: float = option(-0.7, number(), "known pixels are pushed below this")
        lower: float = option(-0.1, number(), "pasted pixels are pushed above this")

        def __post_init__(self):
            check_options(self)
            if self.upper > self.lower:  # what several options must agree on
                upper, lower = names_of(self, "upper", "lower")
                raise ValueError(f"{upper} is {self.upper}; it must be at most {lower}")

    HingeOptions(weight=-1)  # ValueError: weight is -1; it must be a number of at least 0

    keys_of("MODEL.HINGE", HingeOptions)  # {"MODEL.HINGE.WEIGHT": Key(0.0, ...), ...}
    options_of(cfg, "MODEL.HINGE", HingeOptions)  # ValueError: MODEL.HINGE.WEIGHT is -1; ...

`dataclasses.asdict(options)` is plain data for a checkpoint, and `HingeOptions(**data)` restores
it: lists become tuples. Fields without `option` are arguments of the constructor only.
"""

import argparse
import dataclasses
from collections.abc import Callable
from contextvars import ContextVar
from functools import reduce
from typing import Any, NamedTuple, TypeVar

from anoseg_d2.utils.ranges import Rule, flag

T = TypeVar("T")

# How options are spelt where the user gave them, for the class that is being built; in Python
# they are arguments, so their names are those of the fields.
_spelling: ContextVar[tuple[type, Callable[[dataclasses.Field], str]] | None]
_spelling = ContextVar("_spelling", default=None)


class Key(NamedTuple):
    """A config key: its default, what it may be, and its meaning in docs/config.md."""

    default: Any
    rule: Rule
    says: str


def option(
    default: Any,
    rule: Rule | None = None,
    says: str = "",
    *,
    key: str | None = None,
    argument: str | None = None,
    metavar: str | None = None,
) -> Any:
    """Return a dataclass field that is an option.

    Args:
        default: its default, which the rule allows. A list stays a list in the config; the field
            holds a tuple.
        rule: what it may be; options that are True or False need none.
        says: its meaning, in a few words without a full stop.
        key: config key under the prefix of the class, if it is not the field's name in capitals;
            it may have dots. "": no config has it.
        argument: command-line option, if it is not the field's name with hyphens. "": none.
        metavar: name of the value in `--help`, if it is not N for an integer, F for a number.
    """
    if isinstance(default, bool):
        rule = rule or flag()
    if rule is None:
        raise TypeError(f"the option with default {default!r} needs a rule")
    metadata = {"default": default, "rule": rule, "says": says}
    metadata |= {"key": key, "argument": argument, "metavar": metavar}
    return dataclasses.field(default=_as_tuples(default), metadata=metadata)


def check_options(options: Any) -> None:
    """Check each option of an instance by its rule, and turn lists into tuples.

    Raises:
        ValueError: names the option as the user wrote it (argument, config key or command-line
            option), its value and what is allowed.
    """
    for field in _option_fields(type(options)):
        value = _as_tuples(getattr(options, field.name))
        object.__setattr__(options, field.name, value)  # frozen, but not yet finished
        field.metadata["rule"].check(*names_of(options, field.name), value)


def names_of(options: Any, *fields: str) -> list[str]:
    """Return the names of fields as the user wrote them, for the text of an error.

    Args:
        options: the instance, within its `__post_init__`.
        fields: names of its fields.
    """
    owner, spell = _spelling.get() or (None, None)
    if owner is not type(options):
        return list(fields)
    by_name = {field.name: field for field in dataclasses.fields(options)}
    return [spell(by_name[name]) for name in fields]


def keys_of(prefix: str, cls: type) -> dict[str, Key]:
    """Return the config keys of an option class.

    Args:
        prefix: dotted node, such as "MODEL.CRITERION"; "" for the top of the config.
        cls: the option class.
    """
    keys = {}
    for field in _option_fields(cls):
        if key := _key(prefix, field):
            keys[key] = Key(*(field.metadata[name] for name in Key._fields))
    return keys


def options_of(cfg: Any, prefix: str, cls: type[T], **given: Any) -> T:
    """Build an option class from a config; its errors name config keys.

    Args:
        cfg: config node.
        prefix: as in `keys_of`.
        cls: the option class.
        given: values by name of the field, which take the place of the config's.
    """
    values = dict(given)
    for field in _option_fields(cls):
        key = _key(prefix, field)
        if key and field.name not in given:
            values[field.name] = reduce(lambda node, part: node[part], key.split("."), cfg)
    return _build(cls, values, lambda field: _key(prefix, field) or field.name)


def add_arguments(parser: argparse._ActionsContainer, cls: type) -> None:
    """Add the options of a class to a parser or to a group of it.

    Their values are `args.NAME`, by name of the field. `options_from` checks them.
    """
    for field in _option_fields(cls):
        default, rule = field.default, field.metadata["rule"]
        if not _argument(field):
            continue
        text = field.metadata["says"].replace("%", "%%")
        how: dict[str, Any]
        if isinstance(default, bool):
            how = {"action": argparse.BooleanOptionalAction if default else "store_true"}
        else:
            how = {"choices": rule.choices}
            if isinstance(default, tuple):
                # A range takes its two values, a list any number of them.
                how["nargs"] = rule.lengths[0] if len(rule.lengths) == 1 else "+"
            first = default[0] if isinstance(default, tuple) and default else default
            how["type"] = type(first) if isinstance(first, (int, float)) else str
            short = {int: "N", float: "F"}.get(how["type"])
            how["metavar"] = field.metadata["metavar"] or (None if rule.choices else short)
            shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
            text += f" (default: {shown})" if shown not in ("", None) else ""
        parser.add_argument(_argument(field), dest=field.name, default=default, help=text, **how)


def options_from(args: argparse.Namespace, cls: type[T], **given: Any) -> T:
    """Build an option class from a command line; its errors name command-line options.

    Args:
        args: parsed by a parser with `add_arguments(parser, cls)`.
        cls: the option class.
        given: values by name of the field, which take the place of the command line's.
    """
    values = {f.name: getattr(args, f.name) for f in _option_fields(cls) if _argument(f)}
    return _build(cls, values | given, lambda field: _argument(field) or field.name)


def _build(cls: type[T], values: dict, spell: Callable[[dataclasses.Field], str]) -> T:
    # The class checks itself, so how to name its fields in an error must reach it from outside.
    token = _spelling.set((cls, spell))
    try:
        return cls(**values)
    finally:
        _spelling.reset(token)


def _option_fields(cls: type) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(cls) if "rule" in field.metadata]


def _key(prefix: str, field: dataclasses.Field) -> str:
    key = field.metadata.get("key", "")
    key = field.name.upper() if key is None else key
    return f"{prefix}.{key}" if prefix and key else key


def _argument(field: dataclasses.Field) -> str:
    argument = field.metadata.get("argument", "")
    return "--" + field.name.replace("_", "-") if argument is None else argument


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, (list, tuple)) else value
