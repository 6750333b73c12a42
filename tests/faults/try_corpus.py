#!/usr/bin/env python3
"""Try every broken input of `corpus.py` and `more_corpus.py`, and print which calls held.

    python tests/faults/try_corpus.py
    python tests/faults/try_corpus.py --door demo --match "image"
    python tests/faults/try_corpus.py --sample 30 --json figures.json
    python tests/faults/try_corpus.py --skip 1200 --jobs 4

A call holds when it ends with the right exit status and one message that names what is wrong,
without a traceback, a signal or a file outside its folder, within 10 s and 2 GiB. The commands are
imported once; each call then runs in a forked process of its own, whose peak memory the system
counts. Its seconds leave out those in which it was ready but another process had the processor, so
that a busy machine changes no verdict. Exit status: 0 all held, 1 some did not.
"""

import argparse
import contextlib
import importlib
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (".", "tools", "datasets", "experiments", "demo", "tests", "tests/engine", "tests/faults")
SECONDS, MEMORY = 10.0, 2 << 30
# Door: the module of its command, and the function that takes the arguments.
DOORS = {
    "train_net": "anoseg_d2.commands.train:main",
    "--eval-only": "anoseg_d2.commands.train:main",
    "configs": "anoseg_d2.commands.train:main",
    "demo": "anoseg_d2.commands.predict:main",
    "export_model": "export_model:main",
    "convert_checkpoint": "anoseg_d2.commands.convert:main",
    "build_memory": "anoseg_d2.commands.memory:main",
    "evaluate_maps": "evaluate_maps:main",
    "compare": "anoseg_d2.commands.compare:main",
    "submit": "anoseg_d2.commands.submit:main",
    "card": "anoseg_d2.commands.card:main",
    "app": "anoseg_d2.commands.app:main",
    "plot_results": "plot_results:main",
    "check": "check:main",
    "cards": "check:main",
    "prepare_cut_paste": "prepare_cut_paste:main",
    "recipes": "run:main",
}
# What the commands import only when they need it; that time is not a call's.
LAZY = ("anoseg_d2.engine", "anoseg_d2.data.builtin", "detectron2.utils.logger", "cv2", "h5py")
LAZY += ("onnx", "onnxruntime", "onnxscript", "torch.onnx", "scipy.optimize", "matplotlib.pyplot")


@dataclass
class Outcome:
    """How a call ended."""

    status: int
    seconds: float
    memory: int
    output: str

    def failure(self, case, folder: Path) -> str:
        """Say in what way the call did not hold; empty when it did."""
        if self.seconds > SECONDS:
            return f"took {self.seconds:.0f} s"
        if self.memory > MEMORY:
            return f"took {self.memory / 2**20:.0f} MiB"
        if self.status < 0:
            return f"died by {signal.Signals(-self.status).name}"
        lines = [line for line in self.output.splitlines() if line.strip()]
        if any(line.startswith("Traceback (most recent call last)") for line in lines):
            return f"traceback: {lines[-1]}"
        if self.status not in case.status:
            return f"exit status {self.status}, not {case.status}: {lines[-1:]}"
        if self.status == 0:
            return ""
        names = (case.names,) if isinstance(case.names, str) else case.names
        if not any(name.lower() in self.output.lower() for name in names):
            return f"does not name {case.names!r}: {lines[-1:]}"
        errors = sum(line.startswith("error: ") or ": error: " in line for line in lines)
        if not all(names):
            return "the case does not say what the message must name"
        if self.status == 2 and errors != 1:
            return f"{errors} messages: {lines[-2:]}"
        return ""


