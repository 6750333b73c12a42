#!/usr/bin/env python3
"""List the licence of every pinned package, as its own metadata states it.

    python dev/list_licences.py > docs/licences.md

Run it on Python 3.11 or newer; packages that only other Pythons or platforms need are listed from
a table.
"""

import sys
from importlib.metadata import PackageNotFoundError, files, metadata

from setup_env import pins

# Pinned only for Python 3.10 or Windows, as their own metadata states.
ELSEWHERE = {
    "colorama": "BSD",
    "coloredlogs": "MIT",
    "exceptiongroup": "MIT",
    "humanfriendly": "MIT",
    "six": "MIT",
    "tomli": "MIT",
}
HEAD = """# Licences of the dependencies

This project is under Apache-2.0 (`LICENSE`). The packages that `make demo` and `make test` install,
at the versions that `requirements/` pins, with the licence that each states. Made by
`python dev/list_licences.py > docs/licences.md`.

| package | version | licence |
|---|---|---|"""


def licence(name: str) -> str:
    """Return the licence that an installed package states, as briefly as it states it.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    about = metadata(name)
    if about.get("License-Expression"):
        return about["License-Expression"]
    text = (about.get("License") or "").strip()
    # Some packages paste the whole licence here; then its title is in the classifiers.
    if text and text != "UNKNOWN" and "\n" not in text and len(text) <= 60:
        return text
    titles = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or () if "License" in c]
    if titles:
        return ", ".join(titles)
    for path in files(name) or ():
        if path.name == "LICENSE":
            return f"{path.read_text().strip().splitlines()[0].strip()} (its LICENSE file)"
    return text.partition("\n")[0] or "not stated"


def main() -> int:
    """Print the page; the exit status is 1 when a package states no licence."""
    print(HEAD)
    silent = []
    for pin in sorted({p for f in ("torch.txt", "lock.txt", "detectron2.txt") for p in pins(f)}):
        name, version = pin.split("==")
        try:
            stated, installed = licence(name), metadata(name)["Version"].partition("+")[0]
        except PackageNotFoundError:
            stated, installed = ELSEWHERE.get(name, "not stated"), version
        if stated == "not stated":
            silent.append(name)
        if installed == version:  # else the line of another Python
            print(f"| {name} | {version} | {stated.replace('|', '/')} |")
    if silent:
        print(f"these packages state no licence: {', '.join(silent)}", file=sys.stderr)
    return int(bool(silent))


if __name__ == "__main__":
    sys.exit(main())
