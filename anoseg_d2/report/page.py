"""The report page: tables, curves and images in one html file that needs nothing else."""

import html
import json
import re
from pathlib import Path

from anoseg_d2.report.curves import curve_figures, seed_figures
from anoseg_d2.report.images import (
    class_colors,
    collect_failures,
    collect_images,
    color_ranges,
)
from anoseg_d2.report.runs import (
    CLOSED_FIGURES,
    DETAIL_FIGURES,
    FIGURE_NAMES,
    LOWER_IS_BETTER,
    Cell,
    Run,
    best_values,
    cell,
    leading_scores,
    methods,
    overview,
    unique_names,
)
from anoseg_d2.utils.constants import ANOMALY_COLORS
from anoseg_d2.utils.visualization import color_bar

__all__ = ["build_page"]

_TEMPLATE = Path(__file__).with_name("report_template.html")
_FACT_NAMES = {
    "weights_file": "evaluated weights",
    "weights_file_sha256": "sha256 of the file",
    "weights_sha256": "sha256 of the tensors",
    "averaged": "averaged weights (EMA)",
    "untrained_tensors": "untrained tensors",
    "num_known": "known classes",
    "peak_memory": "peak memory, MiB",
    "step_seconds": "seconds per step",
}


def build_page(runs: list[Run], title: str) -> str:
    """Build the page.

    Args:
        runs: evaluated models, in the order of the tables; those that share a name are
            repetitions of one method.
        title: of the page.
    Returns:
        html text without any reference outside of itself but the tables next to it.
    """
    # Pictures of one run stand for all repetitions of a method.
    shown = [repeats[0] for repeats in methods(runs).values()]
    ranges = color_ranges(shown)
    images, notes = collect_images(shown, ranges)
    parts = {
        "title": html.escape(title),
        "facts": _facts(runs),
        "overview": _overview_table(runs) + _warnings(runs),
        "seeds": seed_figures(runs),
        "curves": curve_figures(runs),
        "closed_set": _closed_table(runs),
        "details": _detail_tables(runs),
        "several": "" if len(shown) > 1 else "off",
        "notes": "".join(f"<p>{html.escape(note)}</p>" for note in notes),
        "data": _script_json(_image_data(shown, images, ranges)),
    }
    template = _TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _script_json(value) -> str:
    """JSON that cannot end the script element that holds it."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")


def _image_data(runs: list[Run], images: dict, ranges: dict) -> dict:
    ap: dict = {}
    for run in runs:
        for dataset, record in run.of_kind("anomaly").items():
            of_images = {i["image_id"]: i["ap"] for i in record["per_image"]}
            ap.setdefault(dataset, {})[run.name] = of_images
    scores = {run.name: run.score_names() for run in runs}
    return {
        "images": images,
        "ap": ap,
        "scores": scores,
        "best": {run.name: run.best_score() for run in runs},
        "ranges": {
            run: {s: ranges[run, s] for s in scores[run] if (run, s) in ranges} for run in scores
        },
        "failures": collect_failures(runs, ranges),
        "bar": [f"rgb({r},{g},{b})" for r, g, b in color_bar(16, 1)[0].tolist()],
        "classes": {run.name: class_colors(run) for run in runs},
        "colors": {str(k): f"rgb{v}" for k, v in ANOMALY_COLORS.items()},
    }


def _facts(runs: list[Run]) -> str:
    """What is known about each model: which weights were evaluated, how it was trained."""
    blocks = []
    for name, run in zip(unique_names(runs), runs, strict=True):
        facts = {key: value for key, value in run.model.items() if value is not None}
        if facts:
            items = "".join(
                f"<dt>{html.escape(_FACT_NAMES.get(key, str(key)))}</dt>"
                f"<dd>{html.escape(_fact(value))}</dd>"
                for key, value in facts.items()
            )
            blocks.append(f"<div><b>{html.escape(name)}</b><dl>{items}</dl></div>")
    if not blocks:
        return ""
    what = "Model" if len(runs) == 1 else "Models"
    blocks = "".join(blocks)
    return f'<details><summary>{what}</summary><div class="facts">{blocks}</div></details>'


def _fact(value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value)


def _number(found: Cell, best=None, text=None) -> str:
    """One table cell with the value to sort by, its spread and its bounds."""
    if found.value is None:
        return '<td class="none">&ndash;</td>'
    shown = text or f"{found.value:.2f}"
    if found.spread is not None:
        shown += f" <small>&plusmn; {found.spread:.2f}</small>"
    if found.wide_bounds:
        shown += " <small>[{:.2f}, {:.2f}]</small>".format(*found.wide_bounds)
    # What prints like the best is the best, to a reader.
    mark = ' class="best"' if best is not None and f"{found.value:.2f}" == f"{best:.2f}" else ""
    return f'<td{mark} data-v="{found.value!r}">{shown}</td>'


def _head(text: str, lower: bool = False, kind: str = "number") -> str:
    arrow = f" <small>{'&darr;' if lower else '&uarr;'}</small>" if kind == "number" else ""
    return (
        f'<th data-kind="{kind}" data-first="{"asc" if lower or kind == "text" else "desc"}">'
        f"<button>{html.escape(text)}{arrow}</button></th>"
    )


def _table(group_row: str, heads: str, body: list[str], name: str) -> str:
    return (
        f'<div class="wide"><table class="sortable" id="{name}"><thead>{group_row}<tr>{heads}</tr>'
        f"</thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _text_cells(*texts) -> str:
    return "".join(f'<th scope="row">{html.escape(text or "")}</th>' for text in texts)


def _overview_table(runs: list[Run]) -> str:
    columns, rows = overview(runs)
    best = best_values(columns, rows) if len(rows) > 1 else {}
    groups: list[list] = []
    for group, _ in columns:
        if groups and groups[-1][0] == group:
            groups[-1][1] += 1
        else:
            groups.append([group, 1])
    spans = "".join(f'<th colspan="{n}">{html.escape(g)}</th>' for g, n in groups)
    heads = _head("model", kind="text") + _head("score", kind="text")
    heads += "".join(_head(FIGURE_NAMES.get(f, f), f in LOWER_IS_BETTER) for _, f in columns)
    leading = leading_scores(runs)
    body = [
        f'<tr data-best="{int(leading[row["model"]] == row["score"])}">'
        + _text_cells(_repeated(row["model"], row["runs"]), row["score"])
        + "".join(_number(row[column], best.get(column)) for column in columns)
        + "</tr>"
        for row in rows
    ]
    return _table(f'<tr class="groups"><th colspan="2"></th>{spans}</tr>', heads, body, "overview")


def _warnings(runs: list[Run]) -> str:
    """What a reader of the figures must know, as the evaluators left it."""
    entries = {}
    for name, run in zip(unique_names(runs), runs, strict=True):
        for dataset, record in run.of_kind("anomaly").items():
            for text in record["result"].get("warnings") or ():
                entries.setdefault((dataset, text), []).append(name)
    items = "".join(
        f"<li><b>{html.escape(dataset)}</b>, {html.escape(', '.join(names))}: {html.escape(text)}"
        for (dataset, text), names in entries.items()
    )
    return f'<ul class="warnings">{items}</ul>' if items else ""


def _repeated(name: str, count: int) -> str:
    return f"{name} ({count} runs)" if count > 1 else name


def _names(runs: list[Run], kind: str) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.of_kind(kind)))


def _detail_tables(runs: list[Run]) -> str:
    return "".join(_detail_table(runs, dataset) for dataset in _names(runs, "anomaly"))


def _detail_table(runs: list[Run], dataset: str) -> str:
    holders = [run for run in runs if dataset in run.records]
    rows, whys = [], {}
    for name, repeats in methods(holders).items():
        for score in dict.fromkeys(
            s for r in repeats for s in r.records[dataset]["result"]["scores"]
        ):
            row = {("", f): cell(repeats, [dataset], score, f) for f in DETAIL_FIGURES}
            entries = [r.records[dataset]["result"]["scores"].get(score, {}) for r in repeats]
            why = "; ".join(dict.fromkeys(e["why"] for e in entries if e.get("why")))
            whys[why] = True
            rows.append({**row, "why": why, "names": (_repeated(name, len(repeats)), score)})
    # Older results and foreign methods do not have every figure: an empty column says nothing.
    columns = [("", f) for f in DETAIL_FIGURES if any(row["", f].value is not None for row in rows)]
    best = best_values(columns, rows) if len(rows) > 1 else {}
    heads = _head("model", kind="text") + _head("score", kind="text")
    heads += "".join(_head(FIGURE_NAMES.get(f, f), f in LOWER_IS_BETTER) for _, f in columns)
    body = [
        f'<tr title="{html.escape(row["why"])}">{_text_cells(*row["names"])}'
        + "".join(_number(row[column], best.get(column)) for column in columns)
        + "</tr>"
        for row in rows
    ]
    result = holders[0].records[dataset]["result"]
    counts = [f"{result['images']:,.0f} images"] if result.get("images") is not None else []
    for kind in ("anomaly", "known", "void"):
        if result.get(f"{kind}_pixels") is not None:
            counts.append(f"{result[f'{kind}_pixels']:,.0f} {kind} pixels")
    notes = "".join(f'<p class="quiet">&ndash; {html.escape(w)}</p>' for w in sorted(whys) if w)
    table = _table("", heads, body, f"detail-{html.escape(dataset)}")
    return (
        f"<details{' open' if len(methods(runs)) == 1 else ''}><summary>"
        f"<b>{html.escape(dataset)}</b> "
        f'<span class="quiet">{", ".join(counts)}</span></summary>{table}{notes}</details>'
    )


def _closed_table(runs: list[Run]) -> str:
    datasets = _names(runs, "closed_set")
    if not datasets:
        return "<p>No closed set was evaluated.</p>"
    return "".join(_closed_one(runs, dataset) for dataset in datasets)


def _closed_one(runs: list[Run], dataset: str) -> str:
    grouped = methods([run for run in runs if dataset in run.records])
    first = next(iter(grouped.values()))[0].records[dataset]["result"]
    rows = []
    for name, repeats in grouped.items():
        row = {("", f): cell(repeats, [dataset], None, f) for f in CLOSED_FIGURES}
        for class_name in first.get("IoU", {}):
            values = [r.records[dataset]["result"].get("IoU", {}).get(class_name) for r in repeats]
            known = None not in values
            row["class", class_name] = Cell(sum(values) / len(values) if known else None)
        rows.append({**row, "name": _repeated(name, len(repeats))})
    occurring = [
        c for c in first.get("IoU", {}) if any(r["class", c].value is not None for r in rows)
    ]
    columns = [("", f) for f in CLOSED_FIGURES] + [("class", c) for c in occurring]
    best = best_values(columns, rows) if len(rows) > 1 else {}
    heads = [_head(FIGURE_NAMES.get(c, c), c in LOWER_IS_BETTER) for _, c in columns]
    several = len(rows) > 1 and columns[:1] == [("", "mIoU")]
    if several:
        heads.insert(1, _head("change"))
    body = []
    for row in rows:
        cells = [_number(row[column], best.get(column)) for column in columns]
        if several:
            cells.insert(1, _change(row["", "mIoU"].value, rows[0]["", "mIoU"].value))
        body.append(f"<tr>{_text_cells(row['name'])}{''.join(cells)}</tr>")
    notes = [f"{first['images']:,.0f} images"] if first.get("images") is not None else []
    if first.get("classes") is not None:
        notes.append(f"mean over the {first['classes']:.0f} classes that occur")
    if several:
        notes.append(f"change of the mIoU against {rows[0]['name']}")
    heads = _head("model", kind="text") + "".join(heads)
    table = _table("", heads, body, f"closed-{html.escape(dataset)}")
    note = html.escape("; ".join(notes))
    return f'<h3>{html.escape(dataset)}</h3><p class="quiet">{note}</p>{table}'


def _change(value, reference) -> str:
    if value is None or reference is None:
        return _number(Cell())
    change = round(value - reference, 2) + 0.0  # never -0.00
    return _number(Cell(change), text=f"{change:+.2f}")
