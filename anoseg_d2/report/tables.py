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
    cell,
    leading_scores,
    methods,
    union,
)

__all__ = [
    "Row",
    "Table",
    "closed_set_table",
    "detail_table",
    "latex_escaped",
    "main_table",
    "markdown_escaped",
    "results_csv",
    "results_latex",
    "results_markdown",
]

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
_ORACLE = "oracle: the score is chosen on the labels that it is measured on"


@dataclass
class Row:
    """One method, or one of its scores.

    Args:
        model: name of the method.
        runs: how many it has.
        score: None on a closed set.
        cells: {column: figure}.
        why: a figure is missing.
    """

    model: str
    runs: int
    score: str | None
    cells: dict[Column, Cell]
    why: str = ""

    @property
    def label(self) -> str:
        """The method, with the number of its runs."""
        return f"{self.model} ({self.runs} runs)" if self.runs > 1 else self.model


@dataclass
class Table:
    """Figures of methods.

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


def main_table(runs: list[Run], only_best: bool = False) -> Table:
    """Lay out the main table: one row per method and score, or per method with its best score."""
    closed = union(run.of_kind("closed_set") for run in runs)
    anomaly = union(run.of_kind("anomaly") for run in runs)
    columns = [(name, "mIoU") for name in closed]
    groups = [_MEAN, *anomaly] if len(anomaly) > 1 else anomaly
    columns += [(group, figure) for group in groups for figure in ("auprc", "fpr95")]
    leading, rows = leading_scores(runs), []
    for name, repeats in methods(runs).items():
        for score in union(run.score_names() for run in repeats) or [None]:
            if only_best and score != leading[name]:
                continue
            sets = {column: anomaly if column[0] == _MEAN else [column[0]] for column in columns}
            cells = {column: cell(repeats, sets[column], score, column[1]) for column in columns}
            rows.append(Row(name, len(repeats), score, cells))
    return Table(columns, rows)


def detail_table(runs: list[Run], dataset: str) -> Table:
    """Lay out all figures of one anomaly set; results of older versions may lack some."""
    columns, rows = [("", figure) for figure in DETAIL_FIGURES], []
    for name, repeats in methods([run for run in runs if dataset in run.records]).items():
        results = [run.records[dataset]["result"]["scores"] for run in repeats]
        for score in union(results):
            cells = {column: cell(repeats, [dataset], score, column[1]) for column in columns}
            whys = [entries.get(score, {}).get("why") for entries in results]
            why = "; ".join(dict.fromkeys(filter(None, whys)))
            rows.append(Row(name, len(repeats), score, cells, why))
    return Table(columns, rows).without_empty()


def closed_set_table(runs: list[Run], dataset: str) -> Table:
    """Lay out the figures of a closed set and the IoU of every class that occurs."""
    grouped = methods([run for run in runs if dataset in run.records])
    classes = next(iter(grouped.values()))[0].records[dataset]["result"].get("IoU", {})
    columns, rows = [("", figure) for figure in CLOSED_FIGURES], []
    for name, repeats in grouped.items():
        cells = {column: cell(repeats, [dataset], None, column[1]) for column in columns}
        for class_name in classes:
            values = [r.records[dataset]["result"].get("IoU", {}).get(class_name) for r in repeats]
            mean = None if None in values else sum(values) / len(values)  # as in `cell`
            cells["class", class_name] = Cell(mean)
        rows.append(Row(name, len(repeats), None, cells))
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


def results_markdown(runs: list[Run], only_best: bool = False) -> str:
    """Return the main table in Markdown, with the best of each column bold.

    Args:
        runs: in the order of the rows.
        only_best: one row per method, its best score.
    """
    table = main_table(runs, only_best)
    score = f"best score ({_ORACLE})" if only_best else "score"
    heads = ["model", score]
    heads += [markdown_escaped(f"{column[0]} {figure_name(column)}") for column in table.columns]
    lines = []
    for row in table.rows:
        cells = [markdown_escaped(row.label), markdown_escaped(row.score or "")]
        for column in table.columns:
            text = row.cells[column].text()
            cells.append(f"**{text}**" if table.is_best(row, column) else text)
        lines.append(cells)
    align = ("left", "left", *["right"] * len(table.columns))
    # "pipe" is GitHub's format with aligned columns. Read as a number, 52.00 would print as 52.
    text = tabulate(lines, heads, "pipe", disable_numparse=True, colalign=align if lines else ())
    return text + "\n"


def results_latex(runs: list[Run], only_best: bool = False) -> str:
    r"""Return the main table for a two-column paper (booktabs, `table*`), best figures in bold.

    From a template, since tabulate's `latex_booktabs` knows no groups of columns and escapes
    `\textbf`.

    Args:
        runs: in the order of the rows.
        only_best: one row per method, its best score; else one per score.
    """
    table = main_table(runs, only_best)

    def cells(row: Row, again: bool):
        for column in table.columns:
            text = row.cells[column].text(r"$\pm$") or "--"
            text = rf"\textbf{{{text}}}" if table.is_best(row, column) else text
            # A closed set has one figure for all scores of a method.
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
        only_best=only_best,
        cells=cells,
        latex=latex_escaped,
        name=figure_name,
        lower=lower_is_better,
    )


def results_csv(runs: list[Run]) -> str:
    """Return all figures in long form, one line per run, dataset and score (closed sets: no score).

    `repeat` counts the runs of one name from 1; `*_low` and `*_high` are certified bounds.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")  # the same bytes on every system
    bounds = [f"{figure}_{end}" for figure in _BOUNDED for end in ("low", "high")]
    figures = [*DETAIL_FIGURES, *CLOSED_FIGURES]
    writer.writerow(["model", "repeat", "dataset", "score", *figures, *bounds])
    for name, repeats in methods(runs).items():
        for repeat, run in enumerate(repeats, 1):
            for dataset, record in run.records.items():
                closed = record["kind"] == "closed_set"
                for score in [""] if closed else record["result"]["scores"]:
                    cells = {f: run.figure(dataset, score, f) for f in figures}
                    ends = [end for f in _BOUNDED for end in cells[f].bounds or (None, None)]
                    numbers = [_plain(c.value) for c in cells.values()] + [_plain(e) for e in ends]
                    first = [_csv_text(t) for t in (name, str(repeat), dataset, score)]
                    writer.writerow([*first, *numbers])
    return text.getvalue()


def _csv_text(text: str) -> str:
    """Keep a spreadsheet from reading a name as a formula."""
    return "'" + one_line(text) if text[:1] in ("=", "+", "-", "@", "\t", "\r") else one_line(text)


def _plain(value) -> str:
    return "" if value is None else repr(float(value))  # every digit, to be read back
