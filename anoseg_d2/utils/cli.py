"""Behaviour that all commands share: exit status, progress, and the user's own modules.

Nothing heavy is imported here, so that `--help` and mistyped options respond at once.
"""

import argparse
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping

from tqdm import tqdm

from anoseg_d2.utils.ranges import Rule

__all__ = [
    "MAX_WORKERS",
    "TRACEBACK",
    "USER_ERRORS",
    "Progress",
    "add_import_option",
    "check_options",
    "import_modules",
    "one_message",
    "run_command",
]

# Environment variable that shows the whole traceback after a user's mistake.
TRACEBACK = "ANOSEG_TRACEBACK"

# Processes or threads; far more than a machine runs well.
MAX_WORKERS = 1000

# For a user's mistake or a limit of the machine, one line says enough. Anything else is a defect
# of ours, and then we need the traceback.
USER_ERRORS = (ValueError, OSError, ImportError, MemoryError, FloatingPointError)
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


def run_command(work: Callable[[], int | None], stopped: str = "stopped") -> int:
    """Run `work()` as a command.

    Args:
        work: the command; returns its exit status, None for 0. SIGTERM reaches it as a
            KeyboardInterrupt, like Ctrl-C, so that it can clean up.
        stopped: message when it is interrupted, such as how to continue.
    Returns:
        exit status: 2 after a user's mistake, 130 after an interruption.
    """
    # SIGINT needs it too, because shells start background jobs with SIGINT ignored.
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
    """Return the message of an error without the traceback that a worker process adds to it."""
    text = str(error).strip() or type(error).__name__
    if "Traceback (most recent call last)" not in text:
        return text
    # The last line is "SomeError: message"; only the message is for the user.
    return text.splitlines()[-1].partition(": ")[2] or text.splitlines()[-1]


class Progress:
    """Progress of a long job: a bar on a terminal, otherwise a line from time to time.

    Args:
        what: what was done to each item, such as "checked".
        total: number of steps.
        unit: name of the items.
        period: seconds between lines if stderr is not a terminal.

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
        self._shown = None  # never shown; not 0, because a monotonic clock may start anywhere
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


def check_options(args: argparse.Namespace, rules: Mapping[str, Rule]) -> None:
    """Check options before any work; None, which stands for a default, is left out.

    Args:
        args: parsed command line.
        rules: option, such as "--min-size", to what it may be; each value of an option that takes
            several.
    Raises:
        ValueError: names the option, what was given and what is allowed.
    """
    for option, rule in rules.items():
        given = getattr(args, option.lstrip("-").replace("-", "_"))
        for value in given if isinstance(given, (list, tuple)) else (given,):
            if value is not None:
                rule.check(option, value)


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """Add `--import MODULE`, which may be repeated, as `args.imports`."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="Python module to import first, in which you register your own head, score, filter or "
        "object source; may be repeated",
    )


def import_modules(names: Iterable[str]) -> None:
    """Import modules by name, also from the current folder.

    Args:
        names: dotted module names.
    Raises:
        ImportError: a module, or one that it imports, is missing; the message names both.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:
        # `python folder/script.py` searches the script's folder, not the current one.
        sys.path.insert(0, os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        # Python answers an empty name, and one with a leading dot, by other errors.
        except (ImportError, ValueError, TypeError) as error:
            raise ImportError(
                f"cannot import {name!r}, given by --import or MODEL.IMPORTS: {error}"
            ) from error
