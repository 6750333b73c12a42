"""Studies and the runs that they compare, read from a yaml file."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import yaml
from fvcore.common.config import CfgNode

__all__ = ["AblationRun", "Plan", "Study", "load_plan"]

_PLAN_KEYS = {"title", "about", "recipe", "output", "results", "data", "test", "runs", "studies"}
_RUN_KEYS = {"says", "config", "from", "evaluate", "set"}
_STUDY_KEYS = {
    *("name", "question", "paper", "runs", "seeds", "datasets", "scores", "costs"),
    *("finding", "ships"),
}


@dataclass(frozen=True)
class AblationRun:
    """One training, or one evaluation of a checkpoint that is there.

    Args:
        name: unique.
        says: its row's title in the tables.
        config: yaml file.
        weights: checkpoint that it starts from, or that is evaluated.
        trains: False evaluates only.
        settings: config keys and values over the file's.
    """

    name: str
    says: str
    config: Path
    weights: Path
    trains: bool
    settings: dict

    def digest(self, seed: int, test: tuple[str, ...]) -> str:
        """What the figures depend on, in 12 characters; defaults of the package are not in it."""
        base = CfgNode.load_yaml_with_base(str(self.config))
        facts = [base, self.settings, self.weights.name, self.trains, seed, list(test)]
        text = json.dumps(facts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Study:
    """A question, and the runs that answer it; the first is what the others are held against.

    `paper` is what the paper claims, `finding` what is seen, `ships` the default that follows.
    """

    name: str
    question: str
    paper: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    datasets: tuple[str, ...]
    scores: tuple[str, ...]
    costs: bool
    finding: str
    ships: str


@dataclass(frozen=True)
class Plan:
    """All studies.

    Args:
        about: what the page says of all runs.
        start: output folder of the recipe whose data and stages the runs start from.
        output: folder for everything that is made.
        results: folder of the tables.
        data: command of another dataset -> file that shows it finished.
        test: datasets that every run is measured on.
    """

    title: str
    about: str
    start: Path
    output: Path
    results: Path
    data: tuple[tuple[tuple[str, ...], Path], ...]
    test: tuple[str, ...]
    runs: dict[str, AblationRun]
    studies: tuple[Study, ...]

    def work(self) -> list[tuple[AblationRun, int]]:
        """Every run with every seed that a study asks for, in the studies' order, once."""
        wanted = [
            (self.runs[name], seed)
            for study in self.studies
            for seed in study.seeds
            for name in study.runs
            if self.runs[name].trains or seed == 0
        ]
        return list({(run.name, seed): (run, seed) for run, seed in wanted}.values())


def load_plan(path) -> Plan:
    """Read the studies.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown key, or a run that is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no studies at {path}")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    _check(path, "the file", content, _PLAN_KEYS)
    start = yaml.safe_load(Path(content["recipe"]).read_text(encoding="utf-8"))["output"]
    fill = {"start": start, "datasets": f"{start}/datasets", "ablations": content["output"]}
    runs = {name: _run(path, name, entry, fill) for name, entry in content["runs"].items()}
    return Plan(
        title=content["title"],
        about=content.get("about", "").strip(),
        start=Path(start),
        output=Path(content["output"]),
        results=Path(content["results"]),
        data=tuple(
            (tuple(d["run"].format(**fill).split()), Path(d["makes"].format(**fill)))
            for d in content.get("data", [])
        ),
        test=tuple(content["test"]),
        runs=runs,
        studies=tuple(_study(path, entry, runs, content["test"]) for entry in content["studies"]),
    )


def _run(path, name: str, entry: dict, fill: dict) -> AblationRun:
    _check(path, f"run {name!r}", entry, _RUN_KEYS)
    if ("from" in entry) == ("evaluate" in entry):
        raise ValueError(f"{path}: run {name!r} needs either from or evaluate: a checkpoint")
    weights = entry.get("from") or entry["evaluate"]
    return AblationRun(
        name=name,
        says=entry["says"],
        config=Path(entry["config"]),
        weights=Path(weights.format(**fill)),
        trains="from" in entry,
        settings=entry.get("set", {}),
    )


def _study(path, entry: dict, runs: dict, test: list[str]) -> Study:
    _check(path, f"study {entry.get('name')!r}", entry, _STUDY_KEYS)
    unknown = [name for name in entry["runs"] if name not in runs]
    if unknown:
        raise ValueError(f"{path}: study {entry['name']!r} asks for unknown runs {unknown}")
    return Study(
        name=entry["name"],
        question=entry["question"],
        paper=entry.get("paper", ""),
        runs=tuple(entry["runs"]),
        seeds=tuple(entry.get("seeds", [0])),
        datasets=tuple(entry.get("datasets", ["camvid_anomaly"])),
        scores=tuple(entry["scores"]),
        costs=entry.get("costs", False),
        finding=entry.get("finding", "").strip(),
        ships=entry.get("ships", "").strip(),
    )


def _check(path, where: str, entry: dict, known: set[str]) -> None:
    unknown = set(entry) - known
    if unknown:
        raise ValueError(f"{path}: {where} has unknown {sorted(unknown)}; known: {sorted(known)}")
