"""Read recipes: yaml files with steps from data to report, or with studies that compare runs.

`{output}`, `{datasets}`, `{data}` and `{seed}` in its texts are replaced. A step either runs a
script (`run`, with `makes`, the file that exists once it has finished) or trains a stage (`config`,
with `weights` or `from`, the stage whose checkpoint it starts from). The keys under `set` override
the config of every stage.

`benchmarks` names datasets that not everybody has: those in the data folder are added to
DATASETS.TEST, the others are left out and named. A script step that `needs` something the data
folder lacks is left out likewise; the dataset it makes, `tests`, is evaluated only if it is made.
Where the data folder holds the file that is `given` for a step, that file is used instead. The
target "*" of a link stands for everything in the data folder.

A recipe with `studies` has `runs` instead of stages. It builds on the output of another recipe, its
`base`, whose folder is `{base}`. Each run (`config`, with the checkpoint that it starts `from` or
only has to `evaluate`, and the keys it `set`s) becomes one step per seed that a study needs. In
its texts `{seed}` is that seed; a checkpoint to evaluate whose path has no `{seed}` is evaluated
once. `memory` names a dataset: the checkpoint to evaluate first gets a memory of its patches.
`finished` names a checkpoint that the base has trained exactly as this run does with seed 0. Where
it exists, seed 0 is only evaluated, and runs that evaluate its checkpoint take this one.
"""

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from fvcore.common.config import CfgNode

from anoseg_d2.data.builtin import DATASETS
from anoseg_d2.utils.config_files import load_yaml
from anoseg_d2.utils.files import check_name

__all__ = ["Recipe", "Step", "Study", "choose", "load_recipe"]

_RECIPE_KEYS = {
    *("name", "title", "about", "output", "needs", "links", "publish", "claims", "steps"),
    *("base", "minutes", "set", "runs", "studies", "benchmarks", "tables"),
}
_STEP_KEYS = {
    *("name", "minutes", "run", "makes", "optional", "config", "weights", "from"),
    *("needs", "tests", "given"),
}
_RUN_KEYS = {"says", "config", "from", "evaluate", "finished", "set", "memory"}
_STUDY_KEYS = {
    *("name", "question", "paper", "runs", "seeds", "datasets", "scores", "costs"),
    *("finding", "ships"),
}


@dataclass(frozen=True)
class Step:
    """A step, which runs as one subprocess.

    Args:
        name: unique in the recipe.
        minutes: duration on two cores, to estimate the time left.
        arguments: script and its arguments; for a stage, trainer and config.
        makes: file in the step's own folder that exists once the step has finished.
        optional: empty, or the consequence if the step fails and the others continue.
        config: config file of a training stage, else None.
        weights: checkpoint that a stage starts from.
        start: name of the stage that writes `weights`, or empty.
        seed: training seed.
        settings: further KEY VALUE overrides of the config.
        trains: if False, `weights` are only evaluated.
        memory: dataset of the memory that `weights` get before they are evaluated, or empty.
        run: name of the run in the studies, or empty.
        says: title of the run in tables.
        digest: digest of everything that the run's figures depend on.
    """

    name: str
    minutes: float
    arguments: tuple[str, ...]
    makes: Path
    optional: str = ""
    config: Path | None = None
    weights: Path | None = None
    start: str = ""
    seed: int = 0
    settings: tuple[str, ...] = ()
    trains: bool = True
    memory: str = ""
    run: str = ""
    says: str = ""
    digest: str = ""

    @property
    def is_stage(self) -> bool:
        """Whether the step trains or evaluates a model."""
        return self.config is not None

    @property
    def loaded(self) -> Path | None:
        """Checkpoint that the stage loads."""
        return self.folder / "with_memory.pth" if self.memory else self.weights

    @property
    def folder(self) -> Path:
        """The folder that belongs only to this step, and is deleted when it is made again."""
        return self.makes.parent.parent if self.is_stage else self.makes.parent


