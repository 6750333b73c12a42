"""Precision-recall and ROC curves of evaluated runs, drawn by matplotlib as inline SVG."""

import io
import re
from html import escape

import matplotlib
from matplotlib.figure import Figure

from anoseg_d2.report.runs import Run, cell, leading_scores, methods

__all__ = ["curve_figures", "seed_figures"]

# Told apart by people with any colour vision, on white and on near-black.
_COLORS = (
    "#0b84d8", "#e8710a", "#12a37f", "#d6409f", "#8e6ee8",
    "#b58900", "#d13438", "#5a9e1b", "#6b7785", "#00a5b5",
)  # fmt: skip
_QUIET = "#7a828e"  # of axes: readable on white and on near-black
# The ROC's axis is logarithmic: what matters on a road is a false positive rate near 0.
_LOWEST_RATE = 1e-4
_STYLE = {
    # Text stays text, and the same curves give the same bytes.
    **{"svg.fonttype": "none", "svg.hashsalt": "anoseg_d2", "font.size": 10},
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "grid.color"), _QUIET),
    **dict.fromkeys(("xtick.color", "ytick.color"), _QUIET),
    **{"axes.grid": True, "grid.alpha": 0.25},
}


def curve_figures(runs: list[Run]) -> list[dict]:
    """Draw two plots for every anomaly set, all runs overlaid.

    Returns:
        dicts with `dataset`, `plots` (two svg elements), `legend` (dicts with `run`, `score`,
        `best`, `color`, `label` and `value`) and `without` (names that have no curve). In the
        plots, curves (class `line`) and thresholds (class `dot`, with a title) are groups of class
        `curve` that carry `data-run`, `data-score` and `data-best` (the run's best score on that
        set), for the page to show the chosen ones.
    """
    datasets = dict.fromkeys(name for run in runs for name in run.of_kind("anomaly"))
    return [_figure(runs, dataset) for dataset in datasets]


def _figure(runs: list[Run], dataset: str) -> dict:
    grouped, drawn, legend = methods(runs), [], {}
    names = list(grouped)
    for run in runs:
        record = run.records.get(dataset, {})
        known = {score: curve for score, curve in record.get("curves", {}).items() if curve}
        holders = [r for r in grouped[run.name] if dataset in r.records]
        means = {score: cell(holders, [dataset], score, "auprc") for score in known}
        best = max(known, key=lambda s: means[s].value or -1.0, default=None)
        for score, curve in known.items():
            # One colour per method where there are several, else one per score.
            order = names.index(run.name) if len(names) > 1 else list(known).index(score)
            entry = {"run": run.name, "score": score, "best": int(score == best)}
            entry["color"] = _COLORS[order % len(_COLORS)]
            drawn.append((entry, curve, record["result"]["scores"].get(score, {})))
            label = f"{run.name} · {score}" if len(names) > 1 else score
            # The repeats of a method share one entry, with their mean.
            named = {**entry, "label": label, "value": means[score].text()}
            legend.setdefault((run.name, score), named)
    with matplotlib.rc_context(_STYLE):
        plots = [_plot(drawn, kind) for kind in ("pr", "roc")]
    shown = {name for name, _ in legend}
    return {
        "dataset": dataset,
        "plots": plots if drawn else [],
        "legend": list(legend.values()),
        "without": [
            name
            for name in names
            if name not in shown and any(dataset in r.records for r in grouped[name])
        ],
    }


def _plot(drawn: list[tuple], kind: str) -> str:
    """Draw the curves of one plot as an svg element; kind is "pr" or "roc"."""
    figure = Figure(figsize=(3.5, 3.5), layout="constrained")
    axes, titles = figure.subplots(), {}
    for number, (entry, curve, figures) in enumerate(drawn):
        line = _precision_steps(curve) if kind == "pr" else _rates(curve)
        style = {"color": entry["color"], "clip_on": False}
        steps = "steps-pre" if kind == "pr" else "default"
        axes.plot(*line, drawstyle=steps, gid=f"line-{number}", **style)
        for at, (point, text) in enumerate(_thresholds(curve, figures)):
            x, y = (point["recall"], point["precision"])
            if kind == "roc":
                x, y = max(point["fpr"], _LOWEST_RATE), point["recall"]
            dot = {"markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.8}
            axes.plot([x], [y], "o", gid=f"dot-{number}-{at}", zorder=3, **dot, **style)
            titles[f"dot-{number}-{at}"] = f"{entry['run']}, {entry['score']}: {text}"
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="recall", ylabel="precision")
    if kind == "roc":
        axes.set(xscale="log", xlim=(_LOWEST_RATE, 1))
        axes.set(xlabel="false positive rate", ylabel="true positive rate")
        axes.axhline(0.95, color=_QUIET, linestyle="--", linewidth=0.8, clip_on=False)
        axes.text(1.2 * _LOWEST_RATE, 0.94, "TPR 95 %", va="top")
    for line in (*axes.get_xgridlines(), *axes.get_ygridlines()):
        line.set_clip_on(False)  # a clipped line refers to a path by url()
    stream = io.StringIO()
    nameless = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # they would link to the web
    figure.savefig(stream, format="svg", transparent=True, metadata=nameless)
    return _marked(stream.getvalue(), [entry for entry, *_ in drawn], titles)


