"""The figures of runs as Markdown, LaTeX and csv.

Names come from users and may hold anything: each format escapes them in its own way.
"""

import csv
import io

from anoseg_d2.report.runs import (
    CLOSED_FIGURES,
    DETAIL_FIGURES,
    FIGURE_NAMES,
    LOWER_IS_BETTER,
    Run,
    best_values,
    leading_scores,
    methods,
    overview,
)

__all__ = ["latex_escaped", "results_csv", "results_latex", "results_markdown"]

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


def latex_escaped(text: str) -> str:
    """Escape every character that LaTeX reads as a command; line breaks become spaces."""
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))


def _markdown_escaped(text: str) -> str:
    for sign in "\\|*`<>[]":
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.split())


def _selected(runs: list[Run], only_best: bool):
    """Columns and rows of the main table, and the best of each column."""
    columns, rows = overview(runs)
    if only_best:
        leading = leading_scores(runs)
        rows = [row for row in rows if row["score"] == leading[row["model"]]]
    return columns, rows, best_values(columns, rows) if len(rows) > 1 else {}


def _is_best(found, best) -> bool:
    # What prints like the best is the best, to a reader.
    return best is not None and found.value is not None and f"{found.value:.2f}" == f"{best:.2f}"


def _model(row: dict) -> str:
    return row["model"] + (f" ({row['runs']} runs)" if row["runs"] > 1 else "")


def results_markdown(runs: list[Run], only_best: bool = False) -> str:
    """The main table in Markdown, the best of each column bold, empty where there is no figure.

    Args:
        runs: in the order of the rows.
        only_best: one row per method, its best score.
    """
    columns, rows, best = _selected(runs, only_best)
    score = f"best score ({_ORACLE})" if only_best else "score"
    names = [_markdown_escaped(f"{group} {FIGURE_NAMES.get(f, f)}") for group, f in columns]
    lines = ["| " + " | ".join(["model", score, *names]) + " |"]
    lines.append("|" + "---|" * 2 + "---:|" * len(columns))
    for row in rows:
        cells = [_markdown_escaped(_model(row)), _markdown_escaped(row["score"] or "")]
        for column in columns:
            text = row[column].text()
            marked = _is_best(row[column], best.get(column))
            cells.append(f"**{text}**" if marked else text)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def results_latex(runs: list[Run], only_best: bool = False) -> str:
    r"""The main table for a two-column paper: booktabs, `table*`, the best of each column bold.

    Args:
        runs: in the order of the rows.
        only_best: one row per method, its best score; else one per score.
    """
    columns, rows, best = _selected(runs, only_best)
    groups: list[list] = []
    for group, _ in columns:
        if groups and groups[-1][0] == group:
            groups[-1][1] += 1
        else:
            groups.append([group, 1])
    heads, rules, start = [], [], 3
    for group, count in groups:
        heads.append(rf"\multicolumn{{{count}}}{{c}}{{{latex_escaped(group)}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + count - 1}}}")
        start += count
    figures = [
        FIGURE_NAMES.get(f, f) + (r"\,$\downarrow$" if f in LOWER_IS_BETTER else r"\,$\uparrow$")
        for _, f in columns
    ]
    caption = "Anomaly segmentation, in percent."
    if any(row["runs"] > 1 for row in rows):
        caption += r" Mean $\pm$ standard deviation over runs."
    if any(row[c].wide_bounds for row in rows for c in columns):
        caption += " Brackets: certified bounds."
    if only_best:
        caption += " Each method's best score, an oracle chosen on these labels."
    lines = [
        "% needs \\usepackage{booktabs,graphicx}",
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{caption}}}",
        r"\setlength{\tabcolsep}{4pt}",
        # A wide table shrinks to the page; a narrow one keeps its size.
        r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{@{{}}ll{'r' * len(columns)}@{{}}}}",
        r"\toprule",
        " & & " + " & ".join(heads) + r" \\",
        "".join(rules),
        "Method & Score & " + " & ".join(figures) + r" \\",
        r"\midrule",
    ]
    several = len(rows) > len(methods(runs))
    for row, above in zip(rows, [None, *rows], strict=False):
        again = above is not None and above["model"] == row["model"]
        if several and above is not None and not again:
            lines.append(r"\addlinespace")
        cells = ["" if again else latex_escaped(_model(row)), latex_escaped(row["score"] or "--")]
        for column in columns:
            text = row[column].text(r"$\pm$") or "--"
            if _is_best(row[column], best.get(column)):
                text = rf"\textbf{{{text}}}"
            # A closed set has one figure for all scores of a method.
            cells.append("" if again and column[1] in CLOSED_FIGURES else text)
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table*}"]
    return "\n".join(lines) + "\n"


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
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _plain(value) -> str:
    return "" if value is None else repr(float(value))
