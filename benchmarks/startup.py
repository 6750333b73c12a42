"""Measure how fast commands answer, against `python -c "import torch"`; the sides take turns.

    python benchmarks/startup.py --json startup.json

The commands are those that need no torch: help texts, and mistakes in arguments.
Every turn starts each command once, in a fresh interpreter. Figures are medians of seconds of
processor time (user and system) and of wall-clock time. Bytecode is compiled in the first turn,
which is not counted.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from anoseg_d2.utils.files import write_json

ROOT = Path(__file__).resolve().parents[1]
PEER = "import torch"
# Name to arguments of Python and the exit status that is expected.
COMMANDS = {
    PEER: (["-c", "import torch"], 0),
    "train --help": (["-m", "anoseg_d2", "train", "--help"], 0),
    "train, no process": (["-m", "anoseg_d2", "train", "--num-gpus", "0"], 2),
    "predict --help": (["-m", "anoseg_d2", "predict", "--help"], 0),
    "predict, no such input": (
        ["-m", "anoseg_d2", "predict", "gone.png", "--weights", "w.pth"],
        2,
    ),
}


def measure(arguments: list[str], status: int) -> tuple[float, float]:
    """Run Python once; returns seconds of processor time and of wall-clock time."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    _, ended, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(ended)
    if process.returncode != status:
        raise RuntimeError(
            f"python {' '.join(arguments)} ended with {process.returncode}, not {status}"
        )
    return used.ru_utime + used.ru_stime, wall


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=7, help="turns that are counted")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    cpu = {name: [] for name in COMMANDS}
    wall = {name: [] for name in COMMANDS}
    for turn in range(args.repeat + 1):
        for name, (arguments, status) in COMMANDS.items():
            used, passed = measure(arguments, status)
            if turn:
                cpu[name].append(used)
                wall[name].append(passed)
    print("| command | CPU s | ratio | wall s | ratio |")
    print("|---|---|---|---|---|")
    rows = []
    for name in COMMANDS:
        seconds, passed = statistics.median(cpu[name]), statistics.median(wall[name])
        row = {
            "command": name,
            "cpu_seconds": seconds,
            "cpu_ratio": seconds / statistics.median(cpu[PEER]),
            "wall_seconds": passed,
            "wall_ratio": passed / statistics.median(wall[PEER]),
        }
        rows.append(row)
        print(
            f"| {name} | {seconds:.2f} | {row['cpu_ratio']:.2f} "
            f"| {passed:.2f} | {row['wall_ratio']:.2f} |"
        )
    if args.json:
        write_json(args.json, {"machine": platform.machine(), "against": PEER, "rows": rows})


if __name__ == "__main__":
    main()
