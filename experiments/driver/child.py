"""Run one step as a subprocess, with its output in a log and its progress on the screen."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Progress", "Screen", "parse_progress", "run_child"]

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_TRAINING = re.compile(r"\beta: (?P<left>\S+(?: day[s]?, \S+)?)\s+iter: (?P<done>\d+)")
_INFERENCE = re.compile(r"Inference done (?P<done>\d+)/(?P<total>\d+).*ETA=(?P<left>\S+)")
# A line printed by `anoseg_d2.utils.cli.Progress`.
_COUNTED = re.compile(r"(?P<done>\d+)/(?P<total>\d+) (?P<unit>\w+), (?P<left>\d+) s left")
_PATIENCE = 120  # seconds that a child may take to finish its step and save


@dataclass(frozen=True)
class Progress:
    """The state that a line of output reports, and the seconds left in this part of the step."""

    text: str
    seconds_left: float


def parse_progress(line: str, max_iter: int | None = None) -> Progress | None:
    """Read the progress from a line of detectron2's or the data scripts' output.

    Args:
        line: line of output, without colours.
        max_iter: training steps of the stage; without it, training lines are ignored.
    Returns:
        the progress, or None if the line has none.
    """
    if max_iter and (match := _TRAINING.search(line)):
        text = f"step {int(match['done']) + 1}/{max_iter}"
        return Progress(text, _seconds(match["left"]))
    if match := _INFERENCE.search(line):
        return Progress(f"evaluating {match['done']}/{match['total']}", _seconds(match["left"]))
    if match := _COUNTED.search(line):
        text = f"{match['done']}/{match['total']} {match['unit']}"
        return Progress(text, float(match["left"]))
    return None


def _seconds(text: str) -> float:
    """Return the seconds of `H:MM:SS`, perhaps preceded by `N days, `."""
    days = re.match(r"(\d+) days?, ", text)
    clock = [float(part) for part in text.rpartition(" ")[2].split(":")]
    total = sum(part * 60**power for power, part in enumerate(reversed(clock)))
    return total + (86400 * int(days[1]) if days else 0)


class Screen:
    """A line that is updated in place on a terminal; otherwise a line from time to time.

    Args:
        stream: text stream; None is standard output.
        period: seconds between lines if the stream is not a terminal.
        quiet: print nothing.
    """

    def __init__(self, stream=None, period: float = 30.0, quiet: bool = False):
        self.stream, self.quiet = stream or sys.stdout, quiet
        self.period = period if not self.stream.isatty() else 0.0
        # None means never; not 0, because a monotonic clock may start anywhere.
        self._shown: float | None = None
        self._open = False

    def show(self, text: str) -> None:
        """Show a temporary state."""
        now = time.monotonic()
        if self.quiet or (self._shown is not None and now - self._shown < self.period):
            return
        self._shown = now
        if self.period:
            print(text, file=self.stream, flush=True)
        else:
            print(f"\r\x1b[K{text[:99]}", end="", file=self.stream, flush=True)
            self._open = True

    def say(self, text: str = "") -> None:
        """Print a line that stays."""
        if self.quiet:
            return
        if self._open:
            print("\r\x1b[K", end="", file=self.stream)
        self._open = False
        print(text, file=self.stream, flush=True)


def run_child(command, log: Path, environment: dict, tick, max_iter=None) -> tuple[int, float]:
    """Run `command`, append its output to `log`, and call `tick(progress or None)` repeatedly.

    The child gets its own session, so that Ctrl-C reaches it only once, through this process: it
    then finishes its training step and saves. A second Ctrl-C ends it immediately.

    Returns:
        exit status; peak resident memory in MiB (0 on systems without /proc).
    Raises:
        KeyboardInterrupt: after a Ctrl-C or SIGTERM, once the child has ended.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    )
    reader = _Reader(process.stdout, log, command, max_iter)
    reader.start()
    peak = 0.0
    try:
        while process.poll() is None:
            peak = max(peak, _peak_mib(process.pid))
            tick(reader.progress)
            time.sleep(0.5)
    except KeyboardInterrupt:
        _stop(process)
        reader.join(timeout=10)
        raise
    reader.join(timeout=10)
    return process.returncode, peak


def _peak_mib(pid: int) -> float:
    """Return the peak resident memory of a running process so far.

    The rusage of a finished child would include the pages of this process, with which it starts.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(match[1]) / 1024 if match else 0.0


def _stop(process) -> None:
    """Ask the child to finish; kill it if it takes too long or after a second Ctrl-C."""
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(timeout=_PATIENCE)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class _Reader(threading.Thread):
    """Thread that copies a child's output into the log and keeps the last progress."""

    def __init__(self, stream, log: Path, command, max_iter):
        super().__init__(daemon=True)
        self.stream, self.log, self.command, self.max_iter = stream, log, command, max_iter
        self.progress: Progress | None = None

    def run(self):
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"\n$ {' '.join(map(str, self.command))}\n")
            for raw in self.stream:
                line = _ANSI.sub("", raw)
                log.write(line)
                log.flush()
                self.progress = parse_progress(line, self.max_iter) or self.progress
