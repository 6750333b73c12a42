"""What every command does alike: exit status, progress, own modules.

Nothing heavy is imported here, so that `--help` and a mistyped option answer at once.
"""

import argparse
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable

from tqdm import tqdm

__all__ = [
    "TRACEBACK",
    "USER_ERRORS",
    "Progress",
    "add_import_option",
    "import_modules",
    "one_message",
    "run_command",
]

# Environment variable that shows the whole traceback of a user's mistake.
TRACEBACK = "ANOSEG_TRACEBACK"

# A user's mistake, or something that the machine refuses: one line says enough. Anything else is
# a defect of ours, and its traceback is what we need to see.
USER_ERRORS = (ValueError, OSError, ImportError, MemoryError, FloatingPointError)
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


def run_command(work: Callable[[], int | None], stopped: str = "stopped") -> int:
    """Call `work()` as a command.

    Args:
        work: the command; returns its exit status, None for 0. SIGTERM reaches it as a
            KeyboardInterrupt, like Ctrl-C, so that it can leave things in order.
        stopped: what to say when it is interrupted, such as how to continue.
    Returns:
        exit status: 2 after a user's mistake, 130 when interrupted.
    """
    # Ctrl-C is set too: a shell starts background jobs with it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        return work() or 0
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
    except (*USER_ERRORS, RuntimeError) as error:
        defect = isinstance(error, RuntimeError) and not _says_no_memory(error)
        if defect or os.environ.get(TRACEBACK):
            raise
        print(f"error: {one_message(error)}", file=sys.stderr)
        return 2


def _says_no_memory(error: RuntimeError) -> bool:
    words = str(error).lower()
    return any(phrase in words for phrase in _NO_MEMORY)


def one_message(error: BaseException) -> str:
    """Return what an error says, without the traceback that a worker process wraps around it."""
    text = str(error).strip() or type(error).__name__
    if "Traceback (most recent call last)" not in text:
        return text
    # The last line is "SomeError: message"; only the message is for the user.
    return text.splitlines()[-1].partition(": ")[2] or text.splitlines()[-1]


class Progress:
    """Progress of a long job: a bar on a terminal, elsewhere a line now and then.

    Args:
        what: what is being done, such as "checked".
        total: number of steps.
        unit: what is counted.
        period: seconds between lines where stderr is not a terminal.

    Example::

        with Progress("pasted", len(images)) as progress:
            for image in images:
                ...
                progress.update()
    """

    def __init__(self, what: str, total: int, unit: str = "images", period: float = 30.0):
        self.what, self.total, self.unit, self.period = what, total, unit, period
        self.done = 0
        self._start = time.monotonic()
        self._shown = None  # never: the clock itself may start anywhere
        self._bar = tqdm(total=total, desc=what, unit=f" {unit}", disable=None, leave=False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def update(self, steps: int = 1) -> None:
        """Count finished steps."""
        self.done += steps
        self._bar.update(steps)
        now = time.monotonic()
        due = self._shown is None or now - self._shown >= self.period or self.done == self.total
        if self._bar.disable and due:
            left = (now - self._start) / max(self.done, 1) * (self.total - self.done)
            print(
                f"{self.what} {self.done}/{self.total} {self.unit}, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
            self._shown = now


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """Add `--import MODULE`, which may be given several times, as `args.imports`."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="Python module to import first, where you register a head, score, filter or "
        "object source of your own; may be given several times",
    )


def import_modules(names: Iterable[str]) -> None:
    """Import modules by name, also from the current folder.

    Args:
        names: dotted module names.
    Raises:
        ImportError: a module is missing, or one that it needs is; the message names both.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # where `python script.py` looks in the script's folder
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f"cannot import {name!r}, asked for by --import or MODEL.IMPORTS: {error}"
            ) from error
