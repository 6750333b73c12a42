"""Describe what happened to each tensor of a load, as rows and as a table."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

__all__ = ["LoadReport", "LoadRow"]


@dataclass(frozen=True)
class LoadRow:
    """What happened to one tensor; a shape is None if that side does not have the tensor."""

    name: str
    action: str  # see LoadReport
    stored: tuple[int, ...] | None = None
    loaded: tuple[int, ...] | None = None
    note: str = ""


@dataclass
class LoadReport:
    """What happened to every tensor in one load.

    Attributes:
        source: what was read, and its format.
        rows: one LoadRow per tensor of the model and per tensor of the file that went unused.
            Actions: `loaded` as it is; `resampled` to another grid or patch size; `transferred`
            without changing what the model computes; `merged` with its adapter; and those that
            leave it untrained, `initialised`, `inserted` (class rows) and `converted` (to another
            head or class list). Tensors of the file may be `ignored`.
        file: what was read, for `describe_weights`; None if it came from memory.
    """

    source: str
    rows: list[LoadRow] = field(default_factory=list)
    file: Path | None = None

    def names(self, action: str) -> list[str]:
        """Return the names of the tensors that `action` happened to."""
        return [row.name for row in self.rows if row.action == action]

    def counts(self) -> dict[str, int]:
        """Count the tensors per action, in order of appearance."""
        counts: dict[str, int] = {}
        for row in self.rows:
            counts[row.action] = counts.get(row.action, 0) + 1
        return counts

    def table(self, leave_out: tuple[str, ...] = ()) -> str:
        """Lay the rows out as text; numbered siblings with the same fate share a line.

        Args:
            leave_out: actions whose rows are not shown.
        Returns:
            the table; empty if it would have no row.
        """
        merged: dict[tuple, list[tuple[int, ...]]] = {}
        for row in self.rows:
            if row.action in leave_out:
                continue
            numbers = tuple(int(n) for n in re.findall(r"(?<=\.)\d+(?=\.)", row.name))
            pattern = re.sub(r"(?<=\.)\d+(?=\.)", "{}", row.name)
            key = (pattern, row.action, row.stored, row.loaded, row.note)
            merged.setdefault(key, []).append(numbers)
        lines = [
            [
                pattern.format(*(_span(set(column)) for column in zip(*numbers, strict=True))),
                action,
                _shapes(stored, loaded),
                note,
            ]
            for (pattern, action, stored, loaded, note), numbers in merged.items()
        ]
        if not lines:
            return ""
        return tabulate(lines, headers=["tensor", "action", "shape", "note"], disable_numparse=True)


def _span(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    if low == high:
        return str(low)
    whole = len(numbers) == high - low + 1 and len(numbers) > 2
    return f"{{{low}..{high}}}" if whole else "{" + ",".join(map(str, sorted(numbers))) + "}"


def _shapes(stored, loaded) -> str:
    texts = [
        "x".join(map(str, shape)) or "scalar" for shape in (stored, loaded) if shape is not None
    ]
    return texts[0] if len(set(texts)) == 1 else " -> ".join(texts)
