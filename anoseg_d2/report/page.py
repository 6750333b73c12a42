"""The report page: tables, curves and images in one html file that needs nothing else."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from anoseg_d2.report import tables
from anoseg_d2.report.curves import curve_figures, seed_figures
from anoseg_d2.report.images import (
    collect_failures,
    collect_images,
    color_ranges,
    seen_classes,
)
from anoseg_d2.report.runs import Cell, Run, leading_scores, methods, unique_names
from anoseg_d2.utils.constants import ANOMALY_COLORS
from anoseg_d2.utils.visualization import color_bar

__all__ = ["build_page"]


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
    # Names come from strangers: whatever the template shows is escaped unless it says `safe`.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment.get_template("template.html").render(
        title=title,
        models=dict(zip(unique_names(runs), [run.model for run in runs], strict=True)),
        main=tables.main_table(runs),
        leading=leading_scores(runs),
        warnings=_warnings(runs),
        seeds=seed_figures(runs),
        curves=curve_figures(runs),
        closed_sets=[_closed_set(runs, name) for name in _names(runs, "closed_set")],
        sets=[_anomaly_set(runs, name) for name in _names(runs, "anomaly")],
        several=len(shown) > 1,
        notes=notes,
        data=_image_data(shown, images, ranges),
        figure_name=tables.figure_name,
        lower_is_better=tables.lower_is_better,
    )


def _image_data(runs: list[Run], images: dict, ranges: dict) -> dict:
    """What the script of the page chooses from."""
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
        "classes": {run.name: seen_classes(run) for run in runs},
        "colors": {str(k): f"rgb{v}" for k, v in ANOMALY_COLORS.items()},
    }


def _warnings(runs: list[Run]) -> dict[tuple[str, str], list[str]]:
    """What a reader of the figures must know: {(dataset, warning): names of the runs}."""
    entries: dict[tuple[str, str], list[str]] = {}
    for name, run in zip(unique_names(runs), runs, strict=True):
        for dataset, record in run.of_kind("anomaly").items():
            for text in record["result"].get("warnings") or ():
                entries.setdefault((dataset, text), []).append(name)
    return entries


def _names(runs: list[Run], kind: str) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.of_kind(kind)))


def _first_result(runs: list[Run], dataset: str) -> dict:
    return next(run.records[dataset]["result"] for run in runs if dataset in run.records)


def _anomaly_set(runs: list[Run], dataset: str) -> dict:
    """The details of one anomaly set: `name`, `counts`, `table` and reasons for missing figures."""
    table, result = tables.detail_table(runs, dataset), _first_result(runs, dataset)
    kinds = {f"{kind}_pixels": f"{kind} pixels" for kind in ("anomaly", "known", "void")}
    kinds = {"images": "images", **kinds}
    counts = [f"{result[k]:,.0f} {n}" for k, n in kinds.items() if result.get(k) is not None]
    whys = sorted({row.why for row in table.rows if row.why})
    return {"name": dataset, "counts": ", ".join(counts), "table": table, "whys": whys}


def _closed_set(runs: list[Run], dataset: str) -> dict:
    """The figures of one closed set: `name`, `notes`, `table` and the change of the mIoU."""
    table, result = tables.closed_set_table(runs, dataset), _first_result(runs, dataset)
    notes = [f"{result['images']:,.0f} images"] if result.get("images") is not None else []
    if result.get("classes") is not None:
        notes.append(f"mean over the {result['classes']:.0f} classes that occur")
    changes: list[Cell] = []
    if len(table.rows) > 1:
        values = [row.cells["", "mIoU"].value for row in table.rows]
        changes = [_change(value, values[0]) for value in values]
        notes.append(f"change of the mIoU against {table.rows[0].label}")
    return {"name": dataset, "notes": "; ".join(notes), "table": table, "changes": changes}


def _change(value: float | None, reference: float | None) -> Cell:
    if value is None or reference is None:
        return Cell()
    return Cell(round(value - reference, 2) + 0.0)  # never -0.00
