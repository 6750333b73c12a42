"""Lay out the figures of the stages as text for the terminal and as rows for the write-up."""

from anoseg_d2.report.results import best_score, closed_set_miou, mean_figure, read_results
from anoseg_d2.report.runs import FIGURE_NAMES, LOWER_IS_BETTER

__all__ = ["judge", "load_results", "summary_rows", "table_lines"]

SHORT_NAMES = {
    "road_anomaly": "RoadAnomaly",
    "road_anomaly21": "RoadAnomaly21",
    "road_obstacle21": "RoadObstac.21",
    "fishyscapes_lostandfound": "FS Lost&Found",
    "fishyscapes_static": "FS Static",
    "camvid_anomaly": "CamVid+COCO",
}
_CELL = 13


def load_results(stages) -> dict[str, dict]:
    """Read `{stage name: its results.json}` for the stages that have one."""
    return {step.name: read_results(step.makes) for step in stages if step.makes.exists()}


def summary_rows(all_results: dict[str, dict]) -> list[tuple]:
    """Lay out the summary, one row per stage.

    Returns:
        (stage, mIoU, best score, its mean AUPRC, its mean FPR95, and the same three of the best
        score that needs no learned class).
    """
    rows = []
    for stage, results in all_results.items():
        row = [stage, closed_set_miou(results)]
        for implicit in (False, True):
            score = best_score(results, implicit)
            row += [score, *(mean_figure(results, score, f) for f in ("auprc", "fpr95"))]
        rows.append(tuple(row))
    return rows


def table_lines(all_results: dict[str, dict]) -> list[str]:
    """Lay out every stage's figures, then one line per stage, in at most 100 columns."""
    lines = []
    for stage, results in all_results.items():
        lines += ["", f"{stage}: closed-set mIoU {_number(closed_set_miou(results)).strip()}"]
        lines += _stage_lines(results)
    lines += ["", "AUPRC / FPR95, mean over the benchmarks; the best score is an oracle, chosen on"]
    lines += ["the evaluation labels"]
    lines.append(f"{'stage':<15}{'mIoU':>6}   {'best score':<28}{'best without the learned class'}")
    for stage, miou, best, *figures in summary_rows(all_results):
        (auprc, fpr), (implicit, *rest) = figures[:2], figures[2:]
        left = f"{best or '-':<13} {_pair(auprc, fpr)}"
        lines.append(
            f"{stage[:15]:<15}{_number(miou)}   {left:<28}{implicit or '-':<13} {_pair(*rest)}"
        )
    return lines


def _stage_lines(results: dict) -> list[str]:
    names = list(results["datasets"])
    heads = [_short(name) for name in names]
    several = len(names) > 1
    lines = [f"{'AUPRC / FPR95':<14}" + "".join(f"{h:>{_CELL + 1}}" for h in heads)]
    lines[0] += f"{'mean':>{_CELL + 1}}" if several else ""
    wide = []
    for score in dict.fromkeys(s for name in names for s in results["datasets"][name]["scores"]):
        entries = [results["datasets"][name]["scores"].get(score, {}) for name in names]
        cells = [_pair(entry.get("auprc"), entry.get("fpr95")) for entry in entries]
        if several:
            cells.append(_pair(*(mean_figure(results, score, f) for f in ("auprc", "fpr95"))))
        lines.append(f"{score[:14]:<14}" + "".join(f" {cell:>{_CELL}}" for cell in cells))
        for name, entry in zip(names, entries, strict=True):
            wide += [f"{_short(name)}, {score}, {text}" for text in _wide_bounds(entry)]
    return lines + [f"  certified bounds of {text}" for text in wide]


def _wide_bounds(entry: dict) -> list[str]:
    """List the bounds that are too wide for a table with one decimal."""
    found = []
    for figure in ("auprc", "fpr95"):
        low, high = entry.get(f"{figure}_bounds") or (0, 0)
        if None not in (low, high) and high - low > 0.1:
            found.append(f"{FIGURE_NAMES[figure]}: {low:.2f} to {high:.2f}")
    return found


def _short(name: str) -> str:
    plain = name.removeprefix("miniature_")
    return SHORT_NAMES.get(plain, plain)[:_CELL]


def _number(value: float | None) -> str:
    return "     -" if value is None else f"{value:6.1f}"


def _pair(auprc: float | None, fpr95: float | None) -> str:
    return f"{_number(auprc).strip():>5} / {_number(fpr95).strip():>5}"


def judge(claim: dict, all_results: dict[str, dict], peaks: dict[str, float]) -> dict | None:
    """Compare two figures as a claim states.

    Args:
        claim: `text`; `figure`, one of auprc, fpr95, mIoU, memory; `better` and `than`, each
            [stage, score], where the score is a name, `best` or `implicit` (the best one that needs
            no learned class), and is omitted for mIoU and memory; `dataset`, whose figures count
            (default: the mean over all); `slack`, by how much `better` may
            fall short (default 0).
        all_results: see `load_results`.
        peaks: stage -> peak memory in MiB.
    Returns:
        `text`, `left`, `right` (labels with figures) and `holds`; None if a stage or figure is
        missing.
    """
    sides = [_side(claim, key, all_results, peaks) for key in ("better", "than")]
    if None in sides:
        return None
    (left, left_value), (right, right_value) = sides
    gain = left_value - right_value
    gain = -gain if claim["figure"] in (*LOWER_IS_BETTER, "memory") else gain
    slack = claim.get("slack", 0.0)
    holds = gain > 0 if slack == 0 else gain >= -slack
    return {"text": claim["text"], "left": left, "right": right, "holds": holds}


def _side(claim: dict, key: str, all_results, peaks) -> tuple[str, float] | None:
    figure = claim["figure"]
    stage, score = (*claim[key], None)[:2]
    if stage not in all_results:
        return None
    results = all_results[stage]
    if figure == "memory":
        value, label = peaks.get(stage), stage
    elif figure == "mIoU":
        value, label = closed_set_miou(results), stage
    elif "dataset" in claim:
        scores = results["datasets"].get(claim["dataset"], {}).get("scores", {})
        value, label = scores.get(score, {}).get(figure), f"{stage}, {score}"
    else:
        if score in ("best", "implicit"):
            score = best_score(results, implicit=score == "implicit")
        value = mean_figure(results, score, figure) if score else None
        label = f"{stage}, {score}"
    return None if not value else (f"{label}: {value:.1f}", value)
