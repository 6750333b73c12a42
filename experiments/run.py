#!/usr/bin/env python3
"""Run a recipe: make the data, train and evaluate its stages or studies, and write the page.

Finished steps are kept, so the same command continues an interrupted run. Several commands may run
on one recipe at the same time: each takes steps that no other is working on.

Examples:
    python experiments/run.py configs/quickstart/recipe.yaml
    python experiments/run.py configs/camvid/recipe.yaml --data ~/camvid --only arcface
    python experiments/run.py configs/quickstart/recipe.yaml --from arcface --redo --seed 1
    python experiments/run.py experiments/ablations/studies.yaml --only controls,void
"""

import argparse
import contextlib
import fcntl
import os
import sys
import time
from pathlib import Path

from driver.child import Screen, run_child
from driver.recipe import Recipe, Step, choose, load_recipe
from driver.records import Records
from driver.summary import load_results, table_lines
from driver.tables import Figures, write_studies
from driver.writeup import write_stages

from anoseg_d2.config import load_config
from anoseg_d2.report.write import combine_reports
from anoseg_d2.utils import cli
from anoseg_d2.utils.files import read_json

ROOT = Path(__file__).resolve().parent.parent

TRAIN = "train_net.py"
BUILD_MEMORY = ("-m", "anoseg_d2", "memory")


def main(argv=None) -> int:
    """Run the command line; return the exit status."""
    args = build_parser().parse_intermixed_args(argv)

    def work() -> int:
        args.output, args.data = (path and path.resolve() for path in (args.output, args.data))
        recipe = args.recipe.resolve()
        os.chdir(ROOT)  # recipes and configs name their files from here
        return Runner(load_recipe(recipe, args.output, args.data, args.seed), args).run()

    return cli.run_command(work, "stopped; the same command continues from here", args.verbosity)


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path, help="yaml file, see configs/*/recipe.yaml")
    parser.add_argument("--data", type=Path, help="folder with the data that the recipe needs")
    parser.add_argument("--output", type=Path, help="folder for all output")
    parser.add_argument("--seed", type=int, help="of data and training (default: 0)")
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument(
        "--only", metavar="NAME[,NAME]", help="only these steps, runs (every seed) or studies"
    )
    steps.add_argument("--from", dest="start", metavar="STEP", help="this step and those after it")
    parser.add_argument(
        "--redo",
        action="store_true",
        help="delete the output of the chosen steps and run them again",
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="show what is finished, run nothing")
    action.add_argument("--page", action="store_true", help="only rewrite the page")
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="KEY VALUE overrides for every stage's config"
    )
    cli.add_verbosity_options(parser)
    return parser


