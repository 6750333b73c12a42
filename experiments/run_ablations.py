#!/usr/bin/env python3
"""Run the ablation studies and write their tables.

Needs the data and the first two stages of `make camvid`. Runs that are in results.csv are not
made again, and a run that was interrupted goes on from its last checkpoint. Several of these
commands may run side by side: each takes what no other has begun.

Examples:
    python experiments/run_ablations.py
    python experiments/run_ablations.py --only controls
    python experiments/run_ablations.py --list
    python experiments/run_ablations.py --tables
"""

import argparse
import contextlib
import dataclasses
import fcntl
import os
import shutil
import sys
import time
from pathlib import Path

from driver.child import Screen, exit_status, run_child
from driver.studies import AblationRun, Plan, load_plan
from driver.tables import Figures, write_page

from anoseg_d2.config import load_config
from anoseg_d2.utils.files import read_json

ROOT = Path(__file__).resolve().parent.parent

STUDIES = ROOT / "experiments" / "ablations" / "studies.yaml"


def main(argv=None) -> int:
    """Run the command line; the exit status."""
    args = build_parser().parse_args(argv)

    def work() -> int:
        studies = args.studies.resolve()
        os.chdir(ROOT)  # the studies name their files from here
        plan = _chosen(load_plan(studies), args.only)
        figures = Figures(plan.results / "results.csv")
        if args.list:
            return _list(plan, figures)
        status = 0 if args.tables else Runner(plan, figures).all()
        print(f"written: {write_page(load_plan(studies), figures)}")
        return status

    return exit_status(work)


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=Path, default=STUDIES, help="yaml (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="STUDY", help="these studies alone")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="say what is done and what is not")
    action.add_argument("--tables", action="store_true", help="write the page from the csv alone")
    return parser


def _chosen(plan: Plan, names: list[str] | None) -> Plan:
    known = [study.name for study in plan.studies]
    for name in names or ():
        if name not in known:
            raise ValueError(f"no study named {name!r}; there are {', '.join(known)}")
    wanted = tuple(study for study in plan.studies if not names or study.name in names)
    return dataclasses.replace(plan, studies=wanted)


def _list(plan: Plan, figures: Figures) -> int:
    for run, seed in plan.work():
        done = figures.has(run.name, seed, run.digest(seed, plan.test))
        print(f"{'done' if done else '    '}  {run.name} seed {seed}: {run.says}")
    return 0


class Runner:
    """Makes what the csv lacks.

    Args:
        plan: studies to run.
        figures: what is measured.
    """

    def __init__(self, plan: Plan, figures: Figures):
        self.plan, self.figures, self.screen = plan, figures, Screen()
        # Every config is read before the first run: a mistake in the last one shows at once.
        self.steps = {
            (run.name, seed): load_config(str(run.config), self._overrides(run, seed)).SOLVER
            for run, seed in plan.work()
        }

    def all(self) -> int:
        """Run what is not measured yet; the exit status."""
        todo = [
            (run, seed)
            for run, seed in self.plan.work()
            if not self.figures.has(run.name, seed, run.digest(seed, self.plan.test))
        ]
        self.screen.say(f"{len(todo)} of {len(self.plan.work())} runs to make")
        if todo:
            self._make_data()
        for index, (run, seed) in enumerate(todo):
            head = f"[{index + 1}/{len(todo)}] {run.name} seed {seed}"
            with self._claim(run, seed) as mine:
                if not mine:
                    self.screen.say(f"{head} is another command's")
                elif not self._run(run, seed, head):
                    return 1
        return 0

    @contextlib.contextmanager
    def _claim(self, run: AblationRun, seed: int):
        """Hold a run while it is made; gives False where another process holds or has made it."""
        path = self.plan.output / "locks" / f"{run.name}_seed{seed}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                self.figures.read()
                yield not self.figures.has(run.name, seed, run.digest(seed, self.plan.test))

    def _overrides(self, run: AblationRun, seed: int) -> list[str]:
        settings = {
            "OUTPUT_DIR": self._folder(run, seed),
            "SEED": seed,
            "MODEL.WEIGHTS": run.weights,
            "DATASETS.CARDS": [n for n in ("camvid", *self.plan.test) if n != "camvid_val"],
            "DATASETS.TEST": self.plan.test,
            "TEST.ANOMALY.COMPONENTS": False,
            "TEST.ANOMALY.REPORT_IMAGES": False,
            **run.settings,
        }
        return [str(part) for pair in settings.items() for part in pair]

    def _folder(self, run: AblationRun, seed: int) -> Path:
        return self.plan.output / run.name / f"seed{seed}"

    def _make_data(self) -> None:
        for number, (command, makes) in enumerate(self.plan.data):
            if not makes.exists():
                log = self.plan.output / "logs" / f"data{number}.log"
                status, _ = self._child([sys.executable, *command], log, makes.parent.name, None)
                if status:
                    raise ValueError(f"{makes.parent} was not made; log: {log}")

    def _run(self, run: AblationRun, seed: int, head: str) -> bool:
        if not run.weights.exists():
            raise FileNotFoundError(
                f"{run.name} needs {run.weights}, which is not there: `make camvid DATA=<folder>` "
                "makes the stages, an earlier study the rest"
            )
        self._clear_unless_same(run, seed)
        mode = "--resume" if run.trains else "--eval-only"
        command = [sys.executable, "train_net.py", "--config-file", str(run.config), mode]
        log = self.plan.output / "logs" / f"{run.name}_seed{seed}.log"
        started = time.monotonic()
        status, _ = self._child(
            [*command, *self._overrides(run, seed)], log, head, self.steps[run.name, seed].MAX_ITER
        )
        results = self._folder(run, seed) / "report" / "results.json"
        if status or not results.exists():
            self.screen.say(f"{head} failed (exit status {status}); log: {log}")
            return False
        self.figures.add(run.name, seed, run.digest(seed, self.plan.test), read_json(results))
        self.screen.say(f"{head} done in {(time.monotonic() - started) / 60:.1f} min")
        return True

    def _clear_unless_same(self, run: AblationRun, seed: int) -> None:
        """Delete what the run has made with other settings; a half-done one goes on."""
        folder, digest = self._folder(run, seed), run.digest(seed, self.plan.test)
        note = folder / "settings.txt"
        if folder.exists() and (not note.exists() or note.read_text() != digest):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(digest)

    def _child(self, command: list[str], log: Path, head: str, max_iter) -> tuple[int, float]:
        environment = {
            **os.environ,
            "DETECTRON2_DATASETS": str((self.plan.start / "datasets").resolve()),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",
        }

        def tick(progress):
            self.screen.show(f"{head}  {progress.text if progress else 'starting'}")

        return run_child(command, log, environment, tick, max_iter)


if __name__ == "__main__":
    sys.exit(main())
