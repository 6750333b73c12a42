"""Lay out the figures of runs as tables for the page, Markdown, LaTeX and csv.

Names come from users and may hold anything: each format escapes them in its own way.
"""

import csv
import io
import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from tabulate import tabulate

from anoseg_d2.report.runs import (
    CLOSED_FIGURES,
    DETAIL_FIGURES,
    FIGURE_NAMES,
    LOWER_IS_BETTER,
    Cell,
    Run,
)

Column = tuple[str, str]  # group, such as a dataset, and figure
_MEAN = "mean over sets"
_BOUNDED = ("auprc", "fpr95", "auroc", "best_f1")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
}


@dataclass
class Row:
    """One run, or one of its scores.

    Args:
        model: name of the run.
        score: None on a closed set.
        cells: {column: figure}.
        why: a figure is missing.
    """

    model: str
    score: str | None
    cells: dict[Column, Cell]
    why: str = ""


@dataclass
class Table:
    """Figures of runs.

    Args:
        columns: in order.
        rows: in order.
        best: {column: its best figure}, without columns in which all rows are equal.
    """

    columns: list[Column]
    rows: list[Row]
    best: dict[Column, float] = field(init=False)

    def __post_init__(self):
        self.best = {}
        for column in self.columns:
            found = [row.cells[column].value for row in self.rows]
            values = {value for value in found if value is not None}
            if len(values) > 1:  # where all are equal, none stands out
                self.best[column] = (min if lower_is_better(column) else max)(values)

    def groups(self, first: int = 0) -> list[tuple[str, int, int]]:
        """Return name, number of columns and first column of each group."""
        numbered = itertools.groupby(enumerate(self.columns, first), key=lambda entry: entry[1][0])
        found = [(name, [number for number, _ in entries]) for name, entries in numbered]
        return [(name, len(numbers), numbers[0]) for name, numbers in found]

    def is_best(self, row: Row, column: Column) -> bool:
        """Return whether a figure prints the same as the best of its column."""
        # As printed: of two equal numbers, a single bold one would look like a mistake.
        value = row.cells[column].value
        best = self.best.get(column)
        return best is not None and value is not None and f"{value:.2f}" == f"{best:.2f}"

    def without_empty(self) -> "Table":
        """Leave out columns in which no row has a figure."""
        held = [c for c in self.columns if any(r.cells[c].value is not None for r in self.rows)]
        return Table(held, self.rows)


def lower_is_better(column: Column) -> bool:
    """Return whether the smallest figure of a column is the best."""
    return column[1] in LOWER_IS_BETTER


def figure_name(column: Column) -> str:
    """Return the name of a figure in tables."""
    return FIGURE_NAMES.get(column[1], column[1])


def main_table(runs: list[Run]) -> Table:
    """Lay out the main table: one row per run and score."""
    closed, anomaly = (
        list(dict.fromkeys(name for run in runs for name in run.of_kind(kind)))
        for kind in ("closed_set", "anomaly")
    )
    columns = [(name, "mIoU") for name in closed]
    groups = [_MEAN, *anomaly] if len(anomaly) > 1 else anomaly
    columns += [(group, figure) for group in groups for figure in ("auprc", "fpr95")]
    sets = {column: anomaly if column[0] == _MEAN else [column[0]] for column in columns}
    rows = []
    for run in runs:
        for score in run.score_names() or [None]:
            cells = {column: run.mean(sets[column], score, column[1]) for column in columns}
            rows.append(Row(run.name, score, cells))
    return Table(columns, rows)


def detail_table(runs: list[Run], dataset: str) -> Table:
    """Lay out all figures of one anomaly set; results of older versions may lack some."""
    columns, rows = [("", figure) for figure in DETAIL_FIGURES], []
    for run in (run for run in runs if dataset in run.records):
        for score, entry in run.records[dataset]["result"]["scores"].items():
            cells = {column: run.figure(dataset, score, column[1]) for column in columns}
            rows.append(Row(run.name, score, cells, entry.get("why") or ""))
    return Table(columns, rows).without_empty()


