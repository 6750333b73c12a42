"""Read config files and `KEY VALUE` pairs, and convert values to the types of the keys."""

import ast
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from anoseg_d2.utils.files import read_bytes

__all__ = [
    "assigned_keys",
    "find_config",
    "flat_items",
    "load_yaml",
    "override_pairs",
    "read_yaml",
    "require_key",
    "set_value",
    "shipped_configs",
]

# Far above any config. With aliases, a yaml file of ten lines can stand for billions of values.
_MAX_BYTES, _MAX_VALUES, _MAX_DEPTH = 1_000_000, 100_000, 100
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
    path = Path(config).expanduser()
    if path.is_file():
        return path
    names = shipped_configs()
    if str(config) in names:
        return configs_folder() / f"{config}.yaml"
    raise FileNotFoundError(
        f"--config-file {config} does not exist, and it is not the name of a shipped config: "
        f"{', '.join(names)}"
    )


def read_yaml(path, _children: tuple = ()) -> dict:
    """Read a yaml file and merge it over its `_BASE_` (a path relative to it, or a list of paths).

    Raises:
        FileNotFoundError: the file or one of its bases does not exist.
        ValueError: it is not plain yaml of keys and values (see `load_yaml`), or its own base.
    """
    path = Path(path)
    if path.resolve() in _children:
        raise ValueError(f"{path} is its own _BASE_")
    if not path.is_file():
        child = f", the _BASE_ of {_children[-1]}," if _children else ""
        raise FileNotFoundError(f"config file {path}{child} does not exist")
    content = load_yaml(path)
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold keys and values, not a {type(content).__name__}")
    bases = content.pop("_BASE_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) and base for base in bases):
        raise ValueError(f"{path}: _BASE_ is {bases!r}; it must be a path or a list of paths")
    merged: dict = {}
    for base in bases:
        parent = path.parent / Path(base).expanduser()
        _update(merged, read_yaml(parent, (*_children, path.resolve())))
    _update(merged, content)
    return merged


def load_yaml(path) -> Any:
    """Read a yaml file of plain values.

    Args:
        path: an existing file.
    Raises:
        ValueError: it is not yaml, not UTF-8, too large, too deep, or endless through aliases.
    """
    try:
        if Path(path).stat().st_size > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
        text = read_bytes(path).decode("utf-8")
        _refuse_size(text)
        _count_values(yaml.compose(text, Loader=yaml.SafeLoader), {})
        return yaml.safe_load(text)
    # PyYAML passes on the errors of dates and numbers that do not exist, and of unhashable keys.
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise ValueError(f"{path} is not a readable yaml file: {reason}") from error


def _refuse_size(text: str) -> None:
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        if count > _MAX_VALUES:
            raise ValueError(f"it holds more than {_MAX_VALUES:,} values, or an alias of itself")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ValueError(f"nested more than {_MAX_DEPTH} levels deep")


def _count_values(node: yaml.Node | None, counts: dict[int, int]) -> int:
    """Return how many values a node holds once its aliases are written out."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in counts:
        counts[id(node)] = _MAX_VALUES  # what it counts as inside of itself
        parts = node.value
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        counts[id(node)] = 1 + sum(_count_values(part, counts) for part in parts)
    if counts[id(node)] > _MAX_VALUES:
        raise ValueError(f"it holds more than {_MAX_VALUES:,} values, or an alias of itself")
    return counts[id(node)]


def _update(target: dict, source: dict) -> None:
    for key, value in source.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _update(target[key], value)
        else:
            target[key] = value


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


def require_key(key: str, known: list[str]) -> None:
    """Raise ValueError, suggesting similar keys, unless `key` is one of the `known` keys."""
    if key in known:
        return
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        raise ValueError(f"{key} is a group of keys: set one of {', '.join(inside[:4])}, ...")
    near = difflib.get_close_matches(str(key), known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; see anoseg_d2/config.py"
    raise ValueError(f"unknown config key {key}{hint}")


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
        return float(literal)
    if isinstance(default, (list, tuple)) and isinstance(literal, (list, tuple)):
        return type(default)(literal)
    if isinstance(default, (list, tuple)):
        wanted = f"a list such as {default!r}" if default else "a list"
    else:
        wanted = _WORDS.get(type(default), type(default).__name__)
    raise ValueError(f"{key} is {value!r}; it must be {wanted}")


def _literal(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def assigned_keys(source: str, root: str) -> CfgNode:
    """List the keys that a Python file of defaults assigns, without running it.

    Args:
        source: text of a file such as detectron2's `config/defaults.py`, with lines such as
            `_C.MODEL.DEVICE = "cuda"`.
        root: name of the root node.
    Returns:
        config node in which every leaf is None.
    """
    tree: CfgNode = CfgNode()
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign):
            dotted = ast.unparse(statement.targets[0])
            if dotted.startswith(f"{root}."):
                _plant(tree, dotted.split(".")[1:], statement.value)
    return tree


def _plant(tree: CfgNode, path: list[str], value: ast.expr) -> None:
    """Add the key `path` to `tree`: a node if `CN(...)` is assigned, else None."""
    for part in path[:-1]:
        tree = tree[part]
    is_node = isinstance(value, ast.Call) and ast.unparse(value.func) == "CN"
    tree[path[-1]] = CfgNode() if is_node else None
    if is_node and value.args:
        for key in value.args[0].keys:
            tree[path[-1]][ast.literal_eval(key)] = None
