#!/usr/bin/env python3
"""Kill runs (-9) at random moments, start them again, and compare with an undisturbed run.

    python dev/faults/kill_runs.py --kills 50 --json figures.json
    python dev/faults/kill_runs.py --only training --kills 10 --seed 3

Every kill starts a tiny job in a folder of its own, ends all of its processes, and gives the same
command again (with --resume for a training). Kills of two kinds take turns. One comes from outside
at a random fraction of the files that the undisturbed job makes, so that a slow machine does not
move it; a run that had ended by then is started anew and is not counted. The other comes from
inside, at a random one of the job's renames: with half of the new file written, just before the
file gets its name, or just after. Two processes are only killed from outside.

A kill holds when the second command succeeds and

- trainings, also on two processes: every tensor of model_final.pth is equal to the last bit, those
  of the optimiser and of the average included,
- evaluations: results.json has the same figures,
- memory: the checkpoint with the memory has the same tensors,
- cut-paste: every file has the same bytes.

Exit status: 0 all held, 1 some did not.
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
from itertools import cycle
from pathlib import Path

import try_faults

STEPS, PERIOD = 40, 2  # of the trainings, and between two of their checkpoints
IMAGES = 60  # of the evaluations
# The jobs in the order of their turns: 17 turns, of which two processes, the slowest, take one.
TURNS = ("training", "evaluation", "ratio head", "cut-paste", "training", "with a memory")
TURNS += ("training", "evaluation", "cut-paste", "memory", "training", "ratio head", "cut-paste")
TURNS += ("evaluation", "training", "two processes", "training")


@dataclass
class Job:
    """A command, how to give it again, and what it makes.

    Args:
        first, again: its command line; {out} is the output folder.
        outcome: reads what must be equal from the output folder.
        marks: pattern of files whose number shows how far the job is; a training, which deletes
            its older checkpoints, is as far as the highest step in a file's name.
        total: their number at the end, or the last step.
        renames: how many files the undisturbed run renames in its own process.
    """

    name: str
    first: list[str]
    again: list[str]
    outcome: object
    marks: str
    total: int
    renames: int = 0
    seconds: float = 0.0
    expected: object = field(default=None, repr=False)


class Process:
    """A command in a forked process, for which everything is imported already."""

    def __init__(self, job: Job, argv: list[str], output: Path, log: Path, replace=None):
        output.mkdir(exist_ok=True)
        case, usual = try_faults.Case("", job.name, argv, []), os.replace
        os.replace = replace or usual  # the forked process keeps it
        try:
            self.pid, self.status = try_faults.start(case, output, log), None
        finally:
            os.replace = usual

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        if self.status is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if ended else None
        return self.status

    def wait(self, seconds: float) -> int | None:
        """Wait at most so long; returns the exit status, or None."""
        end = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        return self.status

    def kill(self) -> None:
        """Kill it and all of its descendants, the ranks of a group of their own included."""
        for pid in (self.pid, *descendants(self.pid)):  # first the launcher, which would react
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait(10)


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes that a process has started, directly or not."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def counting(tally: Path):
    """Return an `os.replace` that adds a byte to a file for every call."""
    usual = os.replace

    def replace(source, target):
        with open(tally, "ab") as stream:
            stream.write(b".")
        usual(source, target)

    return replace


def dying(number: int, how: str):
    """Return an `os.replace` that kills its process at one of its calls, counted from 0."""
    usual, calls = os.replace, iter(range(10**9))

    def replace(source, target):
        if next(calls) != number:
            return usual(source, target)
        if how == "half written":
            os.truncate(source, os.path.getsize(source) // 2)
        elif how == "renamed":
            usual(source, target)
        return os.kill(os.getpid(), signal.SIGKILL)

    return replace


def weights(output: Path) -> dict:
    """Tensors of the last checkpoint as bytes, by name; the optimiser's and the average's too."""
    import torch

    state = torch.load(output / "model_final.pth", weights_only=True)
    return {
        name: value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value)
        for name, value in flat({key: state[key] for key in state if key != "meta"})
    }


def flat(value, name: str = ""):
    """Yield every leaf of nested dicts and lists with its path."""
    if isinstance(value, (dict, list, tuple)):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in entries:
            yield from flat(entry, f"{name}.{key}")
    else:
        yield name, value


def remembered(output: Path) -> dict:
    """Tensors of the checkpoint with a memory as bytes, by name."""
    import torch

    state = torch.load(output / "m.pth", weights_only=True)["model"]
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


def jobs(folder: Path) -> list[Job]:
    """Write the inputs; returns the jobs."""
    import world as makers

    world = makers.make_world(folder)
    _repeat(world)

    def line(call: str, **changed) -> list[str]:
        return try_faults.arguments(try_faults.SPEC["calls"][call], world, changed)

    remember = [*line("memory"), "--overwrite"]
    memory = Job("memory", remember, remember, remembered, "m.pth", 1)
    measure(memory, folder, folder / "memory")
    evaluate, paste = line("eval"), line("cut-paste")
    use_memory = line("eval", weights=folder / "memory/m.pth")
    use_memory += ["TEST.ANOMALY.SCORES", "['rba', 'memory']"]
    common = (figures, "inference/*/.kept-maps-*/*.label.npy", IMAGES)
    return [
        *_trainings(folder, world),
        Job("evaluation", evaluate, evaluate, *common),
        Job("with a memory", use_memory, use_memory, *common),
        memory,
        Job("cut-paste", paste, paste, pasted, "**/*_leftImg8bit.png", 200),
    ]


def _trainings(folder: Path, world: dict) -> list[Job]:
    """LoRA with dropout and averaging, on one process and on two, and the ratio head."""
    import runs

    common = ("SOLVER.MAX_ITER", STEPS, "SOLVER.CHECKPOINT_PERIOD", PERIOD)
    common += ("MODEL.CRITERION.MATCH_POINTS", 20, "MODEL.CRITERION.LOSS_POINTS", 20)
    lora = ("MODEL.LORA.ENABLED", True, "MODEL.LORA.RANK", 2, "MODEL.LORA.DROPOUT", 0.3)
    lora += ("SOLVER.EMA.ENABLED", True, "SOLVER.ACCUMULATION", 2, "SOLVER.IMS_PER_BATCH", 4)
    ratio = ("MODEL.EOMT.ANOMALY_CLASS", True, "MODEL.RATIO.ENABLED", True)
    found = []
    for name, more, overrides in (
        ("training", (), lora),
        ("ratio head", (), ratio),
        ("two processes", ("--num-gpus", "2"), lora),
    ):
        cfg = runs.small_run(folder, "run", *common, *overrides)
        cfg.DATASETS.TRAIN = ("faults",)
        cfg.DATASETS.CARDS = [str(world["card"])]
        config = folder / f"{name}.yaml".replace(" ", "_")
        config.write_text(cfg.dump())
        first = ["train", *more, "--config-file", str(config), "OUTPUT_DIR", "{out}"]
        again = ["train", "--resume", *first[1:]]
        found.append(Job(name, first, again, weights, "model_*.pth", STEPS))
    runs.write_dataset(folder, "faults", 4)  # small_run has named it otherwise
    return found


def _repeat(world: dict) -> None:
    """Repeat scenes and images, so that a generation and an evaluation take some seconds."""
    for path in sorted(world["scenes"].rglob("*.png")):
        for index in range(1, 100):
            name = path.name.replace("aachen_0000", f"aachen_{index:02d}00")
            shutil.copy(path, path.with_name(name))
    for folder in (world["photos"], *(world["photos"].with_name(n) for n in ("labels", "anomaly"))):
        for index in range(4, IMAGES):
            shutil.copy(folder / f"{index % 4}.png", folder / f"{index}.png")


def measure(job: Job, folder: Path, output: Path) -> None:
    """Run a job undisturbed."""
    log, tally = folder / f"{job.name}.txt", folder / f"{job.name}.renames"
    tally.write_bytes(b"")
    began = time.monotonic()
    status = Process(job, job.first, output, log, counting(tally)).wait(1200)
    job.seconds = time.monotonic() - began
    if status != 0:
        raise RuntimeError(f"{job.name} failed undisturbed:\n{log.read_text()[-3000:]}")
    job.expected, job.renames = job.outcome(output), tally.stat().st_size
    print(f"{job.name}: {job.seconds:.1f} s and {job.renames} renames undisturbed", flush=True)


def reach(job: Job, process: Process, output: Path, point: float) -> bool:
    """Wait until the job is at a point of its work; returns whether it still runs then."""
    seen = 0
    while process.poll() is None and seen < min(point, 1) * job.total:
        made = list(output.glob(job.marks))
        steps = [int(path.stem[6:]) + 1 for path in made if path.stem[6:].isdecimal()]
        seen = max(steps, default=0) if job.first[0] == "train" else len(made)
        time.sleep(0.005)
    if point > 1:  # what follows the last file leaves no marks
        process.wait((point - 1) * job.seconds)
    return process.poll() is None


def kill_from_outside(job: Job, start, rng: random.Random) -> tuple[Path, str]:
    """Kill a job at a random point of its work; returns its folder and the point."""
    point = rng.uniform(0, 1.2)
    for attempt in range(20):
        process, output = start(attempt)
        if reach(job, process, output, point):
            process.kill()
            return output, f"killed at {100 * point:.0f} %"
        if process.status != 0:
            log = (output.parent / "first.txt").read_text()
            raise RuntimeError(f"{job.name} ended with {process.status}:\n{log[-3000:]}")
        shutil.rmtree(output)
        point *= 0.9
    raise RuntimeError(f"{job.name} always ended before it could be killed")


def kill(job: Job, number: int, folder: Path, rng: random.Random) -> tuple[bool, str, str]:
    """Kill a job once and run it again.

    Returns:
        whether it was killed in a write, where, and what did not hold.
    """

    def start(attempt, replace=None):
        output = folder / f"{job.name} {number}.{attempt}"
        return Process(job, job.first, output, folder / "first.txt", replace), output

    in_write = job.renames > 0 and number % 2 == 1
    if in_write:
        how = rng.choice(("half written", "complete", "renamed"))
        rename = rng.randrange(job.renames)
        process, output = start(0, dying(rename, how))
        if process.wait(120 + 20 * job.seconds) != -signal.SIGKILL:
            raise RuntimeError(f"{job.name} was to die at rename {rename}, and did not")
        where = f"killed at file {rename + 1} of {job.renames}, {how}"
    else:
        output, where = kill_from_outside(job, start, rng)
    log = folder / "again.txt"
    process = Process(job, job.again, output, log)
    status = process.wait(120 + 20 * job.seconds)
    if status is None:
        process.kill()
        return in_write, where, "the second run hangs"
    if status:
        last = log.read_text().strip().splitlines()[-1:]
        return in_write, where, f"exit status {status}: {last}"
    found = job.outcome(output)
    shutil.rmtree(output)
    if found != job.expected:
        names = [n for n in {*found, *job.expected} if found.get(n) != job.expected.get(n)]
        return in_write, where, f"differs in {len(names)}: {sorted(names)[:3]}"
    return in_write, where, ""


def main() -> int:
    """Kill, resume, compare, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="in all (default: 50)")
    parser.add_argument("--only", choices=sorted(set(TURNS)), help="one job")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=120, help="begin no kill after these")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    args = parser.parse_args()
    args.json = args.json and args.json.resolve()
    try_faults.make_ready()
    try_faults.import_commands()
    began, rng = time.monotonic(), random.Random(args.seed)
    tried, held, writes = Counter(), Counter(), Counter()
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        chosen = {job.name: job for job in jobs(Path(name)) if args.only in (None, job.name)}
        for job in chosen.values():
            if job.expected is None:
                measure(job, Path(name), Path(name) / f"{job.name} through")
        for turn in cycle([turn for turn in TURNS if turn in chosen]):
            late = time.monotonic() - began > 60 * args.minutes
            if tried.total() == args.kills or late:
                break
            in_write, where, failure = kill(chosen[turn], tried[turn], Path(name), rng)
            tried[turn] += 1
            held[turn] += not failure
            writes[turn] += in_write
            print(f"{turn}, {where}: {failure or 'held'}", flush=True)
    print(f"\n{'job':<14} {'kills':>6} {'in a write':>11} {'held':>6}")
    for turn in chosen:
        print(f"{turn:<14} {tried[turn]:>6} {writes[turn]:>11} {held[turn]:>6}")
    print(f"{'all':<14} {tried.total():>6} {writes.total():>11} {held.total():>6}")
    if args.json:
        from anoseg_d2.utils.files import write_json

        write_json(args.json, {"kills": tried, "held": held, "in a write": writes})
    return int(held.total() < tried.total())


if __name__ == "__main__":
    sys.exit(main())
