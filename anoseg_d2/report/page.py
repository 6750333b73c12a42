"""The report page: tables, curves and images in one html file that needs nothing else."""

import html
import json
import re
from pathlib import Path

from anoseg_d2.report.curves import curve_figures
from anoseg_d2.report.images import collect_failures, collect_images, color_ranges
from anoseg_d2.report.runs import (
    FIGURE_NAMES,
    LOWER_IS_BETTER,
    Run,
    best_values,
    overview,
)
from anoseg_d2.utils.visualization import ANOMALY_COLORS, color_bar

__all__ = ["build_page"]

_TEMPLATE = Path(__file__).with_name("report_template.html")
_DETAILS = ("auprc", "fpr95", "auroc", "best_f1", "sIoU", "PPV", "mean_F1")
_CLOSED = ("mIoU", "pixel_accuracy", "mean_accuracy", "ECE")
_CLOSED_NAMES = {"pixel_accuracy": "pixel accuracy", "mean_accuracy": "mean accuracy"}
# Bounds this close (in percent) would print as the figure itself.
_TIGHT = 0.01


def build_page(runs: list[Run], title: str) -> str:
    """Build the page.

    Args:
        runs: evaluated models, in the order of the tables.
        title: of the page.
    Returns:
        html text without any reference outside of itself.
    """
    ranges = color_ranges(runs)
    images, notes = collect_images(runs, ranges)
    parts = {
        "title": html.escape(title),
        "facts": _facts(runs),
        "overview": _overview_table(runs),
        "curves": curve_figures(runs),
        "closed_set": _closed_table(runs),
        "details": _detail_tables(runs),
        "several": "" if len(runs) > 1 else "off",
        "notes": "".join(f"<p>{html.escape(note)}</p>" for note in notes),
        "data": _script_json(_image_data(runs, images, ranges)),
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
        "colors": {str(k): f"rgb{v}" for k, v in ANOMALY_COLORS.items()},
    }


def _facts(runs: list[Run]) -> str:
    """What is known of each model, as far as the caller told."""
    blocks = []
    for run in runs:
        facts = {key: value for key, value in run.model.items() if value is not None}
        if facts:
            items = "".join(
                f"<dt>{html.escape(str(k))}</dt><dd>{html.escape(str(v))}</dd>"
                for k, v in facts.items()
            )
            blocks.append(f"<div><b>{html.escape(run.name)}</b><dl>{items}</dl></div>")
    if not blocks:
        return ""
    what = "Model" if len(runs) == 1 else "Models"
    blocks = "".join(blocks)
    return f'<details><summary>{what}</summary><div class="facts">{blocks}</div></details>'


def _number(value, best=None, text=None) -> str:
    """One table cell; the value to sort by rides along."""
    if value is None:
        return '<td class="none">&ndash;</td>'
    shown = f"{value:.2f}" if text is None else text
    # What prints like the best is the best, to a reader.
    mark = ' class="best"' if best is not None and f"{value:.2f}" == f"{best:.2f}" else ""
    return f'<td{mark} data-v="{value!r}">{shown}</td>'


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
    leading = {(run.name, run.best_score()) for run in runs}
    body = [
        f'<tr data-best="{int((row["model"], row["score"]) in leading)}">'
        + _text_cells(row["model"], row["score"])
        + "".join(_number(row[column], best.get(column)) for column in columns)
        + "</tr>"
        for row in rows
    ]
    return _table(f'<tr class="groups"><th colspan="2"></th>{spans}</tr>', heads, body, "overview")


def _with_bounds(entry: dict, figure: str) -> str | None:
    """The figure, and its certified bounds where they are wide enough to be seen."""
    value, bounds = entry.get(figure), entry.get(f"{figure}_bounds")
    if value is None or not bounds or None in bounds or bounds[1] - bounds[0] <= _TIGHT:
        return None
    return f"{value:.2f} <small>[{bounds[0]:.2f}, {bounds[1]:.2f}]</small>"


def _detail_tables(runs: list[Run]) -> str:
    datasets = list(dict.fromkeys(name for run in runs for name in run.of_kind("anomaly")))
    return "".join(_detail_table(runs, dataset) for dataset in datasets)


