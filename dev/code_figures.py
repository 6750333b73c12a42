#!/usr/bin/env python3
"""Figures of the code itself, and a check that imports go one way.

Counts files, lines, lengths of functions, and fractions of comments and docstrings, per package,
now and at another revision; and lists which room imports which. docs/architecture.md holds what it
prints.

Examples:
    python dev/code_figures.py
    python dev/code_figures.py --revision 206e4c4
    python dev/code_figures.py --imports
    python dev/code_figures.py --write docs/architecture.md --before 7f478a2 \\
        --beside PointRend=../detectron2:projects/PointRend
"""

import argparse
import ast
import io
import statistics
import subprocess
import sys
import tarfile
import tokenize
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# A room may import rooms of lower levels, and of its own level what is listed after it.
LEVELS = (
    ("utils",),
    ("data", "modeling"),
    ("config",),  # takes keys from the option classes of the rooms below
    ("evaluation", "checkpoint"),
    ("report",),
    ("engine", "prediction", "export"),
    ("commands", "cli", "__main__"),
    ("train_net", "tools", "datasets", "experiments", "benchmarks", "dev"),
)
# Registration and the index of public names reach every room; nothing else may.
INDEX = "anoseg_d2"


@dataclass
class Figures:
    """What was counted in the files of one room."""

    files: int = 0
    lines: int = 0  # without blank ones
    comments: int = 0
    docstrings: int = 0
    functions: list[int] = field(default_factory=list)  # lines from `def` to the end

    def add(self, source: str) -> None:
        """Count one file."""
        tree = ast.parse(source)
        self.files += 1
        self.lines += sum(bool(line.strip()) for line in source.splitlines())
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        self.comments += len({t.start[0] for t in tokens if t.type == tokenize.COMMENT})
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                self.functions.append(node.end_lineno - node.lineno + 1)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node, clean=False)
                if text is not None:
                    self.docstrings += sum(bool(line.strip()) for line in text.splitlines())

    def row(self) -> list[str]:
        """Cells of a table."""
        lengths = sorted(self.functions) or [0]
        ninth = lengths[min(len(lengths) - 1, round(0.9 * (len(lengths) - 1)))]
        return [
            f"{self.files}",
            f"{self.lines:,}",
            f"{len(self.functions)}",
            f"{statistics.median(lengths):.0f}",
            f"{ninth}",
            f"{100 * self.comments / max(self.lines, 1):.1f} %",
            f"{100 * self.docstrings / max(self.lines, 1):.1f} %",
        ]


HEADER = ["files", "lines", "functions", "median", "9 in 10", "comments", "docstrings"]


