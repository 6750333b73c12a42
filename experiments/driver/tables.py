"""Keep the figures of the studies in a csv that grows run by run, and make a page from it."""

import contextlib
import csv
import fcntl
import io
import os
from collections import defaultdict
from pathlib import Path

from anoseg_d2.report.results import closed_set_miou
from anoseg_d2.utils.files import write_atomic
from driver.recipe import Recipe, Step, Study

__all__ = ["Figures", "write_studies"]

COLUMNS = (
    *("run", "seed", "settings", "dataset", "score", "auprc", "fpr95", "auroc", "mIoU"),
    *("trainable_parameters", "parameters", "peak_memory", "step_seconds"),
)
_NUMBERS = COLUMNS[5:]


class Figures:
    """`results.csv`: one line per run, seed, dataset and score.

    Args:
        path: of the csv; read if it exists.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict] = []
        self.read()

    def read(self) -> None:
        """Read the file again, as other processes add to it."""
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                self.rows = [_parsed(row) for row in csv.DictReader(file)]

    def has(self, step: Step) -> bool:
        """Return whether the run has been measured with these settings."""
        key = (step.run, step.seed, step.digest)
        return any((row["run"], row["seed"], row["settings"]) == key for row in self.rows)

    def add(self, step: Step, results: dict) -> None:
        """Add a run's results.json, replacing what the csv had for the run."""
        with self._alone():
            self._drop(step)
            self._add(step, results)
            self._write()

    def forget(self, step: Step) -> None:
        """Delete the figures of a run."""
        with self._alone():
            self._drop(step)
            self._write()

    @contextlib.contextmanager
    def _alone(self):
        """Keep other processes from writing between reading and writing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _drop(self, step: Step) -> None:
        self.read()
        key = (step.run, step.seed)
        self.rows = [row for row in self.rows if (row["run"], row["seed"]) != key]

    def _add(self, step: Step, results: dict) -> None:
        shared = {"run": step.run, "seed": step.seed, "settings": step.digest}
        shared["mIoU"] = closed_set_miou(results)
        for name in COLUMNS[-4:]:
            shared[name] = results["model"].get(name)
        for dataset, entry in results["datasets"].items():
            for score, figures in entry["scores"].items():
                found = {name: figures[name] for name in ("auprc", "fpr95", "auroc")}
                self.rows.append({**shared, "dataset": dataset, "score": score, **found})

    def _write(self) -> None:
        self.rows.sort(key=lambda row: (row["run"], row["seed"], row["dataset"]))
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _text(row.get(name)) for name in COLUMNS} for row in self.rows)
        write_atomic(self.path, text.getvalue().encode())

    def of(self, run: str, dataset: str, score: str) -> dict[int, dict]:
        """Seed -> figures of a run."""
        wanted = (run, dataset, score)
        return {
            row["seed"]: row
            for row in self.rows
            if (row["run"], row["dataset"], row["score"]) == wanted
        }


def _parsed(row: dict) -> dict:
    numbers = {name: float(row[name]) if row[name] else None for name in _NUMBERS}
    return {**row, "seed": int(row["seed"]), **numbers}


def _text(value):
    return "" if value is None else f"{value:.10g}" if isinstance(value, float) else value


def write_studies(recipe: Recipe, figures: Figures) -> Path:
    """Write `README.md` next to the csv: every study's question, table and finding."""
    path = recipe.path
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    lines = [
        f"# {recipe.title}",
        "",
        f"Command: `python experiments/run.py {path}`,",
        f"after `python experiments/run.py {recipe.base} --data <folder>`; it continues where it",
        "stopped, and `--only STUDY` runs one. Figures are percentages; with several seeds, the",
        "mean, with the lowest and highest in brackets. `gain` compares with the first row of the",
        "table, seed by seed: one seed decides nothing. Everything per run, dataset and score:",
        "[results.csv](results.csv).",
        _count(recipe, figures),
        *(["", recipe.about] if recipe.about else []),
    ]
    lines += _summary_lines(recipe)
    for study in recipe.studies:
        lines += ["", *_study_lines(recipe, study, figures)]
    page = figures.path.with_name("README.md")
    write_atomic(page, ("\n".join(lines) + "\n").encode())
    return page


