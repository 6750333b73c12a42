"""Precision-recall and ROC curves, and the spread over repeated runs, as inline SVG."""

import html
import math

from anoseg_d2.report.runs import Run, cell, leading_scores, methods

__all__ = ["curve_figures", "seed_figures"]

# Told apart by people with any colour vision, on white and on near-black.
_COLORS = (
    "#0b84d8", "#e8710a", "#12a37f", "#d6409f", "#8e6ee8",
    "#b58900", "#d13438", "#5a9e1b", "#6b7785", "#00a5b5",
)  # fmt: skip
_LEFT, _TOP, _SIDE = 46, 12, 300
# The ROC's axis is logarithmic: what matters on a road is a false positive rate near 0.
_LOWEST_RATE = 1e-4


def curve_figures(runs: list[Run]) -> str:
    """One figure with two plots for every anomaly set, all runs overlaid.

    Every path carries `data-run`, `data-score` and `data-best` (the run's best score on that set),
    for the page to show the chosen ones. Dots with a title state the thresholds that results.json
    knows.
    """
    datasets = list(dict.fromkeys(name for run in runs for name in run.of_kind("anomaly")))
    return "".join(_figure(runs, dataset) for dataset in datasets)


def _figure(runs: list[Run], dataset: str) -> str:
    curves, legend = {"pr": [], "roc": []}, {}
    grouped = methods(runs)
    names = list(grouped)
    for run in runs:
        record = run.records.get(dataset)
        known = {s: c for s, c in (record or {}).get("curves", {}).items() if c}
        holders = [r for r in grouped[run.name] if dataset in r.records]
        means = {s: cell(holders, [dataset], s, "auprc") for s in known}
        best = max(known, key=lambda s: means[s].value or -1.0, default=None)
        for score, curve in known.items():
            order = names.index(run.name) if len(names) > 1 else list(known).index(score)
            color = _COLORS[order % len(_COLORS)]
            marks = (
                f'data-run="{html.escape(run.name)}" data-score="{html.escape(score)}" '
                f'data-best="{int(score == best)}" class="curve"'
            )
            dots = _threshold_dots(curve, record["result"]["scores"].get(score, {}))
            for kind, line, place in (("pr", _pr_path, "precision"), ("roc", _roc_path, "fpr")):
                curves[kind].append(f'<path {marks} style="stroke:{color}" d="{line(curve)}"/>')
                for recall, at, text in dots:
                    x, y = (
                        (_x(recall), _y(at[place]))
                        if kind == "pr"
                        else (_log_x(at[place]), _y(recall))
                    )
                    curves[kind].append(
                        f'<circle {marks} style="fill:{color}" cx="{x}" cy="{y}" r="4">'
                        f"<title>{html.escape(f'{run.name}, {score}: {text}')}</title></circle>"
                    )
            label = html.escape(f"{run.name} · {score}" if len(names) > 1 else score)
            text = f" <b>{means[score].text()}</b>"
            item = f'<li {marks}><i style="background:{color}"></i>{label}{text}</li>'
            legend.setdefault((run.name, score), item)
    without = [name for name in names if name not in {run for run, _ in legend}]
    without = [name for name in without if any(dataset in r.records for r in grouped[name])]
    if not legend:
        return f"<figure><figcaption>{html.escape(dataset)}</figcaption><p>No curve.</p></figure>"
    plots = _plot("recall", "precision", curves["pr"])
    plots += _plot("false positive rate", "true positive rate", curves["roc"], roc=True)
    return (
        f"<figure><figcaption>{html.escape(dataset)}</figcaption>"
        f'<div class="plots">{plots}</div><ul class="legend">{"".join(legend.values())}</ul>'
        f"{_without_curve(without)}</figure>"
    )


def _without_curve(names: list[str]) -> str:
    if not names:
        return ""
    names = html.escape(", ".join(names))
    return f'<p class="quiet">No curve of {names}: no curves.json next to their results.</p>'


def _threshold_dots(curve: dict, figures: dict) -> list[tuple[float, dict, str]]:
    """(recall, curve point, text) of every true positive rate with a stated threshold."""
    points = sorted(zip(curve["recall"], curve["precision"], curve["fpr"], strict=True))
    dots = []
    for level, threshold in (figures.get("tpr_thresholds") or {}).items():
        reached = [p for p in points if p[0] >= float(level) / 100]
        if threshold is None or not reached:
            continue
        recall, precision, fpr = reached[0]
        text = (
            f"threshold {threshold:.4g}, TPR {100 * recall:.1f} %, FPR {100 * fpr:.2f} %, "
            f"precision {100 * precision:.1f} %"
        )
        dots.append((recall, {"precision": precision, "fpr": fpr}, text))
    return dots


