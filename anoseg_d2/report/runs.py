"""Evaluated runs read from disk, and their figures as results.json, csv and Markdown."""

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path

from anoseg_d2.evaluation.run_folder import dataset_folder
from anoseg_d2.utils.files import read_json

__all__ = [
    "FIGURE_NAMES",
    "LOWER_IS_BETTER",
    "Run",
    "best_values",
    "load_run",
    "overview",
    "results_csv",
    "results_markdown",
]

FIGURE_NAMES = {"auprc": "AUPRC", "fpr95": "FPR95", "auroc": "AUROC", "best_f1": "best F1"}
LOWER_IS_BETTER = ("fpr95", "ECE")
_CSV_FIGURES = ("auprc", "fpr95", "auroc", "best_f1", "sIoU", "PPV", "mean_F1")


@dataclass
class Run:
    """One evaluated model.

    Args:
        name: shown in tables.
        folder: its `output_dir`.
        records: {dataset: what the evaluator left in result.json}.
        model, config: for results.json, as the caller gave them.
    """

    name: str
    folder: Path
    records: dict[str, dict]
    model: dict = field(default_factory=dict)
    config: object = None

    def of_kind(self, kind: str) -> dict[str, dict]:
        """Records of `kind` "anomaly" or "closed_set"."""
        return {name: r for name, r in self.records.items() if r["kind"] == kind}

    def results(self) -> dict:
        """The contents of results.json: percentages, None with `why` where there is no figure."""
        return {
            "datasets": {name: r["result"] for name, r in self.of_kind("anomaly").items()},
            "closed_set": {name: r["result"] for name, r in self.of_kind("closed_set").items()},
            "model": self.model,
            "config": self.config,
        }

    def curves(self) -> dict:
        """Precision, recall and false positive rate of {dataset: {score: curve or None}}."""
        return {name: r["curves"] for name, r in self.of_kind("anomaly").items()}

    def mean(self, score: str, figure: str) -> float | None:
        """Mean of a score's figure over the run's anomaly sets, None when one has no figure."""
        values = [
            r["result"]["scores"].get(score, {}).get(figure)
            for r in self.of_kind("anomaly").values()
        ]
        return None if not values or None in values else sum(values) / len(values)

    def score_names(self) -> list[str]:
        """All scores of the run, in order of appearance."""
        records = self.of_kind("anomaly").values()
        return list(dict.fromkeys(name for r in records for name in r["result"]["scores"]))

    def best_score(self) -> str | None:
        """The score with the highest mean AUPRC over the sets where it has one."""

        def pooled(score):
            entries = [r["result"]["scores"].get(score, {}) for r in anomaly]
            values = [entry["auprc"] for entry in entries if entry.get("auprc") is not None]
            return sum(values) / len(values) if values else -1.0

        anomaly = list(self.of_kind("anomaly").values())
        return max(self.score_names(), key=pooled, default=None)


def load_run(output_dir, datasets=None, *, name=None, model=None, config=None) -> Run:
    """Read what evaluators left in a run's folder.

    Args:
        output_dir: the folder that was given to the evaluators.
        datasets: names to read, in order; None reads all that lie there, sorted.
        name: shown in tables; None takes the folder's name.
        model, config: for results.json.
    Raises:
        FileNotFoundError: no evaluation lies in the folder, or a named dataset has none.
    """
    output_dir = Path(output_dir)
    found = sorted(p.parent.name for p in output_dir.glob("inference/*/result.json"))
    missing = [dataset for dataset in datasets or () if dataset not in found]
    if missing or not found:
        raise FileNotFoundError(
            f"no evaluation of {', '.join(missing) or 'any dataset'} under "
            f"{output_dir / 'inference'}; found: {', '.join(found) or 'nothing'}. Evaluate first: "
            "train_net.py --eval-only"
        )
    records = {
        dataset: read_json(dataset_folder(output_dir, dataset) / "result.json")
        for dataset in dict.fromkeys(datasets or found)
    }
    return Run(name or output_dir.resolve().name, output_dir, records, model or {}, config)


def _union(lists) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))


def overview(runs: list[Run]) -> tuple[list[tuple[str, str]], list[dict]]:
    """Lay out the main table: one row per run and score.

    Returns:
        columns, (group, figure) pairs, where group is a dataset or "mean over sets";
        rows, dicts with `model`, `score` and {(group, figure): percentage or None}.
    """
    closed = _union(run.of_kind("closed_set") for run in runs)
    anomaly = _union(run.of_kind("anomaly") for run in runs)
    columns = [(name, "mIoU") for name in closed]
    if len(anomaly) > 1:
        columns += [("mean over sets", figure) for figure in ("auprc", "fpr95")]
    columns += [(name, figure) for name in anomaly for figure in ("auprc", "fpr95")]
    rows = []
    for run in runs:
        for score in run.score_names() or [None]:
            row = {"model": run.name, "score": score}
            row.update({column: _cell(run, score, anomaly, *column) for column in columns})
            rows.append(row)
    return columns, rows


def _cell(run: Run, score, anomaly: list[str], group: str, figure: str) -> float | None:
    if group == "mean over sets":
        # A mean over fewer sets than the other rows have would not compare with them.
        complete = set(anomaly) <= set(run.of_kind("anomaly"))
        return run.mean(score, figure) if complete else None
    result = run.records.get(group, {}).get("result", {})
    if figure == "mIoU":
        return result.get("mIoU")
    return result.get("scores", {}).get(score, {}).get(figure)


def best_values(columns, rows) -> dict:
    """The best value of every column, None where it is empty or all rows have the same."""
    best = {}
    for column in columns:
        values = [row[column] for row in rows if row[column] is not None]
        choose = min if column[1] in LOWER_IS_BETTER else max
        best[column] = choose(values) if len(set(values)) > 1 else None
    return best


def results_markdown(runs: list[Run]) -> str:
    """The main table in Markdown, the best of each column bold, empty where there is no figure."""
    columns, rows = overview(runs)
    best = best_values(columns, rows)
    heads = ["model", "score", *(f"{group} {FIGURE_NAMES.get(f, f)}" for group, f in columns)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * 2 + "---:|" * len(columns)]
    for row in rows:
        cells = [row["model"], row["score"] or ""]
        for column in columns:
            text = "" if row[column] is None else f"{row[column]:.2f}"
            marked = len(rows) > 1 and text and row[column] == best[column]
            cells.append(f"**{text}**" if marked else text)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def results_csv(runs: list[Run]) -> str:
    """All figures in long form: one line per model, dataset and score (none on closed sets)."""
    closed = ("mIoU", "pixel_accuracy", "mean_accuracy", "ECE")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "dataset", "score", *_CSV_FIGURES, *closed])
    for run in runs:
        for name, record in run.records.items():
            result = record["result"]
            if record["kind"] == "closed_set":
                figures = [""] * len(_CSV_FIGURES) + [_plain(result.get(f)) for f in closed]
                writer.writerow([run.name, name, "", *figures])
                continue
            for score, entry in result["scores"].items():
                figures = [_plain(entry.get(figure)) for figure in _CSV_FIGURES]
                writer.writerow([run.name, name, score, *figures, *[""] * len(closed)])
    return text.getvalue()


def _plain(value) -> str:
    return "" if value is None else repr(float(value))
