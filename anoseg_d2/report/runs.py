"""Read evaluated runs from disk, with their figures as cells of tables."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from anoseg_d2.evaluation.run_folder import VERSION, dataset_folder, read_record, report_folder
from anoseg_d2.report.results import best_score, find_results, read_results, score_names
from anoseg_d2.utils.files import read_json

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
        value: None if there is no figure.
        bounds: certified bounds of the value, None if it is exact.
    """

    value: float | None = None
    bounds: tuple[float, float] | None = None

    @property
    def wide_bounds(self) -> tuple[float, float] | None:
        """The bounds if they are wide enough to be seen, else None."""
        wide = self.bounds is not None and self.bounds[1] - self.bounds[0] > _TIGHT
        return self.bounds if wide else None

    def text(self) -> str:
        """Format the figure with two digits, and its bounds; empty without a figure."""
        if self.value is None:
            return ""
        bounds = " [{:.2f}, {:.2f}]".format(*self.wide_bounds) if self.wide_bounds else ""
        return f"{self.value:.2f}{bounds}"


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
        return Cell(found.get(figure), tuple(bounds) if bounds and None not in bounds else None)

    def mean(self, datasets: list[str], score: str | None, figure: str) -> Cell:
        """Return the mean of a figure over datasets; without one of them, there is none.

        A mean over fewer datasets would not compare with the other rows of a table.
        """
        found = [self.figure(dataset, score, figure) for dataset in datasets]
        if not found or any(cell.value is None for cell in found):
            return Cell()
        # The mean of lower bounds bounds the mean, and an exact figure is its own bound.
        ends = [cell.bounds or (cell.value,) * 2 for cell in found]
        bounds = tuple(statistics.fmean(end[side] for end in ends) for side in (0, 1))
        return Cell(statistics.fmean(cell.value for cell in found), bounds)


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
            f"{path}: no results.json there or in its report/ folder: anoseg eval, anoseg maps"
        )
    results = read_results(found)
    curves_path = found.with_name("curves.json")
    curves = read_json(curves_path) if curves_path.is_file() else {}  # copies may lack it
    # A page over several runs, which can be compared again.
    if results.get("models"):
        return [
            _from_results(f"{name}: {inner}" if name else inner, entry, curves.get(inner, {}))
            for inner, entry in results["models"].items()
        ]
    folder = found.parent.parent
    whole = found == report_folder(folder) / "results.json"  # of a run's folder, not a copy
    name = name or (folder.resolve().name if whole else found.resolve().stem)
    run = _from_results(name, results, next(iter(curves.values()), {}))  # of its only run
    places = [dataset_folder(folder, dataset) / "result.json" for dataset in run.records]
    if whole and all(place.is_file() for place in places):  # they may have been deleted since
        return [load_run(folder, list(run.records), name=name, model=run.model, config=run.config)]
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
