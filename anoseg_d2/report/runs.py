"""Read evaluated runs from disk, and average their figures for tables.

Runs that share a name are repetitions of one method, such as its seeds: tables show their mean
and spread.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from anoseg_d2.evaluation.run_folder import VERSION, dataset_folder, read_record, report_folder
from anoseg_d2.report.results import (
    best_score,
    find_results,
    read_results,
    score_names,
)
from anoseg_d2.utils.files import read_json

__all__ = [
    "CLOSED_FIGURES",
    "DETAIL_FIGURES",
    "FIGURE_NAMES",
    "LOWER_IS_BETTER",
    "Cell",
    "Run",
    "cell",
    "leading_scores",
    "load_run",
    "load_runs",
    "loss_kinds",
    "methods",
    "union",
    "unique_names",
]

FIGURE_NAMES = {
    "auprc": "AUPRC",
    "fpr95": "FPR95",
    "auroc": "AUROC",
    "best_f1": "best F1",
    "mean_F1": "mean F1",
    "F1_25": "F1 at 25",
    "F1_50": "F1 at 50",
    "F1_75": "F1 at 75",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
}
DETAIL_FIGURES = (
    *("auprc", "fpr95", "auroc", "best_f1", "sIoU", "PPV", "mean_F1"),
    *("F1_25", "F1_50", "F1_75"),
)
CLOSED_FIGURES = ("mIoU", "pixel_accuracy", "mean_accuracy", "ECE")
LOWER_IS_BETTER = ("fpr95", "ECE")
# Certified bounds this close (in percent) would print as the figure itself.
_TIGHT = 0.01


@dataclass(frozen=True)
class Cell:
    """One figure of a table, in percent.

    Args:
        value: the mean over a method's runs; None if one of them has no figure.
        spread: sample standard deviation over the runs, None for a single run.
        bounds: certified bounds of the value, None if it is exact.
    """

    value: float | None = None
    spread: float | None = None
    bounds: tuple[float, float] | None = None

    @property
    def wide_bounds(self) -> tuple[float, float] | None:
        """The bounds if they are wide enough to be seen, else None."""
        wide = self.bounds is not None and self.bounds[1] - self.bounds[0] > _TIGHT
        return self.bounds if wide else None

    def text(self, plus_minus: str = "±") -> str:
        """Format the figure with two digits, its spread and its bounds; empty without a figure."""
        if self.value is None:
            return ""
        parts = [f"{self.value:.2f}"]
        if self.spread is not None:
            parts.append(f"{plus_minus} {self.spread:.2f}")
        if self.wide_bounds:
            parts.append("[{:.2f}, {:.2f}]".format(*self.wide_bounds))
        return " ".join(parts)


@dataclass
class Run:
    """One evaluated model.

    Args:
        name: shown in tables.
        folder: its `output_dir`, None if only its results.json is known.
        records: {dataset: what the evaluator left in result.json}.
        model, config: for results.json, as the caller gave them.
    """

    name: str
    folder: Path | None
    records: dict[str, dict]
    model: dict = field(default_factory=dict)
    config: object = None

    def of_kind(self, kind: str) -> dict[str, dict]:
        """Records of `kind` "anomaly" or "closed_set"."""
        return {name: r for name, r in self.records.items() if r["kind"] == kind}

    def results(self) -> dict:
        """The contents of results.json: percentages, None with `why` where there is no figure."""
        return {
            "version": VERSION,
            "datasets": {name: r["result"] for name, r in self.of_kind("anomaly").items()},
            "closed_set": {name: r["result"] for name, r in self.of_kind("closed_set").items()},
            "model": self.model,
            "config": self.config,
        }

    def curves(self) -> dict:
        """Precision, recall and false positive rate of {dataset: {score: curve or None}}."""
        return {name: r["curves"] for name, r in self.of_kind("anomaly").items()}

    def score_names(self) -> list[str]:
        """All scores of the run, in order of appearance."""
        return score_names(self.results())

    def best_score(self) -> str | None:
        """See `results.best_score`."""
        return best_score(self.results())

    def figure(self, dataset: str, score: str | None, figure: str) -> Cell:
        """Return one figure with its bounds; `F1_25` is the components' F1 at an sIoU of 25 %."""
        found = self.records.get(dataset, {}).get("result", {})
        if figure not in CLOSED_FIGURES:
            found = found.get("scores", {}).get(score, {})
        if figure.startswith("F1_"):
            stated = (found.get("components_at") or {}).get(figure.removeprefix("F1_"), {})
            return Cell(stated.get("F1"))  # component figures have no bounds
        bounds = found.get(f"{figure}_bounds")
        return Cell(
            found.get(figure), None, tuple(bounds) if bounds and None not in bounds else None
        )


def loss_kinds(values: Mapping[str, float]) -> dict[str, float]:
    """Sum each kind of loss over the network's predictions: `loss_mask`, `loss_mask_0`, ..."""
    kinds: dict[str, float] = {}
    for name, value in values.items():
        if name.startswith("loss_"):
            kind = name.removeprefix("loss_").rstrip("0123456789").rstrip("_")
            kinds[kind] = kinds.get(kind, 0.0) + value
    return kinds


