"""Run one step as a subprocess, with its output in a log and its progress on the screen."""

import ctypes
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
# What detectron2 logs of a training and of an evaluation, and our own jobs of themselves.
_LINES = (
    re.compile(r"eta: (?P<left>\S.*?)  (?P<what>iter: \d+)"),
    re.compile(r"Inference done (?P<what>\d+/\d+)\..* ETA=(?P<left>.+)"),
    re.compile(r"(?P<what>\d+/\d+(?: \w+)?), (?P<left>\d+) s left"),
)
_PATIENCE = 120  # seconds that a child may take to finish its step and save


@dataclass(frozen=True)
class Progress:
    """The state that a line of output reports, and the seconds left in this part of the step."""

    text: str
    seconds_left: float


def parse_progress(line: str) -> Progress | None:
    """Read the progress from a line that training or a command printed; None if it has none."""
    match = next(filter(None, (pattern.search(line) for pattern in _LINES)), None)
    if match is None:
        return None
    # As Python writes a timedelta: "0:01:02", "1 day, 2:00:00"; of our own jobs just seconds.
    days, _, clock = match["left"].rpartition(", ")
    left = 0
    for part in clock.split(":"):
        left = 60 * left + int(part)
    return Progress(match["what"], left + 86400 * int(days.split()[0] if days else 0))


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


def run_child(command, log: Path, environment: dict, tick) -> tuple[int, float]:
    """Run `command`, append its output to `log`, and call `tick(progress or None)` repeatedly.

    The child gets its own session, so that Ctrl-C reaches it only once, through this process: it
    then finishes its training step and saves. A second Ctrl-C ends it immediately. It never
    outlives this process: if this one is killed, Linux sends the child SIGTERM.

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
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )
    reader = _Reader(process.stdout, log, command)
    reader.start()
    peak = 0.0
    try:
        while process.poll() is None:
            peak = max(peak, _peak_mib(process.pid))
            tick(reader.progress)
            time.sleep(0.5)
    except BaseException:  # also a screen that cannot be written to must not leave it running
        _stop(process)
        reader.join(timeout=10)
        raise
    reader.join(timeout=10)
    return process.returncode, peak


def _end_with_parent() -> None:
    """Ask Linux to send SIGTERM to this process when its parent ends (prctl's PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


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
            # Not SIGINT, which a shell has background jobs, and so their children, ignore.
            process.send_signal(signal.SIGTERM)
        process.wait(timeout=_PATIENCE)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class _Reader(threading.Thread):
    """Thread that copies a child's output into the log and keeps the last progress."""

    def __init__(self, stream, log: Path, command):
        super().__init__(daemon=True)
        self.stream, self.log, self.command = stream, log, command
        self.progress: Progress | None = None

    def run(self):
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"\n$ {' '.join(map(str, self.command))}\n")
            for raw in self.stream:
                line = _ANSI.sub("", raw)
                log.write(line)
                log.flush()
                self.progress = parse_progress(line) or self.progress
