"""Build the report page: tables, curves and images in one self-contained html file."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from anoseg_d2.report import figures, tables
from anoseg_d2.report.runs import Run


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
