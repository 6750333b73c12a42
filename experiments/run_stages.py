#!/usr/bin/env python3
"""Run a recipe: make the data, train and evaluate the stages, write the report.

Finished steps are left as they are, so an interrupted run goes on with the same command.

Examples:
    python experiments/run_stages.py configs/quickstart/recipe.yaml
    python experiments/run_stages.py configs/camvid/recipe.yaml --data ~/camvid --only arcface
    python experiments/run_stages.py configs/quickstart/recipe.yaml --from arcface --redo --seed 1
"""

import argparse
import os
import sys
import time
from pathlib import Path

from driver.child import Screen, Stopped, exit_status, run_child
from driver.recipe import Recipe, RecipeError, Step, choose, load_recipe
from driver.records import Records
from driver.summary import load_results, table_lines
from driver.writeup import write_experiment

from anoseg_d2.config import load_config
from anoseg_d2.report.write import combine_reports

ROOT = Path(__file__).resolve().parent.parent

TRAIN = "train_net.py"


def main(argv=None) -> int:
    """Run the command line; the exit status."""
    args = build_parser().parse_intermixed_args(argv)

    def work() -> int:
        args.output, args.data = (path and path.resolve() for path in (args.output, args.data))
        os.chdir(ROOT)  # recipes and configs name their files from here
        recipe = load_recipe(args.recipe.resolve(), args.output, args.data, args.seed)
        return Run(recipe, args).all()

    return exit_status(work)


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path, help="yaml file, see configs/*/recipe.yaml")
    parser.add_argument("--data", type=Path, help="folder with the data that the recipe needs")
    parser.add_argument("--output", type=Path, help="folder for all that is made")
    parser.add_argument("--seed", type=int, default=0, help="of data and training (default: 0)")
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--only", metavar="STEP", help="this step alone")
    steps.add_argument("--from", dest="start", metavar="STEP", help="this step and those after it")
    parser.add_argument(
        "--redo", action="store_true", help="delete what the chosen steps have made, and run them"
    )
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="KEY VALUE overrides for every stage's config"
    )
    return parser