def sources(revision: str | None, repository=ROOT, folder: str = ".") -> dict[str, str]:
    """Path to text of every Python file but the tests, now or at a revision."""
    if revision is None:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        files = {name: (ROOT / name).read_text() for name in listed if (ROOT / name).exists()}
    else:
        archive = subprocess.run(
            ["git", "archive", revision, folder], cwd=repository, capture_output=True, check=True
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            members = [m for m in tar.getmembers() if m.isfile() and m.name.endswith(".py")]
            files = {m.name: tar.extractfile(m).read().decode() for m in members}
    return {name: text for name, text in files.items() if not name.startswith("tests/")}


def room(path: str) -> str:
    """Folder that a file is counted in: a package's own, or the top-level folder."""
    parts = path.split("/")
    if parts[0] == "anoseg_d2" and len(parts) > 2:
        return "/".join(parts[:2])
    return parts[0] if len(parts) > 1 else "top level"


def table(files: dict[str, str]) -> list[str]:
    """Markdown lines: a row for each room, and one for the package."""
    rooms: dict[str, Figures] = defaultdict(Figures)
    package = Figures()
    for path, text in sorted(files.items()):
        rooms[room(path)].add(text)
        if path.startswith("anoseg_d2/"):
            package.add(text)
    lines = ["| room | " + " | ".join(HEADER) + " |", "|---|" + "---:|" * len(HEADER)]
    rows = [(f"`{name}`", figures) for name, figures in sorted(rooms.items())]
    for name, figures in [*rows, ("**package**", package)]:
        lines.append(f"| {name} | " + " | ".join(figures.row()) + " |")
    return lines


def beside(projects: list[str]) -> list[str]:
    """Markdown lines: a row for the code of each project, and one for the package.

    Args:
        projects: NAME=REPOSITORY:FOLDER each; a clone, of which the last commit is counted.
    """
    lines = ["| project | " + " | ".join(HEADER) + " |", "|---|" + "---:|" * len(HEADER)]
    for project in ["**package**", *projects]:
        name, _, place = project.partition("=")
        repository, _, folder = place.rpartition(":")
        files = sources("HEAD", repository, folder) if place else sources(None)
        figures = Figures()
        for path, text in files.items():
            if place or path.startswith("anoseg_d2/"):
                figures.add(text)
        lines.append(f"| {name} | " + " | ".join(figures.row()) + " |")
    return lines


def import_map(files: dict[str, str]) -> dict[str, set[str]]:
    """Room to the rooms of the package that it imports."""
    arrows: dict[str, set[str]] = defaultdict(set)
    for path, text in files.items():
        here = _name(path)
        if here == INDEX:
            continue
        for node in ast.walk(ast.parse(text)):
            modules = []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                # `from anoseg_d2 import export` names a room; `from anoseg_d2 import EoMT` does not
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            for module in modules:
                parts = module.split(".")
                if parts[0] == INDEX and len(parts) > 1 and _level(parts[1]) is not None:
                    arrows[here].add(parts[1])
    return {name: targets - {name} for name, targets in arrows.items()}


def _name(path: str) -> str:
    parts = path.removesuffix(".py").split("/")
    if parts[0] != "anoseg_d2":
        return parts[0]
    return INDEX if parts[1] == "__init__" else parts[1]


def _level(name: str) -> int | None:
    return next((i for i, rooms in enumerate(LEVELS) if name in rooms), None)


def arrows_up(arrows: dict[str, set[str]]) -> list[str]:
    """Imports against the order of `LEVELS`; two rooms of one level must not import each other."""
    wrong = []
    for name, targets in sorted(arrows.items()):
        for target in sorted(targets):
            if _level(name) is None:
                wrong.append(f"{name} has no level; add it to LEVELS")
                break
            mutual = _level(target) == _level(name) and name in arrows.get(target, ())
            if _level(target) > _level(name) or mutual:
                wrong.append(f"{name} imports {target}")
    return wrong


def drawing(arrows: dict[str, set[str]]) -> list[str]:
    """Mermaid lines: the rooms by level; an arrow points at what is imported.

    An arrow that longer ways imply is left out: what `engine` imports through `report` shows there.
    """

    def reaches(start: str, goal: str) -> bool:
        seen, waiting = set(), [start]
        while waiting:  # a circle must not keep it going
            name = waiting.pop()
            seen.add(name)
            waiting += arrows.get(name, set()) - seen
        return goal in seen - {start}

    lines = ["```mermaid", "flowchart TD"]
    for number, rooms in reversed(list(enumerate(LEVELS))):
        names = [name for name in rooms if name in arrows.keys() | set().union(*arrows.values())]
        lines += [f"  subgraph level{number} [ ]", *(f"    {name}" for name in names), "  end"]
    for name, targets in sorted(arrows.items()):
        direct = [t for t in targets if not any(reaches(other, t) for other in targets - {t})]
        lines += [f"  {name} --> {target}" for target in sorted(direct)]
    return [*lines, "```"]


def write(path: Path, parts: dict[str, list[str]]) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- end NAME -->` in a page."""
    text = path.read_text()
    for name, lines in parts.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
        if begin not in text or end not in text:
            raise SystemExit(f"error: {path} has no lines {begin.strip()} and {end}")
        head, rest = text.split(begin, 1)
        text = head + begin + "\n".join(lines) + "\n" + end + rest.split(end, 1)[1]
    path.write_text(text)


def main(argv=None) -> int:
    """Print the tables; the exit status is 1 when an import goes the wrong way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--revision", help="count this git revision instead of the files here")
    parser.add_argument("--imports", action="store_true", help="list which room imports which")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put all of it into a page")
    parser.add_argument("--before", metavar="REV", help="revision of its first table")
    parser.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="NAME=REPOSITORY:FOLDER",
        help="count the code of another project next to the package's; may be repeated",
    )
    args = parser.parse_args(argv)
    files = sources(args.revision)
    if args.write:
        parts = {"rooms": drawing(import_map(files)), "after": table(files)}
        if args.before:
            parts["before"] = table(sources(args.before))
        if args.beside:
            parts["beside"] = beside(args.beside)
        write(args.write, parts)
        return 0
    if not args.imports:
        print("\n".join(table(files)))
        return 0
    arrows = import_map(files)
    for rooms in reversed(LEVELS):
        for name in rooms:
            if name in arrows:
                print(f"{name:12} -> {', '.join(sorted(arrows[name])) or '-'}")
    wrong = arrows_up(arrows)
    print("\n".join(wrong), file=sys.stderr) if wrong else print("every import goes one way")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
