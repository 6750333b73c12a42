#!/usr/bin/env python3
"""List every config key with its default, its meaning and its range, as anoseg_d2/config.py has it.

    python tools/list_config_keys.py --write docs/config.md

The meaning is the comment above a key or behind it.
"""

import argparse
import ast
import importlib
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

from anoseg_d2 import config
from anoseg_d2.config import RANGES, READ_FLAGS, load_config
from anoseg_d2.utils import cli
from anoseg_d2.utils.config_files import flat_items
from anoseg_d2.utils.files import write_atomic

HEAD = """# Config keys

Every key that a config file or the command line may set: `KEY VALUE` in turn at the end of
`anoseg train`, after `--opts` in other commands. Other keys of detectron2 are refused unless they
keep their default, because nothing here reads them. This page is made from the comments in
[anoseg_d2/config.py](../anoseg_d2/config.py):

```bash
python tools/list_config_keys.py --write docs/config.md
```
"""
# These depend on the machine.
DEFAULTS = {"MODEL.DEVICE": "cuda if there is one, else cpu"}
WORDS = {"MODEL.DEVICE": "cpu, cuda, cuda:0, ..."}


def main(argv=None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--write", metavar="FILE", help="write the page here instead of printing it"
    )
    cli.add_verbosity_options(parser)
    args = parser.parse_args(argv)

    def work() -> None:
        text = page()
        if args.write:
            write_atomic(args.write, text.encode())
        else:
            cli.say(text.rstrip("\n"))

    return cli.run_command(work, verbosity=args.verbosity)


def page() -> str:
    """Return the page in Markdown.

    Raises:
        ValueError: a key has no meaning.
    """
    # It narrows the ranges of heads and filters to what is registered.
    importlib.import_module("anoseg_d2.modeling.eomt")
    cfg = dict(flat_items(load_config()))
    found = meanings(Path(config.__file__).read_text(encoding="utf-8"))
    keys = [key for key in cfg if key in found or key in RANGES or key in READ_FLAGS]
    silent = [key for key in keys if not found.get(key)]
    if silent:
        raise ValueError(
            f"anoseg_d2/config.py does not say what {', '.join(silent)} means; write a comment "
            "above the key or behind it"
        )
    lines, group = [HEAD], None
    for key in sorted(keys, key=lambda k: (section(k), keys.index(k))):
        if section(key) != group:
            group = section(key)
            lines += [f"## {group}\n", "| key | default | meaning | range |", "|---|---|---|---|"]
        default = DEFAULTS.get(key, f"`{cfg[key]!r}`")
        cells = [f"`{key}`", default, found[key], allowed(key, cfg[key])]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines += [""] if key == last_of(group, keys) else []
    return "\n".join(lines)


def section(key: str) -> str:
    """Return the heading of a key: its group, but only two levels deep."""
    parts = key.split(".")
    return "Top level" if len(parts) == 1 else ".".join(parts[: min(len(parts) - 1, 2)])


def last_of(group: str, keys: list[str]) -> str:
    """Return the last key of a group."""
    return [key for key in keys if section(key) == group][-1]


def allowed(key: str, default) -> str:
    """Say what a key may be."""
    if key in WORDS:
        return WORDS[key]
    if key in RANGES:
        return RANGES[key].says
    return "True or False" if isinstance(default, bool) else "fixed"


def meanings(source: str) -> dict[str, str]:
    """Return the comment of every key in the source of config.py: {key: sentence}.

    Keys are assigned in functions (`cfg.A.B = 1`, or `node.B = 1` after `node = cfg.A = ...`), and
    named as strings in RANGES and READ_FLAGS.
    """
    comments = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    alone = {n for n, line in enumerate(source.splitlines(), 1) if line.lstrip().startswith("#")}
    found: dict[str, str] = {}
    for key, first, last in _places(ast.parse(source)):
        above = []
        line = first - 1
        while line in alone:
            above.insert(0, comments[line])
            line -= 1
        text = " ".join(above) or comments.get(last, "")
        if text and key not in found:
            found[key] = text[0].upper() + text[1:]
    return found


def _places(tree: ast.Module) -> Iterator[tuple[str, int, int]]:
    """Yield each key with the first and the last line of where it is set or named."""
    for function in (n for n in tree.body if isinstance(n, ast.FunctionDef)):
        if not function.name.startswith("_add_"):
            continue
        prefixes = {"cfg": ""}
        for statement in function.body:
            if not isinstance(statement, ast.Assign):
                continue
            names = [t.id for t in statement.targets if isinstance(t, ast.Name)]
            dotted = [t for t in statement.targets if isinstance(t, ast.Attribute)]
            for target in dotted:
                root, _, rest = ast.unparse(target).partition(".")
                key = f"{prefixes[root]}{rest}"
                if isinstance(statement.value, ast.Call) and ast.unparse(statement.value) == (
                    "type(cfg)()"
                ):
                    prefixes |= dict.fromkeys(names, f"{key}.")
                else:
                    yield key, statement.lineno, statement.end_lineno
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if ast.unparse(target) in ("RANGES", "READ_FLAGS"):
                keys = node.value.keys if isinstance(node.value, ast.Dict) else node.value.elts
                for entry in keys:
                    yield entry.value, entry.lineno, entry.end_lineno


if __name__ == "__main__":
    sys.exit(main())