@dataclass(frozen=True)
class Study:
    """A question and the runs that answer it; all others are compared with the first.

    `paper` is what the paper claims, `finding` what the runs show, `ships` the resulting default.
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
class Recipe:
    """A recipe: its steps in order, and where everything is.

    Args:
        datasets: DETECTRON2_DATASETS of every step.
        seed: seed of data and training; in studies, every run has its own.
        about: text for the page about the data and the figures.
        needs: files and folders that the given data folder must hold.
        links: link to make -> its target in the data folder.
        publish: folder for the page and its figures, or None.
        claims: see `summary.judge`.
        tables: figures of the paper to print next to ours, see `writeup.paper_tables`.
        tests: datasets of `benchmarks` and `tests` that every stage is evaluated on.
        left_out: what this data folder does not allow, one sentence each.
        base: the recipe whose data and stages studies start from.
    """

    name: str
    title: str
    path: Path
    output: Path
    datasets: Path
    steps: tuple[Step, ...]
    seed: int = 0
    needs: tuple[str, ...] = ()
    links: dict[Path, Path] = field(default_factory=dict)
    publish: Path | None = None
    claims: tuple[dict, ...] = ()
    tables: tuple[dict, ...] = ()
    tests: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    about: str = ""
    base: str = ""
    studies: tuple[Study, ...] = ()

    @property
    def stages(self) -> tuple[Step, ...]:
        """The steps that train or evaluate a model."""
        return tuple(step for step in self.steps if step.is_stage)


def load_recipe(path, output=None, data=None, seed: int | None = None) -> Recipe:
    """Read a recipe and fill in its placeholders.

    Args:
        path: yaml file.
        output: folder for all output; None takes the recipe's, with the seed appended unless it is
            0, so that every seed has its own folder.
        data: folder with the data that the recipe needs, if any.
        seed: seed of data and training; None means 0.
    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not yaml, has an unknown key or name or a wrong type, or `data` is missing
            or incomplete.
    """
    path = Path(path)
    content = _read(path)
    try:
        return _build(path, content, output, data, seed)
    except KeyError as error:
        raise ValueError(f"{path}: lacks {error}") from error
    except (TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path}: an entry has the wrong type: {error}") from error
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def _build(path: Path, content: dict, output, data, seed: int | None) -> Recipe:
    studied = "studies" in content
    if studied and seed is not None:
        raise ValueError(f"{path}: its studies state the seeds of their runs; leave out --seed")
    seed = seed or 0
    if output is None:
        output = content["output"] + (f"_seed{seed}" if seed else "")
    output = Path(output)
    base = Path(_read(Path(content["base"]))["output"]) if studied else output
    values = {"output": output, "base": base, "datasets": base / "datasets", "seed": seed}
    needs = tuple(content.get("needs", ()))
    data = _check_data(path, data, needs)
    fill = _Filler({**values, "data": data or ""})
    tests, left_out = _find_benchmarks(content.get("benchmarks", ()), data)
    shared = dict(content.get("set", {}))
    links = {}
    steps: list[Step] = []
    for entry in content.get("steps", ()):
        lacking = [name for name in entry.get("needs", ()) if not (data / name).exists()]
        if lacking:
            left_out.append(f"{entry['name']} is left out: {data} lacks {', '.join(lacking)}")
            continue
        if "given" in entry and (data / entry["given"]).exists():
            links[fill.path(entry["makes"])] = data / entry["given"]
            continue
        if "tests" in entry:
            tests.append(entry["tests"])
        if tests:
            shared["DATASETS.TEST"] = [*content["set"]["DATASETS.TEST"], *tests]
        before = [step.name for step in steps]
        steps.append(_step(path, entry, fill, output, seed, before, shared))
    studies = tuple(_study(path, entry, content) for entry in content.get("studies", ()))
    if studied:
        steps += _runs(path, content, studies, fill, output)
    if not steps:
        raise ValueError(f"{path} has neither steps nor studies, so there is nothing to do")
    publish = content.get("publish")
    return Recipe(
        name=content.get("name", ""),
        title=content["title"],
        path=path,
        output=output,
        datasets=(base / "datasets").resolve(),
        steps=tuple(steps),
        seed=seed,
        needs=needs,
        links=links | _links(content.get("links", {}), fill, data, steps),
        publish=None if not publish else Path(publish, f"seed{seed}" if seed else ""),
        claims=tuple(content.get("claims", ())),
        tables=tuple(content.get("tables", ())),
        tests=tuple(tests),
        left_out=tuple(left_out),
        about=content.get("about", "").strip(),
        base=content.get("base", ""),
        studies=studies,
    )


def choose(recipe: Recipe, only: list[str] | None = None, start: str | None = None) -> list[Step]:
    """Return the steps to run: all, the named ones, or one and those after it.

    Args:
        recipe: recipe with the steps.
        only: names of steps, runs (with all seeds) or studies (with the data that they need).
        start: name of the first step to run.
    Raises:
        ValueError: there is no step of that name.
    """
    groups = {step.run: [s for s in recipe.steps if s.run == step.run] for step in recipe.stages}
    for study in recipe.studies:
        groups[study.name] = [
            step
            for step in recipe.steps
            if not step.run or (step.run in study.runs and step.seed in study.seeds)
        ]
    groups |= {step.name: [step] for step in recipe.steps}
    for name in [*(only or ()), *([start] if start else ())]:
        if not name or name not in groups:
            known = [s.name for s in recipe.studies] or [s.name for s in recipe.steps]
            raise ValueError(f"no step named {name!r}; there are {', '.join(known)}")
    if start:
        return list(recipe.steps[recipe.steps.index(groups[start][0]) :])
    wanted = {step.name for name in only or () for step in groups[name]}
    return [step for step in recipe.steps if not only or step.name in wanted]


class _Filler:
    def __init__(self, values: dict):
        self.values = values

    def __call__(self, text: str) -> str:
        return text.format(**self.values)

    def path(self, text: str) -> Path:
        return Path(self(text))


def _read(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"no recipe {path}; there are configs/*/recipe.yaml")
    content = load_yaml(path)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{path}: a recipe is a yaml mapping; see configs/*/recipe.yaml")
    _check_keys(path, "the recipe", content, _RECIPE_KEYS)
    return content


def _check_keys(path, where: str, entry: dict, known: set[str]) -> None:
    unknown = set(entry) - known
    if unknown:
        raise ValueError(
            f"{path}: {where} has unknown {sorted(map(str, unknown))}; known: {sorted(known)}"
        )


def _check_data(path: Path, data, needs: tuple[str, ...]) -> Path | None:
    """Return the data folder if it is complete, or None for a recipe that needs none."""
    if not needs:
        return None
    if not data:
        raise ValueError(f"{path} works on data of yours: say where with DATA=<folder> (--data)")
    missing = [name for name in needs if not (Path(data) / name).exists()]
    if missing:
        raise ValueError(
            f"{data} lacks {', '.join(missing)}; what it has to hold: `needs` in {path}"
            if Path(data).is_dir()
            else f"DATA={data} is not a folder"
        )
    return Path(data).resolve()


def _find_benchmarks(names, data: Path | None) -> tuple[list[str], list[str]]:
    """Return the benchmarks that the data folder holds, and a sentence about each other one."""
    found, left_out = [], []
    for name in names:
        if name not in DATASETS:
            raise ValueError(f"benchmarks: unknown dataset {name!r}")
        try:
            DATASETS[name].find(data)
        except FileNotFoundError:
            left_out.append(f"{name} is not evaluated: {data} does not hold it")
        else:
            found.append(name)
    return found, left_out


def _links(entries: dict, fill: _Filler, data: Path | None, steps) -> dict[Path, Path]:
    """Return {link: target}; "*" links everything but what a step makes itself."""
    links = {}
    made = {step.folder for step in steps}
    for text, target in entries.items():
        link = fill.path(text)
        if target == "*":
            inside = {link / entry.name: entry for entry in sorted(data.iterdir())}
            links |= {name: entry for name, entry in inside.items() if name not in made}
        else:
            links[link] = data / target
    return links


def _step(
    path, entry: dict, fill: _Filler, output: Path, seed: int, before: list[str], shared: dict
) -> Step:
    name = entry.get("name")
    _check_keys(path, f"step {name!r}", entry, _STEP_KEYS)
    if not name or name in before or ("run" in entry) == ("config" in entry):
        raise ValueError(f"{path}: step {name!r} needs a unique name, and either run or config")
    check_name(name, f"{path}: step")
    minutes = float(entry["minutes"])
    if not 0 <= minutes < math.inf:
        raise ValueError(f"{path}: step {name!r} has minutes {minutes}; it must be 0 or more")
    if "run" in entry:
        arguments = tuple(fill(part) for part in entry["run"].split())
        optional = entry.get("optional", "")
        return Step(name, minutes, arguments, fill.path(entry["makes"]), optional=optional)
    start = entry.get("from", "")
    if start and start not in before:
        raise ValueError(f"{path}: step {name!r} starts from {start!r}, which is not before it")
    weights = output / start / "model_final.pth" if start else fill.path(entry["weights"])
    return Step(
        name,
        minutes,
        ("train_net.py", entry["config"]),
        output / name / "report" / "results.json",
        config=Path(entry["config"]),
        weights=weights,
        start=start,
        seed=seed,
        settings=tuple(str(part) for pair in shared.items() for part in pair),
    )


def _runs(path, content: dict, studies, fill: _Filler, output: Path) -> list[Step]:
    """Return every run with every seed that a study needs, once, in the order of the studies."""
    steps = {}
    for study in studies:
        for seed in study.seeds:
            for name in study.runs:
                # Evaluating a checkpoint again with another seed gives the same figures.
                entry = content["runs"][name]
                if "from" in entry or "{seed}" in entry.get("evaluate", "") or seed == 0:
                    step = _run(path, name, content, seed, fill, output)
                    steps[step.name] = step
    return list(steps.values())


def _run(path, name: str, content: dict, seed: int, fill: _Filler, output: Path) -> Step:
    entry, shared = content["runs"][name], content.get("set", {})
    check_name(name, f"{path}: run")
    _check_keys(path, f"run {name!r}", entry, _RUN_KEYS)
    if ("from" in entry) == ("evaluate" in entry):
        raise ValueError(f"{path}: run {name!r} needs either from or evaluate: a checkpoint")
    trains, memory = "from" in entry, entry.get("memory", "")
    if trains and memory:
        raise ValueError(f"{path}: run {name!r} trains; only what it evaluates can get a memory")
    if "finished" in entry and not trains:
        raise ValueError(f"{path}: run {name!r} only evaluates, so it has nothing to be finished")
    fill = _Filler({**fill.values, "seed": seed})
    weights = fill.path(entry["from"] if trains else entry["evaluate"])
    settings = entry.get("set", {})
    # The digest leaves out the package's defaults: a new key must not invalidate published figures.
    base = CfgNode.load_yaml_with_base(entry["config"])
    facts = [base, settings, weights.name, trains, seed, shared.get("DATASETS.TEST", [])]
    if memory:
        facts.append(memory)
    text = json.dumps(facts, sort_keys=True, default=str)
    # Figures are the same either way, so the digest does not say who trained the checkpoint.
    done = _finished(content["runs"], fill, output)
    own = output / name / f"seed{seed}" / "model_final.pth"
    if trains and own in done:
        trains, weights = False, own
    weights = done.get(weights, weights)
    return Step(
        f"{name}_seed{seed}",
        float(content.get("minutes", 0)),
        ("train_net.py", entry["config"], *([f"memory of {memory}"] if memory else [])),
        output / name / f"seed{seed}" / "report" / "results.json",
        config=Path(entry["config"]),
        weights=weights,
        seed=seed,
        settings=tuple(str(part) for pair in {**shared, **settings}.items() for part in pair),
        trains=trains,
        memory=memory,
        run=name,
        says=entry["says"],
        digest=hashlib.sha256(text.encode()).hexdigest()[:12],
    )


def _finished(runs: dict, fill: _Filler, output: Path) -> dict[Path, Path]:
    """Return {checkpoint that a run would write with seed 0: the base's, which exists}."""
    pairs = {
        output / name / "seed0" / "model_final.pth": fill.path(entry["finished"])
        for name, entry in runs.items()
        if "finished" in entry
    }
    return {own: base for own, base in pairs.items() if base.exists()}


def _study(path, entry: dict, content: dict) -> Study:
    _check_keys(path, f"study {entry.get('name')!r}", entry, _STUDY_KEYS)
    unknown = [name for name in entry["runs"] if name not in content["runs"]]
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
