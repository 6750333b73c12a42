"""Precision-recall and ROC curves as inline SVG."""

import html

from anoseg_d2.report.runs import Run

__all__ = ["curve_figures"]

# Told apart by people with any colour vision, on white and on near-black.
_COLORS = (
    "#0b84d8", "#e8710a", "#12a37f", "#d6409f", "#8e6ee8",
    "#b58900", "#d13438", "#5a9e1b", "#6b7785", "#00a5b5",
)  # fmt: skip
_LEFT, _TOP, _SIDE = 46, 12, 300


def curve_figures(runs: list[Run]) -> str:
    """One figure with two plots for every anomaly set, all runs overlaid.

    Every path carries `data-run`, `data-score` and `data-best` (the run's best score on that set),
    for the page to show the chosen ones.
    """
    datasets = list(dict.fromkeys(name for run in runs for name in run.of_kind("anomaly")))
    return "".join(_figure(runs, dataset) for dataset in datasets)


def _figure(runs: list[Run], dataset: str) -> str:
    curves, legend = {"pr": [], "roc": []}, []
    for index, run in enumerate(runs):
        record = run.records.get(dataset)
        known = {s: c for s, c in (record or {}).get("curves", {}).items() if c}
        figures = {s: record["result"]["scores"][s] for s in known}
        best = max(known, key=lambda s: figures[s].get("auprc") or -1.0, default=None)
        for score, curve in known.items():
            order = index if len(runs) > 1 else list(known).index(score)
            color = _COLORS[order % len(_COLORS)]
            marks = (
                f'data-run="{html.escape(run.name)}" data-score="{html.escape(score)}" '
                f'data-best="{int(score == best)}" class="curve"'
            )
            path = f'<path {marks} style="stroke:{color}" d="{{}}"/>'
            curves["pr"].append(path.format(_pr_path(curve)))
            curves["roc"].append(path.format(_roc_path(curve)))
            label = html.escape(f"{run.name} · {score}" if len(runs) > 1 else score)
            value = figures[score].get("auprc")
            text = "" if value is None else f" <b>{value:.1f}</b>"
            legend.append(f'<li {marks}><i style="background:{color}"></i>{label}{text}</li>')
    if not legend:
        return f"<figure><figcaption>{html.escape(dataset)}</figcaption><p>No curve.</p></figure>"
    plots = _plot("recall", "precision", curves["pr"])
    plots += _plot("false positive rate", "true positive rate", curves["roc"], tpr95=True)
    return (
        f"<figure><figcaption>{html.escape(dataset)}</figcaption>"
        f'<div class="plots">{plots}</div><ul class="legend">{"".join(legend)}</ul></figure>'
    )


def _x(value: float) -> str:
    return f"{_LEFT + _SIDE * value:.1f}"


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
    return "M" + "L".join(f"{_x(f)} {_y(t)}" for f, t in points)


def _plot(x_name: str, y_name: str, paths: list[str], tpr95: bool = False) -> str:
    lines, size = [], _LEFT + _SIDE + 12
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        lines.append(
            f'<path class="grid" d="M{_x(0)} {_y(tick)}H{_x(1)}M{_x(tick)} {_y(0)}V{_y(1)}"/>'
        )
        lines.append(
            f'<text x="{_LEFT - 6}" y="{float(_y(tick)) + 4}" text-anchor="end">{tick:g}</text>'
        )
        lines.append(
            f'<text x="{_x(tick)}" y="{_TOP + _SIDE + 16}" text-anchor="middle">{tick:g}</text>'
        )
    if tpr95:
        lines.append(f'<path class="mark" d="M{_x(0)} {_y(0.95)}H{_x(1)}"/>')
        lines.append(
            f'<text x="{_x(0.98)}" y="{float(_y(0.95)) + 14}" text-anchor="end">TPR 95 %</text>'
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