class Runner:
    """One run of the chosen steps of a recipe.

    Args:
        recipe: the recipe to run.
        args: parsed command line.
    """

    def __init__(self, recipe: Recipe, args):
        self.recipe, self.args = recipe, args
        self.steps = choose(recipe, args.only and args.only.split(","), args.start)
        self.screen = Screen(quiet=args.verbosity < 0)
        # All configs are read before the first step, so a mistake in the last one shows at once.
        self.configs = {
            step.name: load_config(str(step.config), self._overrides(step))
            for step in recipe.stages
        }
        texts = {name: cfg.dump() for name, cfg in self.configs.items()}
        if recipe.tests:  # a benchmark that is added later does not make the training outdated
            texts = {name: _without_tests(cfg).dump() for name, cfg in self.configs.items()}
        self.records = Records(recipe, texts)
        # Results with other settings must not replace the published ones.
        as_written = recipe.publish and not args.opts and not args.output
        self.publish = recipe.publish if as_written else recipe.output / "writeup"
        self.figures = Figures(self.publish / "results.csv") if recipe.studies else None
        self.planned = {step.name: step.minutes * 60 for step in recipe.steps}
        self.spent: dict[str, float] = {}

    def run(self) -> int:
        """Run what is not finished, then write the page; return the exit status."""
        if self.args.list:
            for step in self.steps:
                done = "done" if self._is_done(step) else ""
                self.screen.say(f"{done:<6}{step.name}" + (f": {step.says}" if step.says else ""))
            return 0
        if not self.args.page:
            for sentence in self.recipe.left_out:
                self.screen.say(sentence)
            self._link_data()
            todo = [s for s in self.steps if self.args.redo or not self._is_done(s)]
            minutes = sum(self.planned[step.name] for step in todo) / 60
            self.screen.say(
                f"{self.recipe.title}: {len(todo)} of {len(self.steps)} steps to run, about "
                f"{minutes:.0f} min on two cores; everything goes to {self.recipe.output}"
            )
            # Data is made only for runs that need it: published figures stand without it.
            idle = self.recipe.studies and not any(step.run for step in todo)
            for step in () if idle else self.steps:
                with self._claim(step) as mine:
                    if not mine:
                        self.screen.say(f"{self._head(step)} is being made by another command")
                    elif not self._make(step):
                        return 1
        return self._write_studies() if self.recipe.studies else self._write_stages()

    @contextlib.contextmanager
    def _claim(self, step: Step):
        """Lock a step while it runs; yield False if another process has the lock."""
        path = self.recipe.output / "locks" / step.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def _make(self, step: Step) -> bool:
        """Run a step unless it is finished; return whether the rest can follow."""
        if self.args.redo:
            self.records.forget(step)
            if step.run:
                self.figures.forget(step)
        elif self._is_done(step):  # checked again, as another command may have finished it
            if not step.run:
                self.screen.say(f"{self._head(step)} is finished")
            return True
        return self._run(step)

    def _is_done(self, step: Step) -> bool:
        if not step.run:
            return self.records.is_done(step) and self._is_evaluated(step)
        # The published csv decides, because the output folder may be on another machine.
        self.figures.read()
        if not self.figures.has(step) and self.records.is_done(step):
            self.figures.add(step, read_json(step.makes))
        return self.figures.has(step)

    def _is_evaluated(self, step: Step) -> bool:
        """Return whether a finished stage has figures of every benchmark that is there by now."""
        tests = set(self.recipe.tests) & set(
            self.configs[step.name].DATASETS.TEST if step.is_stage else ()
        )
        return not tests or tests <= set(read_json(step.makes)["datasets"])

    def _overrides(self, step: Step) -> list[str]:
        weights = "" if step.loaded is None else str(step.loaded)
        base = ["OUTPUT_DIR", str(step.folder), "SEED", str(step.seed), "MODEL.WEIGHTS", weights]
        return [*base, *step.settings, *self.args.opts]

    def _commands(self, step: Step) -> list[list[str]]:
        """The step's commands, one after the other."""
        if not step.is_stage:
            return [[sys.executable, *step.arguments]]
        overrides = self._overrides(step)
        if self._left_out(step.weights):
            overrides[overrides.index("MODEL.WEIGHTS") + 1] = ""
        mode = "--resume" if step.trains else "--eval-only"
        commands = [[sys.executable, TRAIN, "--config-file", str(step.config), mode, *overrides]]
        if step.memory:
            build = [sys.executable, *BUILD_MEMORY, str(step.weights), "--dataset", step.memory]
            build += ["--seed", str(step.seed), "--overwrite", "--output", str(step.loaded)]
            commands.insert(0, build)
        return commands

    def _left_out(self, weights: Path | None) -> bool:
        """Return whether the step that would make the weights was skipped."""
        makers = [s for s in self.recipe.steps if s.optional and s.makes == weights]
        return any(self.records.read(s.name).get("outcome") == "left out" for s in makers)

    def _run(self, step: Step) -> bool:
        """Run one step; return whether the rest can follow."""
        self._require_weights(step)
        if step.is_stage:
            weights = "random weights" if self._left_out(step.weights) else step.weights
            self.screen.say(f"{self._head(step)} starts from {weights}")
        self.records.begin(step)
        log = self.recipe.output / "logs" / f"{step.name}.log"
        size = log.stat().st_size if log.exists() else 0
        started = time.monotonic()
        try:
            status, peak = self._watch(step, log)
        except KeyboardInterrupt:
            self.records.add_time(step, time.monotonic() - started)
            self.screen.say(f"{self._head(step)} stopped; log: {log}")
            raise
        seconds = self.spent[step.name] = time.monotonic() - started
        if status == 0 and step.makes.exists():
            self.records.finish(step, seconds, peak)
            if step.run:
                self.figures.add(step, read_json(step.makes))
            self.screen.say(f"{self._head(step)} done in {_clock(seconds)}")
            return True
        return self._failed(step, status, seconds, log, size)

    def _watch(self, step: Step, log: Path) -> tuple[int, float]:
        environment = {
            **os.environ,
            "DETECTRON2_DATASETS": str(self.recipe.datasets),
            "PYTHONUNBUFFERED": "1",
        }
        started = time.monotonic()

        def tick(progress):
            elapsed = time.monotonic() - started
            text = progress.text if progress else "starting"
            left = self._left(step, elapsed, progress)
            self.screen.show(
                f"{self._head(step)}  {text}  {_clock(elapsed)} so far, about {_clock(left)} left "
                "in all"
            )

        peaks = []
        for command in self._commands(step):
            status, peak = run_child(command, log, environment, tick)
            peaks.append(peak)
            if status:
                break
        return status, max(peaks)

    def _left(self, step: Step, elapsed: float, progress) -> float:
        """Return the seconds left in all: the plan, scaled by the pace of this machine so far."""
        planned = sum(self.planned[name] for name in self.spent)
        spent = sum(self.spent.values())
        pace = min(20.0, max(0.2, spent / planned)) if planned >= 60 else 1.0
        here = max(self.planned[step.name] * pace - elapsed, 0.0)
        if progress:
            here = max(here, progress.seconds_left)
        later = self.steps[self.steps.index(step) + 1 :]
        return here + pace * sum(self.planned[s.name] for s in later if not self._was_done(s))

    def _was_done(self, step: Step) -> bool:
        if step.run:
            return self.figures.has(step)
        return self.records.read(step.name).get("outcome") == "done"

    def _failed(self, step: Step, status: int, seconds: float, log: Path, size: int) -> bool:
        """Report why a step failed; return whether the rest can continue without it."""
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

    def _require_weights(self, step: Step) -> None:
        if step.start and not step.weights.exists():
            raise FileNotFoundError(
                f"{step.name} starts from {step.start}, whose checkpoint {step.weights} does not "
                f"exist; run that first: --only {step.start}"
            )
        if step.run and not step.weights.exists():
            raise FileNotFoundError(
                f"{step.name} needs {step.weights}, which does not exist: {self.recipe.base} makes "
                "the stages, an earlier study the rest"
            )

    def _link_data(self) -> None:
        """Link the data folder to where the steps expect it; nothing is written into it."""
        for link, target in self.recipe.links.items():
            link.parent.mkdir(parents=True, exist_ok=True)
            if link.is_symlink() or link.is_file():  # a file that a step made before
                link.unlink()
            link.symlink_to(target)

    def _write_studies(self) -> int:
        self.figures.read()
        self.screen.say(f"written: {write_studies(self.recipe, self.figures)}")
        return 0

    def _write_stages(self) -> int:
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
            written = write_stages(self.recipe, self.publish, self.configs, results, self.records)
            self.screen.say(f"written: {written}")
        self.screen.say(str(page))
        return 0

    def _head(self, step: Step) -> str:
        return f"[{self.steps.index(step) + 1}/{len(self.steps)}] {step.name}"


def _without_tests(cfg):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = ()
    return cfg


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


if __name__ == "__main__":
    sys.exit(main())