def closed_set_table(runs: list[Run], dataset: str) -> Table:
    """Lay out the figures of a closed set and the IoU of every class that occurs."""
    there = [run for run in runs if dataset in run.records]
    classes = there[0].records[dataset]["result"].get("IoU", {})
    columns, rows = [("", figure) for figure in CLOSED_FIGURES], []
    for run in there:
        cells = {column: run.figure(dataset, None, column[1]) for column in columns}
        iou = run.records[dataset]["result"].get("IoU", {})
        rows.append(Row(run.name, None, cells | {("class", c): Cell(iou.get(c)) for c in classes}))
    # Nineteen classes, of which a set may label eleven.
    occurring = Table([("class", name) for name in classes], rows).without_empty()
    return Table([*columns, *occurring.columns], rows)


def one_line(text: str) -> str:
    """Replace line breaks and control characters, such as a terminal's escapes, by spaces."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())


def latex_escaped(text: str) -> str:
    """Escape every character that LaTeX reads as a command."""
    return "".join(_LATEX.get(sign, sign) for sign in one_line(text))


def markdown_escaped(text: str) -> str:
    """Escape every character that Markdown reads as a table, a link, emphasis or html."""
    return re.sub(r"([\\|*`<>\[\]])", r"\\\1", one_line(text))


def results_markdown(runs: list[Run]) -> str:
    """Return the main table in Markdown, with the best of each column bold."""
    table = main_table(runs)
    heads = ["model", "score"]
    heads += [markdown_escaped(f"{column[0]} {figure_name(column)}") for column in table.columns]
    lines = []
    for row in table.rows:
        cells = [markdown_escaped(row.model), markdown_escaped(row.score or "")]
        for column in table.columns:
            text = row.cells[column].text()
            cells.append(f"**{text}**" if table.is_best(row, column) else text)
        lines.append(cells)
    align = ("left", "left", *["right"] * len(table.columns))
    # "pipe" is GitHub's format with aligned columns. Read as a number, 52.00 would print as 52.
    text = tabulate(lines, heads, "pipe", disable_numparse=True, colalign=align if lines else ())
    return text + "\n"


def results_latex(runs: list[Run]) -> str:
    r"""Return the main table for a two-column paper (booktabs, `table*`), best figures in bold.

    From a template, since tabulate's `latex_booktabs` knows no groups of columns and escapes
    `\textbf`.
    """
    table = main_table(runs)

    def cells(row: Row, again: bool):
        for column in table.columns:
            text = row.cells[column].text() or "--"
            text = rf"\textbf{{{text}}}" if table.is_best(row, column) else text
            # A closed set has one figure for all scores of a run.
            yield "" if again and column[1] in CLOSED_FIGURES else text

    # Not html: names pass through `latex`. LaTeX is full of what jinja2 reads by default.
    environment = jinja2.Environment(  # noqa: S701
        *("<%", "%>", "<<", ">>"), trim_blocks=True, keep_trailing_newline=True
    )
    template = Path(__file__).with_name("results.tex.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        rows=table.rows,
        columns=table.columns,
        groups=table.groups(first=3),
        several=len(table.rows) > len({row.model for row in table.rows}),
        wide_bounds=any(cell.wide_bounds for row in table.rows for cell in row.cells.values()),
        cells=cells,
        latex=latex_escaped,
        name=figure_name,
        lower=lower_is_better,
    )


def results_csv(runs: list[Run]) -> str:
    """Return all figures in long form, one line per run, dataset and score (closed sets: no score).

    `*_low` and `*_high` are certified bounds.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")  # the same bytes on every system
    bounds = [f"{figure}_{end}" for figure in _BOUNDED for end in ("low", "high")]
    figures = [*DETAIL_FIGURES, *CLOSED_FIGURES]
    writer.writerow(["model", "dataset", "score", *figures, *bounds])
    for run in runs:
        for dataset, record in run.records.items():
            for score in [""] if record["kind"] == "closed_set" else record["result"]["scores"]:
                cells = {f: run.figure(dataset, score, f) for f in figures}
                values = [cell.value for cell in cells.values()]
                values += [end for f in _BOUNDED for end in cells[f].bounds or (None, None)]
                # Every digit, to be read back.
                numbers = ["" if value is None else repr(float(value)) for value in values]
                writer.writerow([*map(_csv_text, (run.name, dataset, score)), *numbers])
    return text.getvalue()


def _csv_text(text: str) -> str:
    """Keep a spreadsheet from reading a name as a formula."""
    return "'" + one_line(text) if text[:1] in ("=", "+", "-", "@", "\t", "\r") else one_line(text)
