#!/usr/bin/env python3
"""Kill runs (-9) at random moments, start them again, and compare with an undisturbed run.

    python tests/faults/kill_runs.py
    python tests/faults/kill_runs.py --only training --kills 10 --seed 3 --json figures.json

Every kill starts a tiny job in a folder of its own, ends all of its processes at a random moment,
and gives the same command again (with --resume for a training). The moment is drawn from the time
that the undisturbed job takes; one half of the training kills waits for a checkpoint that is just
being written instead. A kill holds when the second command succeeds and

- training and two ranks: every tensor of model_final.pth is equal to the last bit,
- evaluation: results.json has the same figures,
- cut-paste: every file has the same bytes,

and when nothing temporary is left. Exit status: 0 all held, 1 some did not.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import try_corpus

ROOT = Path(__file__).resolve().parents[2]
# The jobs in the order of their turns: two ranks take longest, so that they come least often.
TURNS = ("training", "evaluation", "training", "cut-paste")
TURNS += ("training", "evaluation", "training", "cut-paste", "two ranks")


@dataclass
class Job:
    """A command, how to give it again, and what it makes.

    Args:
        door: the command, one of `try_corpus.DOORS`.
        first, again: its arguments; {out} is the output folder.
        outcome: reads what must be equal from the output folder.
        seconds: of the undisturbed run.
        writes: pattern of the temporary files to wait for in one half of the kills, or empty.
    """

    name: str
    door: str
    first: tuple[str, ...]
    again: tuple[str, ...]
    outcome: object
    writes: str = ""
    seconds: float = 0.0
    expected: object = field(default=None, repr=False)


class Process:
    """A command in a forked process, for which everything is imported already."""

    def __init__(self, job: Job, argv: tuple[str, ...], output: Path, log: Path):
        output.mkdir(exist_ok=True)
        from corpus import Case

        case = Case(job.door, job.name, argv, "")
        self.pid, self.status = try_corpus.start(case, output, log), None

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        if self.status is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if ended else None
        return self.status

    def wait(self, seconds: float) -> int | None:
        """Wait so long; returns the exit status, or None."""
        end = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        return self.status

    def kill(self) -> None:
        """Kill it and all of its descendants, which share its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait(10)


def weights(output: Path) -> dict:
    """Tensors of the last checkpoint as bytes, by name."""
    import torch

    state = torch.load(output / "model_final.pth", weights_only=True)["model"]
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


def figures(output: Path) -> dict:
    """All figures of an evaluation."""
    content = json.loads((output / "report" / "results.json").read_text())
    return {key: content[key] for key in ("datasets", "closed_set")}


def pasted(output: Path) -> dict:
    """Bytes of every file, by name; the card's name follows the folder's."""
    files = [path for path in sorted(output.rglob("*")) if path.is_file()]
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in files
        if path.name != "card.yaml"
    }


def litter(output: Path) -> list[str]:
    """Temporary files that are still there."""
    return [
        str(path.relative_to(output))
        for path in output.rglob(".*")
        if path.is_file() and (path.suffix == ".tmp" or "spill" in path.name)
    ]


