"""Read config files and `KEY VALUE` pairs, and convert values to the types of the keys."""

import ast
import difflib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from anoseg_d2.utils.ranges import number, shown

# PyYAML passes on the errors of dates that do not exist, and of unhashable keys.
_YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, RecursionError)
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
    path = Path(os.path.expanduser(config))
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
        ValueError: it is not plain yaml of keys and values, or its own base.
    """
    from fvcore.common.config import CfgNode as FvcoreNode  # which no exported model needs

    path = Path(path)
    if path.is_file() and path.stat().st_size == 0:  # for fvcore it holds no table
        return {}
    try:
        found = FvcoreNode.load_yaml_with_base(str(path))
    # What fvcore makes of a _BASE_ that is no path, or of a group in the place of a value.
    except (*_YAML_ERRORS, AssertionError, AttributeError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold keys and values, not a {type(found).__name__}")
    return found


def load_yaml(path) -> Any:
    """Read a yaml file of plain values.

    Args:
        path: an existing file.
    Raises:
        ValueError: it is not yaml in UTF-8, or is nested too deep.
    """
    return parse_yaml(Path(path).read_bytes(), path)


def parse_yaml(content: bytes, path) -> Any:
    """Read yaml that `path` holds; see `load_yaml`."""
    try:
        return yaml.safe_load(content)
    except _YAML_ERRORS as error:
        raise _unreadable(path, error) from error


def _unreadable(path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:500] or type(error).__name__
    return ValueError(f"{path} is not a readable yaml file: {reason}")


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
