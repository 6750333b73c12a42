"""Read config files and `KEY VALUE` pairs, and convert values to the types of the keys."""

import ast
import difflib
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from anoseg_d2.utils.files import read_bytes
from anoseg_d2.utils.ranges import number, shown, text

__all__ = [
    "find_config",
    "flat_items",
    "load_yaml",
    "override_pairs",
    "parse_yaml",
    "read_yaml",
    "require_key",
    "set_value",
    "shipped_configs",
]

_WORDS = {bool: "True or False", int: "an integer", float: "a number", str: "a string"}


def configs_folder() -> Path:
    """Return the folder of the shipped configs: in the package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def shipped_configs() -> list[str]:
    """Return the names of the configs that come with the package, such as "camvid/arcface"."""
    folder = configs_folder()
    paths = (path.relative_to(folder) for path in folder.rglob("*.yaml"))
    # Bases lack what their children set, and recipes are for the scripts of a checkout.
    whole = (p for p in paths if not p.name.startswith("Base-") and not p.stem.endswith("recipe"))
    return sorted(path.with_suffix("").as_posix() for path in whole)


def find_config(config: str | Path) -> Path:
    """Return the file of a config.

    Args:
        config: path of a yaml file, or the name of a shipped config; a path goes first.
    Raises:
        FileNotFoundError: it is neither; the message lists the shipped configs.
    """
    path = _user_path(config)
    if path.is_file():
        return path
    names = shipped_configs()
    if str(config) in names:
        return configs_folder() / f"{config}.yaml"
    raise FileNotFoundError(
        f"--config-file {config} does not exist, and it is not the name of a shipped config: "
        f"{', '.join(names)}"
    )


def read_yaml(path) -> dict:
    """Read a yaml file and merge it over its `_BASE_` (a path relative to it), and so on.

    Raises:
        FileNotFoundError: the file or one of its bases does not exist.
        ValueError: it is not plain yaml of keys and values (see `load_yaml`), or its own base.
    """
    path = Path(path)
    read: dict[Path, dict] = {}
    while True:
        if path.resolve() in read:
            raise ValueError(f"{path} is its own _BASE_")
        if not path.is_file():
            child = f", the _BASE_ of {list(read)[-1]}," if read else ""
            raise FileNotFoundError(f"config file {path}{child} does not exist")
        content = load_yaml(path)
        content = {} if content is None else content
        if not isinstance(content, dict):
            raise ValueError(f"{path} must hold keys and values, not a {type(content).__name__}")
        read[path.resolve()] = content
        if "_BASE_" not in content:
            break
        base = content.pop("_BASE_")
        if not text(empty=False).allows(base):
            raise ValueError(f"{path}: _BASE_ is {base!r}; it must be a path")
        path = path.parent / _user_path(base)
    # From the last base up, because each file overrides what is below it.
    return functools.reduce(_merged, reversed(read.values()))


def _user_path(text: str | Path) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # no such user, or no home
        raise ValueError(f"path {text}: {error}") from error


def _merged(below: dict, above: dict) -> dict:
    """Return `below` with the values of `above`."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


# fvcore's `load_yaml_with_base` would be shorter, but it takes the last of two equal keys.
class _Loader(yaml.SafeLoader):
    """Safe loader without equal keys, and without aliases within what an alias repeats.

    With those, a file of ten lines could stand for billions of values, or contain itself. Plain
    aliases are read, because `cfg.dump()` writes them for equal lists.
    """

    aliases = 0  # so far

    def compose_node(self, parent, index):
        before, event = self.aliases, self.peek_event()
        self.aliases += isinstance(event, yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if event.anchor and not isinstance(event, yaml.AliasEvent) and self.aliases > before:
            raise ValueError(f"&{event.anchor} contains an alias: write out what it repeats")
        return node

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"key {name!r} is given twice")
        return super().construct_mapping(node, deep)


def load_yaml(path) -> Any:
    """Read a yaml file of plain values.

    Args:
        path: an existing file.
    Raises:
        ValueError: it is not yaml in UTF-8, is nested too deep, or has a key twice.
    """
    return parse_yaml(read_bytes(path), path)


def parse_yaml(content: bytes, path) -> Any:
    """Read yaml that `path` holds; see `load_yaml`."""
    try:
        return _Loader(content.decode("utf-8")).get_single_data()
    # PyYAML passes on the errors of dates that do not exist, and of unhashable keys.
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise ValueError(f"{path} is not a readable yaml file: {reason}") from error


def flat_items(node: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("MODEL.EOMT.SIZE", value) for every leaf of nested dicts."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat_items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def override_pairs(overrides: Iterable) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) pairs from a list in which keys and values alternate.

    Raises:
        ValueError: the last key has no value.
    """
    overrides = list(overrides)
    if len(overrides) % 2:
        raise ValueError(f"overrides come as KEY VALUE pairs; {overrides[-1]!r} has no value")
    yield from zip(overrides[::2], overrides[1::2], strict=True)


def require_key(key: str, known: list[str], where: str = "") -> None:
    """Raise ValueError, suggesting similar keys, unless `key` is one of the `known` keys.

    Args:
        key: dotted name.
        known: every key.
        where: ends "unknown config key X", such as " in my.yaml".
    """
    if key in known:
        return
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        raise ValueError(
            f"{key}{where} is a group of keys: set one of {', '.join(inside[:4])}, ..."
        )
    near = difflib.get_close_matches(str(key), known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; see docs/config.md"
    raise ValueError(f"unknown config key {key}{where}{hint}")


def set_value(cfg: CfgNode, key: str, value: Any) -> None:
    """Set an existing key to a value of its type; integers are accepted for floats.

    Args:
        cfg: config node.
        key: dotted name.
        value: as given in yaml or on the command line; strings are parsed as Python literals.
    Raises:
        ValueError: the value has another type.
    """
    *parts, leaf = key.split(".")
    node = cfg
    for part in parts:
        node = node[part]
    node[leaf] = _as_type_of(node[leaf], value, key)


def _as_type_of(default: Any, value: Any, key: str) -> Any:
    literal = _literal(value)
    if default is None or type(literal) is type(default):
        return literal
    if isinstance(default, str) and isinstance(value, (str, int, float)):
        return str(value)  # `OUTPUT_DIR 2024` means the string
    if isinstance(default, float) and type(literal) is int:
        # The range refuses an integer that is larger than any float.
        return float(literal) if number().allows(literal) else literal
    if isinstance(default, (list, tuple)) and isinstance(literal, str) and literal:
        literal = [_literal(part.strip()) for part in literal.split(",")]
    if isinstance(default, (list, tuple)) and isinstance(literal, (list, tuple)):
        return type(default)(literal)
    if isinstance(default, (list, tuple)):
        wanted = f"a list such as {default!r}" if default else "a list"
    else:
        wanted = _WORDS.get(type(default), type(default).__name__)
    raise ValueError(f"{key} is {shown(value)}; it must be {wanted}")


def _literal(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value
