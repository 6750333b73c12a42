"""Write the report of one or more evaluated models as html, json, csv, Markdown and LaTeX."""

import logging
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from anoseg_d2.evaluation.run_folder import report_folder
from anoseg_d2.report import figures, tables
from anoseg_d2.report.runs import Run, load_run, load_runs
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
        "results.csv": tables.results_csv(runs),
        "results.md": tables.results_markdown(runs),
        "results.tex": tables.results_latex(runs),
        "index.html": page,
    }
    for name, text in texts.items():
        # Names of folders may hold bytes that are not UTF-8; they are shown as escapes.
        write_atomic(folder / name, text.encode(errors="backslashreplace"))
    logger.info("report: %s (%.1f MB)", folder / "index.html", len(page) / 1e6)
    return folder / "index.html"


def build_page(runs: list[Run], title: str) -> str:
    """Build the page.

    Args:
        runs: evaluated models, each with a name of its own, in the order of the tables.
        title: of the page.
    Returns:
        html text without any reference outside of itself but the tables next to it.
    """
    anomaly, closed = (_sets(runs, kind) for kind in ("anomaly", "closed_set"))
    pairs = [(dataset, run) for dataset in (*anomaly, *closed) for run in runs]
    sheets = [(name, run.name, figures.image_sheet(run, name)) for name, run in pairs]
    matrices = [
        (name, run.name, figures.confusion_matrix(run.records.get(name, {}))) for name, run in pairs
    ]
    trainings = [("Training", run.name, figures.training_curves(run)) for run in runs]
    # Names come from strangers: whatever the template shows is escaped.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt name would print as nothing
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html").render(
        title=title,
        models={run.name: run.model for run in runs},
        main=tables.main_table(runs),
        leading={run.name: run.best_score() for run in runs},
        warnings=_warnings(runs),
        curves={dataset: figures.roc_and_pr(runs, dataset) for dataset in anomaly},
        closed_sets=[
            (name, result, tables.closed_set_table(runs, name)) for name, result in closed.items()
        ],
        sets=[(name, result, tables.detail_table(runs, name)) for name, result in anomaly.items()],
        sheets=[sheet for sheet in sheets if sheet[2]],
        matrices=[matrix for matrix in matrices if matrix[2]],
        trainings=[training for training in trainings if training[2]],
        figure_name=tables.figure_name,
        lower_is_better=tables.lower_is_better,
    )


def _sets(runs: list[Run], kind: str) -> dict[str, dict]:
    """Return name and figures, of the first run that has them, of every set of a kind."""
    results: dict[str, dict] = {}
    for run in runs:
        for name, record in run.of_kind(kind).items():
            results.setdefault(name, record["result"])
    return results


def _warnings(runs: list[Run]) -> dict[tuple[str, str], list[str]]:
    """Return the warnings about figures, {(dataset, warning): names of the runs}."""
    entries: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        for dataset, record in run.of_kind("anomaly").items():
            for text in record["result"].get("warnings") or ():
                entries.setdefault((dataset, text), []).append(run.name)
    return entries