def start(case, output: Path, log: Path) -> int:
    """Run one call in a forked process; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        os.setsid()
        stream = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        module, _, name = DOORS[case.door].partition(":")
        command = getattr(importlib.import_module(module), name)
        argv = [argument.replace("{out}", str(output)) for argument in case.argv]
        sys.argv = [module, *argv]
        status = command(argv)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        importlib.import_module("traceback").print_exc()
        status = 98
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(status or 0)


def resident(pid: int) -> int:
    """Bytes of memory that a process holds now."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def queued(pid: int) -> float:
    """Seconds that a process has waited for a processor; 0 where the system does not count them."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def try_all(cases, folder: Path, jobs: int = 2):
    """Run the cases, a few at a time; yields each with its outcome."""
    todo, running = list(enumerate(cases)), {}
    while todo or running:
        while todo and len(running) < jobs:
            index, case = todo.pop(0)
            output, log = folder / f"out/{index}", folder / f"log/{index}.txt"
            output.mkdir(parents=True)
            log.parent.mkdir(exist_ok=True)
            running[start(case, output, log)] = (case, log, time.monotonic())
        for pid, (case, log, began) in list(running.items()):
            seconds = time.monotonic() - began - queued(pid)
            # A call over the limits is stopped well above them, which shows by how much.
            if seconds > 3 * SECONDS or resident(pid) > 2 * MEMORY:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            ended, status, usage = os.wait4(pid, os.WNOHANG)
            if ended:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)  # what the call may have left running
                del running[pid]
                text = log.read_text(errors="replace")
                code = os.waitstatus_to_exitcode(status)
                yield case, Outcome(code, seconds, usage.ru_maxrss << 10, text)
        time.sleep(0.02)


def planted(folder: Path) -> list[str]:
    """Files that a broken input has put where none belongs."""
    found = [Path("/tmp/planted"), Path("/tmp/escaped"), *folder.parent.glob("escaped*")]
    found += [path for path in folder.glob("**/escaped*") if "broken" not in path.parts]
    return [str(path) for path in found if path.exists()]


def import_doors() -> None:
    """Import every command and what it would import later."""
    for name in (*{door.partition(":")[0] for door in DOORS.values()}, *LAZY):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def make_ready() -> None:
    """Start this script anew with the environment that the commands need."""
    if os.environ.get("FAULTS_READY") != "1":
        path = os.pathsep.join(str(ROOT / folder) for folder in FOLDERS)
        ready = {"FAULTS_READY": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        ready |= {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ready})


def run(args) -> int:
    """Build the corpus, try it, print a table per door."""
    import_doors()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        os.chdir(folder)
        cases = importlib.import_module("more_corpus").build_corpus(folder)
        cases = cases[args.skip :]
        if args.door:
            cases = [case for case in cases if case.door == args.door]
        if args.match:
            cases = [case for case in cases if args.match in f"{case.door} {case.name}"]
        if args.sample:
            cases = cases[:: max(1, len(cases) // args.sample)][: args.sample]
        tried, held, failures = Counter(), Counter(), []
        slowest, largest = 0.0, 0
        for case, outcome in try_all(cases, folder, args.jobs):
            failure = outcome.failure(case, folder)
            tried[case.door] += 1
            held[case.door] += not failure
            slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.memory)
            if failure:
                failures.append((case.door, case.name, failure))
                print(f"not held: {case.door}, {case.name!r}: {failure}"[:600], flush=True)
            if args.show:
                print(f"--- {case.door} {case.name!r} {outcome.status}\n{outcome.output}")
        for path in planted(folder):
            failures.append(("all", "files outside", path))
            print(f"not held: {path} was written")
    print(f"\n{'door':<20} {'cases':>6} {'held':>6}")
    for door in DOORS:
        if tried[door]:
            print(f"{door:<20} {tried[door]:>6} {held[door]:>6}")
    print(f"{'all':<20} {tried.total():>6} {held.total():>6}")
    print(f"slowest call: {slowest:.1f} s; most memory: {largest / 2**20:.0f} MiB")
    if args.json:
        from anoseg_d2.utils.files import write_json

        doors = {door: {"cases": tried[door], "held": held[door]} for door in tried}
        write_json(args.json, {"doors": doors, "failures": failures})
    return 1 if failures else 0


def main() -> int:
    """Set the environment that the commands need, and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--door", choices=list(DOORS), help="only this command")
    parser.add_argument("--match", help="only cases whose door and name contain this text")
    parser.add_argument("--sample", type=int, help="about this many cases, spread over all doors")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first cases, to go on")
    parser.add_argument("--jobs", type=int, default=2, help="calls at once (default: 2)")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.add_argument("--show", action="store_true", help="print what every call said")
    args = parser.parse_args()
    make_ready()
    args.json = args.json and args.json.resolve()
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