def seed_figures(runs: list[Run]) -> str:
    """AUPRC of each method's best score: every run, the mean and the standard deviation.

    Empty unless a method has several runs.
    """
    grouped = methods(runs)
    if all(len(repeats) == 1 for repeats in grouped.values()):
        return ""
    best = leading_scores(runs)
    datasets = list(dict.fromkeys(name for run in runs for name in run.of_kind("anomaly")))
    figures = []
    for dataset in datasets:
        parts = []
        for row, (name, repeats) in enumerate(grouped.items()):
            found = cell(repeats, [dataset], best[name], "auprc")
            if found.value is None:
                continue
            color, y = _COLORS[row % len(_COLORS)], 34 + 26 * row
            low, high = (
                min(100.0, max(0.0, found.value + sign * (found.spread or 0))) for sign in (-1, 1)
            )
            each = [run.figure(dataset, best[name], "auprc").value for run in repeats]
            ticks = "".join(f'<circle cx="{_bar_x(v)}" cy="{y}" r="3"/>' for v in each)
            label = html.escape(f"{name} · {best[name]}")
            parts.append(
                f'<text x="0" y="{y - 8}">{label}: {html.escape(found.text())}</text>'
                f'<g style="fill:{color};stroke:{color}"><path class="bar-line" '
                f'd="M{_bar_x(low)} {y}H{_bar_x(high)}"/><path class="bar-line" '
                f'd="M{_bar_x(found.value)} {y - 6}V{y + 6}"/><g fill-opacity=".45" '
                f'stroke="none">{ticks}</g></g>'
            )
        height = 34 + 26 * len(grouped)
        axis = "".join(
            f'<path class="grid" d="M{_bar_x(v)} 14V{height - 16}"/>'
            f'<text x="{_bar_x(v)}" y="{height}" text-anchor="middle">{v}</text>'
            for v in (0, 25, 50, 75, 100)
        )
        figures.append(
            f'<figure class="seeds"><figcaption>{html.escape(dataset)}: AUPRC over runs'
            f'</figcaption><svg viewBox="0 0 620 {height + 6}" role="img" aria-label="AUPRC of '
            f'every run">{axis}{"".join(parts)}</svg></figure>'
        )
    return "".join(figures)


def _bar_x(percent: float) -> str:
    return f"{10 + 6 * percent:.1f}"


def _x(value: float) -> str:
    return f"{_LEFT + _SIDE * value:.1f}"


def _log_x(rate: float) -> str:
    lowest = math.log10(_LOWEST_RATE)
    return _x(1 - math.log10(min(1.0, max(rate, _LOWEST_RATE))) / lowest)


def _y(value: float) -> str:
    return f"{_TOP + _SIDE * (1 - value):.1f}"


def _pr_path(curve: dict) -> str:
    """Steps: the precision at a recall holds back to the recall before it, as in the AP."""
    points = sorted(
        zip(curve["recall"], curve["precision"], strict=True), key=lambda p: (p[0], -p[1])
    )
    points = [p for p in points if p[0] > 0]
    if not points:
        return ""
    start = f"M{_x(0)} {_y(points[0][1])}"
    return start + "".join(f"V{_y(p)}H{_x(r)}" for r, p in points)


def _roc_path(curve: dict) -> str:
    points = [(0.0, 0.0), *zip(curve["fpr"], curve["recall"], strict=True), (1.0, 1.0)]
    points.sort()
    return "M" + "L".join(f"{_log_x(f)} {_y(t)}" for f, t in points)


def _plot(x_name: str, y_name: str, paths: list[str], roc: bool = False) -> str:
    lines, size = [], _LEFT + _SIDE + 12
    ticks = (0.0, 0.25, 0.5, 0.75, 1.0)
    for position, tick in enumerate(ticks):
        label = f"{_LOWEST_RATE ** (1 - tick):g}" if roc else f"{tick:g}"
        lines.append(
            f'<path class="grid" d="M{_x(0)} {_y(tick)}H{_x(1)}M{_x(tick)} {_y(0)}V{_y(1)}"/>'
        )
        lines.append(
            f'<text x="{_LEFT - 6}" y="{float(_y(tick)) + 4}" text-anchor="end">{tick:g}</text>'
        )
        anchor = "end" if position == len(ticks) - 1 else "middle"
        lines.append(
            f'<text x="{_x(tick)}" y="{_TOP + _SIDE + 16}" text-anchor="{anchor}">{label}</text>'
        )
    if roc:
        lines.append(f'<path class="mark" d="M{_x(0)} {_y(0.95)}H{_x(1)}"/>')
        lines.append(
            f'<text x="{_x(0.02)}" y="{float(_y(0.95)) + 14}" text-anchor="start">TPR 95 %</text>'
        )
    middle = _TOP + _SIDE / 2
    lines.append(
        f'<text x="{_x(0.5)}" y="{_TOP + _SIDE + 34}" text-anchor="middle">{x_name}</text>'
    )
    lines.append(
        f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{y_name}</text>'
    )
    return (
        f'<svg viewBox="0 0 {size} {_TOP + _SIDE + 40}" role="img" '
        f'aria-label="{y_name} over {x_name}">{"".join(lines)}{"".join(paths)}</svg>'
    )