def _marked(svg: str, entries: list[dict], titles: dict[str, str]) -> str:
    """Return only the svg element, with groups that say which run and score they show."""
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg[svg.index("<svg") :])
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.S)

    def named(match) -> str:
        entry = entries[int(match[2])]
        marks = [f'data-{key}="{escape(str(entry[key]))}"' for key in ("run", "score", "best")]
        title = escape(titles.get(match[0][7:-2], ""))
        title = f"<title>{title}</title>" if title else ""
        return f'<g class="curve {match[1]}" {" ".join(marks)}>{title}'

    # Names never pass through matplotlib, which would read a "$" as mathematics.
    return re.sub(r'<g id="(line|dot)-(\d+)(?:-\d+)?">', named, svg)


def _precision_steps(curve: dict) -> tuple[list, list]:
    """Recall and precision; the precision at a recall holds back to the recall before it."""
    pairs = zip(curve["recall"], curve["precision"], strict=True)
    points = sorted(((r, p) for r, p in pairs if r > 0), key=lambda point: (point[0], -point[1]))
    if not points:
        return [], []
    return [0.0, *(r for r, _ in points)], [points[0][1], *(p for _, p in points)]


def _rates(curve: dict) -> tuple[list, list]:
    """False and true positive rates, from the lowest rate that is drawn to 1."""
    points = sorted([(0.0, 0.0), *zip(curve["fpr"], curve["recall"], strict=True), (1.0, 1.0)])
    return [max(fpr, _LOWEST_RATE) for fpr, _ in points], [tpr for _, tpr in points]


def _thresholds(curve: dict, figures: dict) -> list[tuple[dict, str]]:
    """Return (curve point, text) of every true positive rate with a stated threshold."""
    keys = ("recall", "precision", "fpr")
    points = sorted(zip(*(curve[key] for key in keys), strict=True))
    found = []
    for level, threshold in (figures.get("tpr_thresholds") or {}).items():
        reached = next((p for p in points if p[0] >= float(level) / 100), None)
        if threshold is not None and reached is not None:
            recall, precision, fpr = reached
            text = (
                f"threshold {threshold:.4g}, TPR {100 * recall:.1f} %, FPR {100 * fpr:.2f} %, "
                f"precision {100 * precision:.1f} %"
            )
            found.append((dict(zip(keys, reached, strict=True)), text))
    return found


def seed_figures(runs: list[Run]) -> list[dict]:
    """AUPRC of each method's best score: every run, the mean and the standard deviation.

    Returns:
        dicts with `dataset` and `rows` (dicts with `label`, `text`, `color`, `mean`, `low`, `high`
        and `each`, in percent); none unless a method has several runs.
    """
    grouped = methods(runs)
    if all(len(repeats) == 1 for repeats in grouped.values()):
        return []
    best, figures = leading_scores(runs), []
    for dataset in dict.fromkeys(name for run in runs for name in run.of_kind("anomaly")):
        rows = []
        for number, (name, repeats) in enumerate(grouped.items()):
            found = cell(repeats, [dataset], best[name], "auprc")
            if found.value is None:
                continue
            spread = found.spread or 0.0
            row = {"label": f"{name} · {best[name]}", "text": found.text(), "mean": found.value}
            row |= {"low": max(0.0, found.value - spread), "high": min(100.0, found.value + spread)}
            row["each"] = [run.figure(dataset, best[name], "auprc").value for run in repeats]
            rows.append({**row, "color": _COLORS[number % len(_COLORS)]})
        figures.append({"dataset": dataset, "rows": rows})
    return figures
