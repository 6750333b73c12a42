"""Build the report page: tables, curves and images in one self-contained html file."""

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
from anoseg_d2.report.runs import Run, leading_scores, methods, unique_names
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
        undefined=StrictUndefined,  # a misspelt name would print as nothing
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
        closed_sets=_tables(runs, "closed_set", tables.closed_set_table),
        sets=_tables(runs, "anomaly", tables.detail_table),
        several=len(shown) > 1,
        notes=notes,
        data=_image_data(shown, images, ranges),
        figure_name=tables.figure_name,
        lower_is_better=tables.lower_is_better,
    )


def _image_data(runs: list[Run], images: dict, ranges: dict) -> dict:
    """Return the data of the page's script."""
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
    """Return the warnings about figures, {(dataset, warning): names of the runs}."""
    entries: dict[tuple[str, str], list[str]] = {}
    for name, run in zip(unique_names(runs), runs, strict=True):
        for dataset, record in run.of_kind("anomaly").items():
            for text in record["result"].get("warnings") or ():
                entries.setdefault((dataset, text), []).append(name)
    return entries


def _tables(runs: list[Run], kind: str, lay_out) -> list[tuple[str, dict, tables.Table]]:
    """Return name, figures of the first run and table of every set of a kind."""
    names = dict.fromkeys(name for run in runs for name in run.of_kind(kind))
    first = {name: run.records[name]["result"] for run in reversed(runs) for name in run.records}
    return [(name, first[name], lay_out(runs, name)) for name in names]
