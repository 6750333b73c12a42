"""Write the report of one or more evaluated models as html, json, csv, Markdown and LaTeX."""

import logging
from pathlib import Path

from anoseg_d2.evaluation.run_folder import report_folder
from anoseg_d2.report.page import build_page
from anoseg_d2.report.runs import Run, load_run, load_runs
from anoseg_d2.report.tables import results_csv, results_latex, results_markdown
from anoseg_d2.utils.files import write_atomic, write_json

logger = logging.getLogger(__name__)


def write_report(
    output_dir, datasets=None, *, model=None, config=None, name=None, title=None
) -> Path:
    """Write the report of one run to `<output_dir>/report/`.

    Call it on the main process after the evaluators, which were given the same `output_dir`.

    Args:
        output_dir: the run's folder.
        datasets: evaluated datasets to show, in order; None shows all in the folder.
        model: plain facts for results.json and the page's head ({"weights": ..., "stage": ...}).
        config: plain value for results.json, such as `cfg.dump()`.
        name: of the model in tables; None takes the folder's name.
        title: of the page.
    Returns:
        path of index.html; results.json, .csv, .md, .tex and curves.json are next to it.
    Raises:
        FileNotFoundError: a dataset was not evaluated in this folder.
    """
    run = load_run(output_dir, datasets, name=name, model=model, config=config)
    return write_files([run], report_folder(output_dir), title or run.name, run.results())


def combine_reports(output_dirs, names, report_dir, *, title=None) -> Path:
    """Write one report over several runs, for example the stages of a training.

    Args:
        output_dirs: the runs' folders, evaluated and reported before.
        names: of the runs in tables, as many, unique.
        report_dir: where the files go.
        title: of the page.
    Returns:
        path of index.html; see `write_files`.
    Raises:
        ValueError: names do not fit; FileNotFoundError: a folder has no evaluation.
    """
    output_dirs, names = list(output_dirs), list(names)
    if len(output_dirs) != len(names) or len(set(names)) != len(names) or not names:
        raise ValueError(f"{len(output_dirs)} folders need as many unique names, got {names}")
    pairs = zip(output_dirs, names, strict=True)
    runs = [run for folder, name in pairs for run in load_runs(folder, name)]
    return write_files(runs, Path(report_dir), title or ", ".join(names))


def write_files(runs: list[Run], folder: Path, title: str, results: dict | None = None) -> Path:
    """Write every file of a report; returns the path of its index.html.

    Args:
        runs: evaluated models, each with a name of its own.
        folder: where the files go.
        title: of the page.
        results: contents of results.json; None gives the figures of the last run in the usual
            place, and those of every run under `models`.
    """
    if results is None:
        models = {run.name: run.results() for run in runs}
        results = {**runs[-1].results(), "models": models}  # the last is the final stage
    write_json(folder / "results.json", results)
    write_json(folder / "curves.json", {run.name: run.curves() for run in runs})
    page = build_page(runs, title)
    texts = {
        "results.csv": results_csv(runs),
        "results.md": results_markdown(runs),
        "results.tex": results_latex(runs),
        "index.html": page,
    }
    for name, text in texts.items():
        # Names of folders may hold bytes that are not UTF-8; they are shown as escapes.
        write_atomic(folder / name, text.encode(errors="backslashreplace"))
    logger.info("report: %s (%.1f MB)", folder / "index.html", len(page) / 1e6)
    return folder / "index.html"