def jobs(folder: Path) -> list[Job]:
    """Write the inputs; returns the four jobs."""
    import corpus
    import runs

    world = corpus.World(folder)
    overrides = ("SOLVER.MAX_ITER", 60, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.EMA.ENABLED", True)
    lora = ("MODEL.LORA.ENABLED", True, "MODEL.LORA.RANK", 2, "MODEL.LORA.DROPOUT", 0.3)
    points = ("MODEL.CRITERION.MATCH_POINTS", 20, "MODEL.CRITERION.LOSS_POINTS", 20)
    cfg = runs.small_run(folder, "run", *overrides, *lora, *points)
    cfg.DATASETS.TRAIN = ("faults",)
    config = folder / "train.yaml"
    config.write_text(cfg.dump())
    base, end = ("--config-file", str(config)), ("OUTPUT_DIR", "{out}")
    two = ("--num-gpus", "2")
    many = folder / "many"
    shutil.copytree(world.scenes, many)
    for split in ("leftImg8bit", "gtFine"):
        place = many / split / "train" / "aachen"
        for path in sorted(place.iterdir()):
            for index in range(1, 100):
                name = path.name.replace("aachen_0000", f"aachen_{index:02d}00")
                shutil.copy(path, place / name)
    runs.write_dataset(folder, "faults", 4)
    big = folder / "eval.yaml"
    _many_images(world, 60)
    big.write_text(world.config.read_text())
    paste, evaluate = world.paste(scenes=many), world.evaluate()
    train, resume = base + end, (*base, "--resume", *end)
    return [
        Job("training", "train_net", train, resume, weights, ".*.tmp"),
        Job("two ranks", "train_net", two + train, two + resume, weights, ".*.tmp"),
        Job("evaluation", "--eval-only", evaluate, evaluate, figures),
        Job("cut-paste", "prepare_cut_paste", paste, paste, pasted, ".*.tmp"),
    ]


def _many_images(world, count: int) -> None:
    """Repeat the four images, so that an evaluation takes some seconds."""
    for folder in (world.images, world.labels, world.folder / "anomaly/labels"):
        for index in range(4, count):
            shutil.copy(folder / f"{index % 4}.png", folder / f"{index}.png")


def measure(job: Job, folder: Path) -> None:
    """Run a job undisturbed."""
    output, log = folder / f"{job.name} through", folder / f"{job.name}.txt"
    began = time.monotonic()
    status = Process(job, job.first, output, log).wait(600)
    job.seconds = time.monotonic() - began
    if status != 0:
        raise RuntimeError(f"{job.name} failed undisturbed:\n{log.read_text()[-3000:]}")
    job.expected = job.outcome(output)


def kill(job: Job, number: int, folder: Path, rng: random.Random) -> tuple[str, str]:
    """Kill a job once and run it again; returns when it was killed, and what did not hold."""
    output, log = folder / f"{job.name} {number}", folder / f"{job.name} {number}.txt"
    process = Process(job, job.first, output, log)
    moment = rng.uniform(0.05, 1.0) * job.seconds
    began, writing = time.monotonic(), False
    awaited = bool(job.writes) and number % 2 == 1
    moment = min(moment, 0.9 * job.seconds) if awaited else moment
    while process.poll() is None:
        late = time.monotonic() - began > moment
        writing = awaited and late and any(output.rglob(job.writes))
        if writing or (late and not awaited):
            break
        if not awaited:
            time.sleep(0.002)
    alive = process.poll() is None
    process.kill()
    when = f"{time.monotonic() - began:.2f} s"
    when += ", in a write" if writing and alive else ""
    when += "" if alive else ", had ended"
    process = Process(job, job.again, output, log)
    status = process.wait(60 + 10 * job.seconds)
    if status is None:
        process.kill()
        return when, "the second run hangs"
    if status:
        return when, f"exit status {status}: {log.read_text().strip().splitlines()[-1:]}"
    found = job.outcome(output)
    if found != job.expected:
        names = [n for n in {*found, *job.expected} if found.get(n) != job.expected.get(n)]
        return when, f"differs in {len(names)}: {sorted(names)[:3]}"
    if litter(output):
        return when, f"leaves {litter(output)[:3]}"
    return when, ""


def main() -> int:
    """Kill, resume, compare, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="in all (default: 50)")
    parser.add_argument("--only", help="training, two ranks, evaluation or cut-paste")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60, help="begin no kill after these")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    args = parser.parse_args()
    args.json = args.json and args.json.resolve()
    try_corpus.make_ready()
    try_corpus.import_doors()
    began, rng = time.monotonic(), random.Random(args.seed)
    tried, held, writes = Counter(), Counter(), Counter()
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        chosen = [job for job in jobs(Path(name)) if args.only in (None, job.name)]
        for job in chosen:
            measure(job, Path(name))
            print(f"{job.name}: {job.seconds:.1f} s undisturbed", flush=True)
        by_name = {job.name: job for job in chosen}
        order = [by_name[turn] for turn in TURNS if turn in by_name]
        for number in range(args.kills):
            if time.monotonic() - began > 60 * args.minutes:
                break
            job = order[number % len(order)]
            when, failure = kill(job, tried[job.name], Path(name), rng)
            tried[job.name] += 1
            held[job.name] += not failure
            writes[job.name] += "in a write" in when
            print(f"{job.name}, killed at {when}: {failure or 'held'}", flush=True)
    print(f"\n{'job':<12} {'kills':>6} {'in a write':>11} {'held':>6}")
    for job in chosen:
        line = (tried[job.name], writes[job.name], held[job.name])
        print(f"{job.name:<12} {line[0]:>6} {line[1]:>11} {line[2]:>6}")
    print(f"{'all':<12} {tried.total():>6} {writes.total():>11} {held.total():>6}")
    if args.json:
        from anoseg_d2.utils.files import write_json

        write_json(args.json, {"kills": tried, "held": held, "in a write": writes})
    return int(held.total() < tried.total())


if __name__ == "__main__":
    sys.exit(main())
