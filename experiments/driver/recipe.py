"""A recipe: the steps from data to report, read from a small yaml file.

`{output}`, `{datasets}`, `{data}` and `{seed}` in its texts are filled in. A step either runs a
script (`run`, with `makes`, the file that shows it finished) or trains a stage (`config`, with
`weights` or `from`, the stage whose checkpoint it starts from).
"""

from dataclasses import dataclass, field
from pathlib import Path

import yaml

__all__ = ["Recipe", "RecipeError", "Step", "choose", "load_recipe"]

_STEP_KEYS = {"name", "minutes", "run", "makes", "optional", "config", "weights", "from"}
_RECIPE_KEYS = {
    *("name", "title", "about", "output", "needs", "links", "publish", "claims", "steps"),
}


class RecipeError(ValueError):
    """A user's mistake, said in one line."""


@dataclass(frozen=True)
class Step:
    """One subprocess.

    Args:
        name: unique in the recipe.
        minutes: what it takes on two cores, for the time left.
        arguments: script and its arguments; of a stage, trainer and config.
        makes: file that exists once it has finished, in the step's own folder.
        optional: empty, or what it means when the step fails and the rest goes on.
        config: of a training stage, else None.
        weights: checkpoint that a stage starts from.
        start: name of the stage that writes `weights`, or empty.
    """

    name: str
    minutes: float
    arguments: tuple[str, ...]
    makes: Path
    optional: str = ""
    config: Path | None = None
    weights: Path | None = None
    start: str = ""

    @property
    def is_stage(self) -> bool:
        """Whether it trains."""
        return self.config is not None

    @property
    def folder(self) -> Path:
        """What belongs to the step alone, and goes when it is made again."""
        return self.makes.parent.parent if self.is_stage else self.makes.parent


@dataclass(frozen=True)
class Recipe:
    """Steps in order, and where everything lies.

    Args:
        about: what the write-up says of the data and the figures.
        needs: files and folders that the given data folder must hold.
        links: link to make -> its target in the data folder.
        publish: folder for the written-up results, or None.
        claims: see `summary.judge`.
    """

    name: str
    title: str
    output: Path
    steps: tuple[Step, ...]
    data: Path | None = None
    needs: tuple[str, ...] = ()
    links: dict[Path, Path] = field(default_factory=dict)
    publish: Path | None = None
    claims: tuple[dict, ...] = ()
    about: str = ""

    @property
    def datasets(self) -> Path:
        """DETECTRON2_DATASETS of every step."""
        return self.output / "datasets"

    @property
    def stages(self) -> tuple[Step, ...]:
        """The steps that train."""
        return tuple(step for step in self.steps if step.is_stage)


def load_recipe(path, output=None, data=None, seed: int = 0) -> Recipe:
    """Read a recipe and fill in its texts.

    Args:
        path: yaml file.
        output: folder for everything that is made; None takes the recipe's, with the seed in its
            name unless it is 0, so that runs of several seeds lie side by side.
        data: folder with the data that the recipe needs, if any.
        seed: of data and training.
    Raises:
        RecipeError: no such file, an unknown key, or `data` missing or incomplete.
    """
    content = _read(Path(path))
    if output is None:
        output = content["output"] + (f"_seed{seed}" if seed else "")
    values = {"output": str(output), "datasets": str(Path(output) / "datasets"), "seed": seed}
    needs = tuple(content.get("needs", ()))
    data = _check_data(Path(path), data, needs)
    fill = _Filler({**values, "data": str(data) if data else ""})
    steps = []
    for entry in content["steps"]:
        steps.append(_build_step(path, entry, fill, Path(output), [step.name for step in steps]))
    return Recipe(
        name=content["name"],
        title=content["title"],
        output=Path(output),
        steps=tuple(steps),
        data=data,
        needs=needs,
        links={fill.path(k): data / v for k, v in content.get("links", {}).items()},
        publish=_publish(content.get("publish"), seed),
        claims=tuple(content.get("claims", ())),
        about=content.get("about", "").strip(),
    )


def choose(recipe: Recipe, only: str | None = None, start: str | None = None) -> list[Step]:
    """The steps to run: all, one, or one and those after it.

    Raises:
        RecipeError: no such step.
    """
    names = [step.name for step in recipe.steps]
    wanted = only or start
    if wanted is None:
        return list(recipe.steps)
    if wanted not in names:
        raise RecipeError(f"no step named {wanted!r}; there are {', '.join(names)}")
    index = names.index(wanted)
    return list(recipe.steps[index : index + 1 if only else None])


def _publish(folder: str | None, seed: int) -> Path | None:
    return None if not folder else Path(folder, f"seed{seed}") if seed else Path(folder)


class _Filler:
    def __init__(self, values: dict):
        self.values = values

    def __call__(self, text: str) -> str:
        return text.format(**self.values)

    def path(self, text: str) -> Path:
        return Path(self(text))


def _read(path: Path) -> dict:
    if not path.is_file():
        raise RecipeError(f"no recipe {path}; there are configs/*/recipe.yaml")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    unknown = set(content) - _RECIPE_KEYS
    if unknown:
        raise RecipeError(f"{path}: unknown {sorted(unknown)}; known: {sorted(_RECIPE_KEYS)}")
    return content


def _check_data(path: Path, data, needs: tuple[str, ...]) -> Path | None:
    """The data folder, complete, or None for a recipe that needs none."""
    if not needs:
        return None
    if not data:
        raise RecipeError(f"{path} works on data of yours: say where with DATA=<folder> (--data)")
    missing = [name for name in needs if not (Path(data) / name).exists()]
    if missing:
        raise RecipeError(
            f"{data} lacks {', '.join(missing)}; what it has to hold: `needs` in {path}"
            if Path(data).is_dir()
            else f"DATA={data} is no folder"
        )
    return Path(data).resolve()


def _build_step(path, entry: dict, fill: _Filler, output: Path, before: list[str]) -> Step:
    name = entry.get("name")
    unknown = set(entry) - _STEP_KEYS
    if unknown or not name or name in before or ("run" in entry) == ("config" in entry):
        raise RecipeError(
            f"{path}: step {name!r} needs a name of its own, either run or config, and none but "
            f"{sorted(_STEP_KEYS)}"
        )
    if "run" in entry:
        return Step(
            name,
            float(entry["minutes"]),
            tuple(fill(part) for part in entry["run"].split()),
            fill.path(entry["makes"]),
            optional=entry.get("optional", ""),
        )
    start = entry.get("from", "")
    if start and start not in before:
        raise RecipeError(f"{path}: step {name!r} starts from {start!r}, which is not before it")
    weights = output / start / "model_final.pth" if start else fill.path(entry["weights"])
    config = Path(entry["config"])
    return Step(
        name,
        float(entry["minutes"]),
        ("train_net.py", str(config)),
        output / name / "report" / "results.json",
        config=config,
        weights=weights,
        start=start,
    )