def _detail_table(runs: list[Run], dataset: str) -> str:
    entries = [
        (run.name, score, entry)
        for run in runs
        if dataset in run.records
        for score, entry in run.records[dataset]["result"]["scores"].items()
    ]
    columns = list(_DETAILS)
    rows = [{figure: entry.get(figure) for figure in columns} for _, _, entry in entries]
    best = _best_plain(columns, rows)
    heads = _head("model", kind="text") + _head("score", kind="text")
    heads += "".join(_head(FIGURE_NAMES.get(f, f), f in LOWER_IS_BETTER) for f in columns)
    body = []
    for (model, score, entry), row in zip(entries, rows, strict=True):
        cells = [_number(row[f], best.get(f), _with_bounds(entry, f)) for f in columns]
        why = html.escape(entry.get("why") or "", quote=True)
        body.append(f'<tr title="{why}">{_text_cells(model, score)}{"".join(cells)}</tr>')
    whys = sorted({entry["why"] for _, _, entry in entries if entry.get("why")})
    first = next(run.records[dataset]["result"] for run in runs if dataset in run.records)
    counts = (
        f"{first['images']:,} images; pixels: {first['anomaly_pixels']:,} anomaly, "
        f"{first['known_pixels']:,} known, {first['void_pixels']:,} void"
    )
    notes = "".join(f'<p class="quiet">&ndash; {html.escape(why)}</p>' for why in whys)
    table = _table("", heads, body, f"detail-{html.escape(dataset)}")
    return (
        f"<details{' open' if len(runs) == 1 else ''}><summary><b>{html.escape(dataset)}</b> "
        f'<span class="quiet">{counts}</span></summary>{table}{notes}</details>'
    )


def _best_plain(columns, rows) -> dict:
    if len(rows) < 2:
        return {}
    keyed = [{("", column): row[column] for column in columns} for row in rows]
    found = best_values([("", column) for column in columns], keyed)
    return {column: value for (_, column), value in found.items()}


def _closed_table(runs: list[Run]) -> str:
    datasets = list(dict.fromkeys(name for run in runs for name in run.of_kind("closed_set")))
    if not datasets:
        return "<p>No closed set was evaluated.</p>"
    return "".join(_closed_one(runs, dataset) for dataset in datasets)


def _closed_one(runs: list[Run], dataset: str) -> str:
    found = [(run.name, run.records[dataset]["result"]) for run in runs if dataset in run.records]
    classes = [c for c in found[0][1]["IoU"] if any(r["IoU"].get(c) is not None for _, r in found)]
    columns = [*_CLOSED, *classes]
    rows = [
        {**{f: r[f] for f in _CLOSED}, **{c: r["IoU"].get(c) for c in classes}} for _, r in found
    ]
    best = _best_plain(columns, rows)
    several = len(found) > 1
    heads = _head("model", kind="text") + "".join(
        _head(_CLOSED_NAMES.get(c, c), c in LOWER_IS_BETTER) for c in columns[:1]
    )
    heads += _head("change") if several else ""
    heads += "".join(_head(_CLOSED_NAMES.get(c, c), c in LOWER_IS_BETTER) for c in columns[1:])
    body = []
    for (name, _), row in zip(found, rows, strict=True):
        cells = [_number(row[c], best.get(c)) for c in columns]
        if several:
            cells.insert(1, _change(row["mIoU"], rows[0]["mIoU"]))
        body.append(f"<tr>{_text_cells(name)}{''.join(cells)}</tr>")
    result = found[0][1]
    note = f"{result['images']:,} images; mean over the {result['classes']} classes that occur"
    if several:
        note += f"; change of the mIoU against {found[0][0]}"
    table = _table("", heads, body, f"closed-{html.escape(dataset)}")
    return f'<h3>{html.escape(dataset)}</h3><p class="quiet">{html.escape(note)}</p>{table}'


def _change(value, reference) -> str:
    if value is None or reference is None:
        return _number(None)
    change = round(value - reference, 2) + 0.0  # never -0.00
    return _number(change, text=f"{change:+.2f}")
