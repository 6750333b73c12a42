#!/usr/bin/env python3
"""Print docs/config.md: every config key with its default, its meaning and what it may be.

python dev/list_config_keys.py --write docs/config.md
"""

import argparse
import sys

from anoseg_d2.config import FIXED, KEYS, load_config
from anoseg_d2.utils.cli import run_command, say
from anoseg_d2.utils.config_files import flat_items
from anoseg_d2.utils.files import write_atomic

HEAD = """# Config keys

Every key that a config file or the command line may set: `KEY VALUE` in turn at the end of
`anoseg train`, after `--opts` in other commands. Other keys of detectron2 are refused unless they
keep their default, because nothing here reads them. This page is made from the table in
[anoseg_d2/config.py](../anoseg_d2/config.py):

```bash
python dev/list_config_keys.py --write docs/config.md
```
"""
# These depend on the machine.
DEFAULTS = {"MODEL.DEVICE": "cuda if there is one, else cpu"}
WORDS = {"MODEL.DEVICE": "cpu, cuda, cuda:0, ..."}


def main(argv=None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--write", metavar="FILE", help="write the page here instead of printing it"
    )
    args = parser.parse_args(argv)

    def work() -> None:
        if args.write:
            write_atomic(args.write, page().encode())
        else:
            say(page().rstrip("\n"))

    return run_command(work)


def page() -> str:
    """Return the page in Markdown."""
    sections: dict[str, list[str]] = {}
    for key, default in flat_items(load_config()):
        if key in KEYS:
            sections.setdefault(section(key), []).append(row(key, default))
    lines = [HEAD]
    for name in sorted(sections):
        lines += [f"## {name}\n", "| key | default | meaning | range |", "|---|---|---|---|"]
        lines += [*sections[name], ""]
    return "\n".join(lines)


def section(key: str) -> str:
    """Return the heading of a key: its group, but only two levels deep."""
    parts = key.split(".")
    return "Top level" if len(parts) == 1 else ".".join(parts[: min(len(parts) - 1, 2)])


def row(key: str, default) -> str:
    """Return the line of a key."""
    entry = KEYS[key]
    words = WORDS.get(key) or ("fixed" if entry.rule is FIXED else entry.rule.says)
    meaning = entry.says[0].upper() + entry.says[1:]
    cells = [f"`{key}`", DEFAULTS.get(key, f"`{default!r}`"), meaning, words]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