def _count(recipe: Recipe, figures: Figures) -> str:
    done = sum(figures.has(step) for step in recipe.stages)
    left = "" if done == len(recipe.stages) else ", the rest is not measured yet (-)"
    return f"{done} of {len(recipe.stages)} runs are in it{left}."


def _summary_lines(recipe: Recipe) -> list[str]:
    """List every question, the paper's claim and what ships; empty if no study states it."""
    stated = [study for study in recipe.studies if study.ships]
    if not stated:
        return []
    lines = ["", "## What ships", "", "| question | the paper | ships |", "|---|---|---|"]
    return lines + [f"| {s.question} | {s.paper or '-'} | {s.ships} |" for s in stated]


def _study_lines(recipe: Recipe, study: Study, figures: Figures) -> list[str]:
    says = {step.run: step.says for step in recipe.stages}
    lines = [f"## {study.question}", ""]
    if study.paper:
        lines += [f"Paper: {study.paper}", ""]
    heads = ["", "seeds", "mIoU"]
    for dataset in study.datasets:
        place = "" if len(study.datasets) == 1 else f", `{dataset}`"
        heads += [f"`{score}` AUPRC / FPR95{place}" for score in study.scores]
    several = any(len(_seeds(study, name, figures)) > 1 for name in study.runs)
    if several:
        heads.append(f"gain in AUPRC of `{study.scores[0]}`")
    if study.costs:
        heads += ["trainable", "peak MiB", "s / step"]
    lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in study.runs:
        lines.append("| " + " | ".join(_row(says[name], study, name, figures, several)) + " |")
    if study.finding:
        lines += ["", study.finding]
    return lines


def _seeds(study: Study, name: str, figures: Figures) -> dict[int, dict]:
    return _figures_of(study, name, study.datasets[0], study.scores[0], figures)


def _figures_of(study: Study, name: str, dataset: str, score: str, figures: Figures):
    """Return seed -> figures, only for the study's seeds, so that rows compare like with like."""
    found = figures.of(name, dataset, score)
    return {seed: found[seed] for seed in study.seeds if seed in found}


def _row(says: str, study: Study, name: str, figures: Figures, several: bool) -> list[str]:
    found = _seeds(study, name, figures)
    cells = [says, ", ".join(map(str, found)) or "-"]
    cells.append(_spread(found, "mIoU"))
    for dataset in study.datasets:
        for score in study.scores:
            rows = _figures_of(study, name, dataset, score, figures)
            cells.append(f"{_spread(rows, 'auprc')} / {_spread(rows, 'fpr95')}" if rows else "-")
    if several:
        cells.append(_gains(study, name, figures))
    if study.costs:
        values = defaultdict(lambda: None, next(iter(found.values()), {}))
        cells.append(_or_dash(values["trainable_parameters"], "{:,.0f}"))
        cells.append(_or_dash(values["peak_memory"], "{:,.0f}"))
        cells.append(_or_dash(values["step_seconds"], "{:.2f}"))
    return cells


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _spread(rows: dict[int, dict], figure: str) -> str:
    values = [row[figure] for row in rows.values() if row[figure] is not None]
    if not values:
        return "-"
    mean = sum(values) / len(values)
    return f"{mean:.1f}" + (f" ({min(values):.1f}..{max(values):.1f})" if len(values) > 1 else "")


def _gains(study: Study, name: str, figures: Figures) -> str:
    if name == study.runs[0]:
        return ""
    first, found = _seeds(study, study.runs[0], figures), _seeds(study, name, figures)
    shared = [seed for seed in found if seed in first]
    return ", ".join(f"{found[seed]['auprc'] - first[seed]['auprc']:+.1f}" for seed in shared)