class Run:
    """One run over the chosen steps of a recipe.

    Args:
        recipe: what to run.
        args: parsed command line.
    """

    def __init__(self, recipe: Recipe, args):
        self.recipe, self.seed, self.opts = recipe, args.seed, args.opts
        self.steps = choose(recipe, args.only, args.start)
        # Results of other settings do not replace the published ones.
        self.as_written = not args.opts and not args.output
        self.screen = Screen()
        # Every config is read before the first step: a mistake in the last one shows at once.
        self.configs = {step.name: self._config(step) for step in recipe.stages}
        self.records = Records(recipe, {name: cfg.dump() for name, cfg in self.configs.items()})
        if args.redo:
            for step in self.steps:
                self.records.forget(step)
        self.planned = {step.name: step.minutes * 60 for step in recipe.steps}
        self.spent: dict[str, float] = {}

    def all(self) -> int:
        """Run what is not finished, then report; the exit status."""
        self._link_data()
        todo = [step for step in self.steps if not self.records.is_done(step)]
        minutes = sum(self.planned[step.name] for step in todo) / 60
        self.screen.say(
            f"{self.recipe.title}: {len(todo)} of {len(self.steps)} steps to run, about "
            f"{minutes:.0f} min on two cores; everything goes to {self.recipe.output}"
        )
        for step in self.steps:
            if self.records.is_done(step):
                self.screen.say(f"{self._head(step)} is finished")
            elif not self._run(step):
                return 1
        return self._report()

    def _config(self, step: Step):
        return load_config(str(step.config), self._overrides(step))

    def _overrides(self, step: Step) -> list[str]:
        folder, weights = step.folder, step.weights
        overrides = ["OUTPUT_DIR", str(folder), "SEED", str(self.seed)]
        return [*overrides, "MODEL.WEIGHTS", str(weights or ""), *self.opts]

    def _command(self, step: Step) -> list[str]:
        if not step.is_stage:
            return [sys.executable, *step.arguments]
        overrides = self._overrides(step)
        if self._left_out(step.weights):
            overrides[overrides.index("MODEL.WEIGHTS") + 1] = ""
        options = ["--config-file", str(step.config), "--resume"]
        return [sys.executable, TRAIN, *options, *overrides]

    def _left_out(self, weights: Path | None) -> bool:
        """Whether the step that would make the weights was left out."""
        makers = [s for s in self.recipe.steps if s.optional and s.makes == weights]
        return any(self.records.read(s.name).get("outcome") == "left out" for s in makers)

    def _run(self, step: Step) -> bool:
        """Run one step; whether the rest can go on."""
        self._require_start(step)
        if step.is_stage:
            weights = "random weights" if self._left_out(step.weights) else step.weights
            self.screen.say(f"{self._head(step)} starts from {weights}")
        self.records.begin(step)
        log = self.recipe.output / "logs" / f"{step.name}.log"
        size = log.stat().st_size if log.exists() else 0
        started = time.monotonic()
        try:
            status, peak = self._watch(step, log)
        except (Stopped, KeyboardInterrupt):
            self.records.add_time(step, time.monotonic() - started)
            self.screen.say(f"{self._head(step)} stopped; log: {log}")
            raise
        seconds = self.spent[step.name] = time.monotonic() - started
        if status == 0 and step.makes.exists():
            self.records.finish(step, seconds, peak)
            self.screen.say(f"{self._head(step)} done in {_clock(seconds)}")
            return True
        return self._failed(step, status, seconds, log, size)

    def _watch(self, step: Step, log: Path) -> tuple[int, float]:
        environment = {**os.environ, "DETECTRON2_DATASETS": str(self.recipe.datasets)}
        environment["PYTHONUNBUFFERED"] = "1"
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        max_iter = self.configs[step.name].SOLVER.MAX_ITER if step.is_stage else None
        started = time.monotonic()

        def tick(progress):
            elapsed = time.monotonic() - started
            text = progress.text if progress else "starting"
            left = self._left(step, elapsed, progress)
            self.screen.show(
                f"{self._head(step)}  {text}  {_clock(elapsed)} so far, about {_clock(left)} left "
                "in all"
            )

        return run_child(self._command(step), log, environment, tick, max_iter)

    def _left(self, step: Step, elapsed: float, progress) -> float:
        """Seconds left in all: the plan's, scaled by how this machine has kept to it so far."""
        planned = sum(self.planned[name] for name in self.spent)
        spent = sum(self.spent.values())
        pace = min(20.0, max(0.2, spent / planned)) if planned >= 60 else 1.0
        here = max(self.planned[step.name] * pace - elapsed, 0.0)
        if progress:
            here = max(here, progress.seconds_left)
        names = [s.name for s in self.steps]
        later = names[names.index(step.name) + 1 :]
        return here + pace * sum(self.planned[n] for n in later if not self._was_done(n))

    def _was_done(self, name: str) -> bool:
        return self.records.read(name).get("outcome") == "done" and name not in self.spent

    def _failed(self, step: Step, status: int, seconds: float, log: Path, size: int) -> bool:
        """Say why a step failed; whether the rest can go on without it."""
        with log.open(encoding="utf-8", errors="replace") as file:
            file.seek(size)
            lines = [line.rstrip() for line in file if line.strip()][1:]
        errors = [line for line in lines if line.startswith("error: ")]
        reason = errors[-1] if errors else f"exit status {status}, no {step.makes}"
        if step.optional:
            self.records.leave_out(step)
            self.screen.say(f"{self._head(step)} left out: {step.optional} ({reason})")
            return True
        self.records.add_time(step, seconds)
        self.screen.say(f"{self._head(step)} failed: {reason}")
        for line in [] if errors else lines[-15:]:
            self.screen.say(f"  | {line[:400]}")
        self.screen.say(f"log: {log}")
        return False

    def _require_start(self, step: Step) -> None:
        if step.start and not step.weights.exists():
            raise RecipeError(
                f"{step.name} starts from {step.start}, whose checkpoint {step.weights} is not "
                f"there; run that first: --only {step.start}"
            )

    def _link_data(self) -> None:
        """Show the given data folder's parts where the steps look; nothing is written into it."""
        for link, target in self.recipe.links.items():
            link.parent.mkdir(parents=True, exist_ok=True)
            if link.is_symlink():
                link.unlink()
            link.symlink_to(target)

    def _report(self) -> int:
        results = load_results(self.recipe.stages)
        if not results:
            self.screen.say("no stage is evaluated yet, so there is no report")
            return 0
        folders = [step.folder for step in self.recipe.stages if step.name in results]
        report = self.recipe.output / "report"
        page = combine_reports(folders, list(results), report, title=self.recipe.title)
        for line in table_lines(results):
            self.screen.say(line)
        self.screen.say()
        if self.recipe.publish and len(results) == len(self.recipe.stages):
            folder = self.recipe.publish if self.as_written else self.recipe.output / "writeup"
            written = write_experiment(
                self.recipe, folder, self.configs, results, self.records, self.seed
            )
            self.screen.say(f"written up: {written}")
        self.screen.say(str(page))
        return 0

    def _head(self, step: Step) -> str:
        return f"[{self.steps.index(step) + 1}/{len(self.steps)}] {step.name}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


if __name__ == "__main__":
    sys.exit(main())