def load_run(output_dir, datasets=None, *, name=None, model=None, config=None) -> Run:
    """Read what evaluators left in a run's folder.

    Args:
        output_dir: the folder that was given to the evaluators.
        datasets: names to read, in order; None reads all that are there, sorted.
        name: shown in tables; None takes the folder's name.
        model, config: for results.json.
    Raises:
        FileNotFoundError: the folder has no evaluation, or none of a named dataset.
    """
    output_dir = Path(output_dir)
    found = sorted(p.parent.name for p in output_dir.glob("inference/*/result.json"))
    missing = [dataset for dataset in datasets or () if dataset not in found]
    if missing or not found:
        raise FileNotFoundError(
            f"no evaluation of {', '.join(missing) or 'any dataset'} under "
            f"{output_dir / 'inference'}; found: {', '.join(found) or 'nothing'}. Evaluate first: "
            "anoseg eval"
        )
    records = {}
    for dataset in dict.fromkeys(datasets or found):
        records[dataset] = read_record(dataset_folder(output_dir, dataset) / "result.json")
    return Run(name or output_dir.resolve().name, output_dir, records, model or {}, config)


def load_runs(path, name: str | None = None) -> list[Run]:
    """Read finished runs, with their images where a run's folder has them.

    Args:
        path: a run's folder, its report folder, or any results.json; one of several models gives
            several runs.
        name: shown in tables; None takes the folder's name, or the models' own.
    Raises:
        FileNotFoundError: there are no results. ValueError: they are broken.
    """
    found = find_results(path)
    if found is None:
        raise FileNotFoundError(
            f"{path}: no results.json there or in its report/ folder; evaluate first "
            "(anoseg eval, anoseg maps)"
        )
    results = read_results(found)
    curves_path = found.with_name("curves.json")
    curves = read_json(curves_path) if curves_path.is_file() else {}  # copies may lack it
    if results.get("models"):
        return [
            _from_results(f"{name}: {inner}" if name else inner, entry, curves.get(inner, {}))
            for inner, entry in results["models"].items()
        ]
    folder = found.parent.parent
    whole = found == report_folder(folder) / "results.json"  # of a run's folder, not a copy
    name = name or (folder.resolve().name if whole else found.resolve().stem)
    run = _from_results(name, results, next(iter(curves.values()), {}))  # of its only run
    if whole and all(  # records may have been deleted since
        (dataset_folder(folder, dataset) / "result.json").is_file() for dataset in run.records
    ):
        facts = {key: results.get(key) for key in ("model", "config")}
        run = load_run(folder, list(run.records), name=name, **facts)
    return [run]


def _from_results(name: str, results: dict, curves: dict) -> Run:
    """Return a run of which only figures and curves are known."""
    records = {
        dataset: {
            "kind": "anomaly",
            "result": {"scores": {}, **entry},
            "curves": curves.get(dataset) or {},
        }
        for dataset, entry in results["datasets"].items()
    }
    for dataset, entry in results.get("closed_set", {}).items():
        records[dataset] = {"kind": "closed_set", "result": entry}
    return Run(name, None, records, results.get("model") or {}, results.get("config"))


def methods(runs: list[Run]) -> dict[str, list[Run]]:
    """Group runs by name, in order of appearance."""
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(run.name, []).append(run)
    return grouped


def unique_names(runs: list[Run]) -> list[str]:
    """Return a name for each run: its own, or `name #2` if several runs share it."""
    grouped, seen = methods(runs), dict.fromkeys((run.name for run in runs), 0)
    names = []
    for run in runs:
        seen[run.name] += 1
        several = len(grouped[run.name]) > 1
        names.append(f"{run.name} #{seen[run.name]}" if several else run.name)
    return names


def union(lists) -> list[str]:
    """Return the names of all lists, each once, in order of appearance."""
    return list(dict.fromkeys(name for names in lists for name in names))


def cell(repeats: list[Run], datasets: list[str], score: str | None, figure: str) -> Cell:
    """Return the mean of a figure over the runs of a method and over datasets.

    A mean over fewer runs or datasets than are asked for would not compare with the other rows of
    a table, so one missing figure makes it None.
    """
    grid = [[run.figure(dataset, score, figure) for dataset in datasets] for run in repeats]
    if not datasets or any(found.value is None for row in grid for found in row):
        return Cell()
    values = [statistics.fmean(found.value for found in row) for row in grid]
    # The mean of lower bounds bounds the mean, and an exact figure is its own bound.
    ends = [found.bounds or (found.value,) * 2 for row in grid for found in row]
    bounds = tuple(statistics.fmean(end[side] for end in ends) for side in (0, 1))
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Cell(statistics.fmean(values), spread, bounds)


def leading_scores(runs: list[Run]) -> dict[str, str | None]:
    """Each method's best score (see `results.best_score`) by the means over its runs."""
    best = {}
    for name, repeats in methods(runs).items():
        scores = union(run.score_names() for run in repeats)
        datasets = union(run.of_kind("anomaly") for run in repeats)
        means = {
            dataset: {
                "scores": {s: {"auprc": cell(repeats, [dataset], s, "auprc").value} for s in scores}
            }
            for dataset in datasets
        }
        best[name] = best_score({"datasets": means})
    return best
