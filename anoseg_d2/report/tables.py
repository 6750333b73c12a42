"""The figures of runs as tables: of the page, and as Markdown, LaTeX and csv.

Names come from users and may hold anything: each format escapes them in its own way.
"""

import csv
import io
import itertools
import re
from dataclasses import dataclass, field

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
            if len(values) > 1:
                self.best[column] = (min if lower_is_better(column) else max)(values)

    def groups(self) -> list[tuple[str, int]]:
        """Neighbouring columns of one group: its name and how many they are."""
        grouped = itertools.groupby(self.columns, key=lambda column: column[0])
        return [(name, len(list(columns))) for name, columns in grouped]

    def is_best(self, row: Row, column: Column) -> bool:
        """Whether a figure prints like the best of its column: to a reader, it is the best."""
        value = row.cells[column].value
        best = self.best.get(column)
        return best is not None and value is not None and f"{value:.2f}" == f"{best:.2f}"

    def without_empty(self) -> "Table":
        """Leave out columns in which no row has a figure."""
        held = [c for c in self.columns if any(r.cells[c].value is not None for r in self.rows)]
        return Table(held, self.rows)


def lower_is_better(column: Column) -> bool:
    """Whether the smallest figure of a column is the best."""
    return column[1] in LOWER_IS_BETTER


def figure_name(column: Column) -> str:
    """How a figure is called in tables."""
    return FIGURE_NAMES.get(column[1], column[1])


def _union(lists) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))


def main_table(runs: list[Run], only_best: bool = False) -> Table:
    """Lay out the main table: one row per method and score, or per method with its best score."""
    closed = _union(run.of_kind("closed_set") for run in runs)
    anomaly = _union(run.of_kind("anomaly") for run in runs)
    columns = [(name, "mIoU") for name in closed]
    groups = [_MEAN, *anomaly] if len(anomaly) > 1 else anomaly
    columns += [(group, figure) for group in groups for figure in ("auprc", "fpr95")]
    leading, rows = leading_scores(runs), []
    for name, repeats in methods(runs).items():
        for score in _union(run.score_names() for run in repeats) or [None]:
            if only_best and score != leading[name]:
                continue
            sets = {column: anomaly if column[0] == _MEAN else [column[0]] for column in columns}
            cells = {column: cell(repeats, sets[column], score, column[1]) for column in columns}
            rows.append(Row(name, len(repeats), score, cells))
    return Table(columns, rows)


def detail_table(runs: list[Run], dataset: str) -> Table:
    """All figures of one anomaly set. Older results and foreign methods do not have every one."""
    columns, rows = [("", figure) for figure in DETAIL_FIGURES], []
    for name, repeats in methods([run for run in runs if dataset in run.records]).items():
        results = [run.records[dataset]["result"]["scores"] for run in repeats]
        for score in _union(results):
            cells = {column: cell(repeats, [dataset], score, column[1]) for column in columns}
            whys = [entries.get(score, {}).get("why") for entries in results]
            why = "; ".join(dict.fromkeys(filter(None, whys)))
            rows.append(Row(name, len(repeats), score, cells, why))
    return Table(columns, rows).without_empty()


def closed_set_table(runs: list[Run], dataset: str) -> Table:
    """Figures of one closed set and the IoU of every class that occurs."""
    grouped = methods([run for run in runs if dataset in run.records])
    classes = next(iter(grouped.values()))[0].records[dataset]["result"].get("IoU", {})
    columns, rows = [("", figure) for figure in CLOSED_FIGURES], []
    for name, repeats in grouped.items():
        cells = {column: cell(repeats, [dataset], None, column[1]) for column in columns}
        for class_name in classes:
            values = [r.records[dataset]["result"].get("IoU", {}).get(class_name) for r in repeats]
            mean = None if None in values else sum(values) / len(values)
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
    """The main table in Markdown, the best of each column bold, empty where there is no figure.

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
    r"""The main table for a two-column paper: booktabs, `table*`, the best of each column bold.

    The rows are joined here, since tabulate's `latex_booktabs` knows no groups of columns and
    escapes `\textbf`.

    Args:
        runs: in the order of the rows.
        only_best: one row per method, its best score; else one per score.
    """
    table = main_table(runs, only_best)
    heads, rules, start = [], [], 3
    for group, count in table.groups():
        heads.append(rf"\multicolumn{{{count}}}{{c}}{{{latex_escaped(group)}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + count - 1}}}")
        start += count
    arrows = {True: r"\,$\downarrow$", False: r"\,$\uparrow$"}
    figures = [figure_name(column) + arrows[lower_is_better(column)] for column in table.columns]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs,graphicx}",
            r"\begin{table*}[t]",
            r"\centering",
            rf"\caption{{{_latex_caption(table, only_best)}}}",
            r"\setlength{\tabcolsep}{4pt}",
            # A wide table shrinks to the page; a narrow one keeps its size.
            r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{@{{}}ll{'r' * len(table.columns)}@{{}}}}",
            r"\toprule",
            " & & " + " & ".join(heads) + r" \\",
            "".join(rules),
            "Method & Score & " + " & ".join(figures) + r" \\",
            r"\midrule",
            *_latex_body(table),
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table*}",
            "",
        ]
    )


def _latex_caption(table: Table, only_best: bool) -> str:
    caption = "Anomaly segmentation, in percent."
    if any(row.runs > 1 for row in table.rows):
        caption += r" Mean $\pm$ standard deviation over runs."
    if any(found.wide_bounds for row in table.rows for found in row.cells.values()):
        caption += " Brackets: certified bounds."
    if only_best:
        caption += " Each method's best score, an oracle chosen on these labels."
    return caption


def _latex_body(table: Table) -> list[str]:
    """Rows; a method is named once, and the figures of its closed set stand once."""
    lines, several = [], len(table.rows) > len({row.model for row in table.rows})
    for row, above in zip(table.rows, [None, *table.rows], strict=False):
        again = above is not None and above.model == row.model
        if several and above is not None and not again:
            lines.append(r"\addlinespace")
        cells = ["" if again else latex_escaped(row.label), latex_escaped(row.score or "--")]
        for column in table.columns:
            text = row.cells[column].text(r"$\pm$") or "--"
            if table.is_best(row, column):
                text = rf"\textbf{{{text}}}"
            cells.append("" if again and column[1] in CLOSED_FIGURES else text)
        lines.append(" & ".join(cells) + r" \\")
    return lines


def results_csv(runs: list[Run]) -> str:
    """All figures in long form, one line per run, dataset and score (no score on closed sets).

    `repeat` counts the runs of one name from 1; `*_low` and `*_high` are certified bounds.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
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
    return "" if value is None else repr(float(value))
