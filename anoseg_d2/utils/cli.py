"""Behaviour that all commands share: exit status, how much they say, and the user's own modules.

Nothing heavy is imported here, so that `--help` and mistyped options respond at once.
"""

import argparse
import importlib
import logging
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
    "add_verbosity_options",
    "check_options",
    "duration",
    "import_modules",
    "one_message",
    "run_command",
    "say",
    "set_verbosity",
]

# Environment variable that shows the whole traceback after a user's mistake.
TRACEBACK = "ANOSEG_TRACEBACK"

# Processes or threads; far more than a machine runs well.
MAX_WORKERS = 1000

# For a user's mistake or a limit of the machine, one line says enough. Anything else is a defect
# of ours, and then we need the traceback.
USER_ERRORS = (ValueError, OSError, ImportError, MemoryError, FloatingPointError)
# RuntimeErrors that say as much: no memory left, or symbolic links in a circle (`Path.resolve`).
_NO_DEFECT = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
_NO_DEFECT += ("symlink loop",)


# -1 after --quiet, 1 after --verbose; of the whole process, like the streams that it is about.
_verbosity = 0


def add_verbosity_options(parser: argparse.ArgumentParser, default=None) -> None:
    """Add `-q` and `-v`, which exclude each other, as `args.verbosity`: -1, 0 or 1.

    Args:
        parser: of the command.
        default: without either; None is what the process is set to, so that `anoseg -q COMMAND`
            counts as well.
    """
    default = _verbosity if default is None else default
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "-q",
        "--quiet",
        dest="verbosity",
        action="store_const",
        const=-1,
        default=default,
        help="print only warnings and errors",
    )
    group.add_argument(
        "-v",
        "--verbose",
        dest="verbosity",
        action="store_const",
        const=1,
        default=default,
        help="print more, and the whole traceback of an error",
    )


def set_verbosity(verbosity: int) -> None:
    """Set how much this process says, and what of the log appears on stderr.

    Args:
        verbosity: as `add_verbosity_options` gives it.
    """
    global _verbosity
    _verbosity = verbosity
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger().setLevel(logging.INFO if verbosity > 0 else logging.WARNING)


def say(text: object = "", file=None) -> None:
    """Print a line of a command's own output, unless it was called with `--quiet`."""
    if _verbosity >= 0:
        print(text, file=file, flush=True)


def run_command(
    work: Callable[[], int | None], stopped: str = "stopped", verbosity: int = 0
) -> int:
    """Run `work()` as a command.

    Args:
        work: the command; returns its exit status, None for 0. SIGTERM reaches it as a
            KeyboardInterrupt, like Ctrl-C, so that it can clean up.
        stopped: message when it is interrupted, such as how to continue.
        verbosity: as `add_verbosity_options` gives it.
    Returns:
        exit status: 2 after a user's mistake, 130 after an interruption.
    """
    before = _verbosity
    set_verbosity(verbosity)
    # SIGINT needs it too, because shells start background jobs with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    # Names of files may hold bytes that are not UTF-8, which a strict stream would not print.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # tests and notebooks put other streams there
            stream.reconfigure(errors="backslashreplace")
    try:
        return work() or 0
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
    except (*USER_ERRORS, RuntimeError) as error:
        defect = isinstance(error, RuntimeError) and not _is_no_defect(error)
        if defect or verbosity > 0 or os.environ.get(TRACEBACK):
            raise
        print(f"error: {one_message(error)}", file=sys.stderr)
        return 2
    finally:
        set_verbosity(before)  # a caller in Python may run the next command loud again


def _is_no_defect(error: RuntimeError) -> bool:
    words = str(error).lower()
    return any(phrase in words for phrase in _NO_DEFECT)


def one_message(error: BaseException) -> str:
    """Return the message of an error without the traceback that a worker process adds to it."""
    text = str(error).strip() or type(error).__name__
    if "Traceback (most recent call last)" not in text:
        return text
    # The last line is "SomeError: message"; only the message is for the user.
    return text.splitlines()[-1].partition(": ")[2] or text.splitlines()[-1]


class Progress:
    """Progress of a long job: a bar on a terminal, otherwise a line from time to time.

    A job of a few seconds shows nothing, and neither does any job after `--quiet`.

    Args:
        what: what was done to each item, such as "checked".
        total: number of steps.
        unit: name of the items.
        period: seconds between lines if stderr is not a terminal.
        delay: seconds before the first line.

    Example::

        with Progress("pasted", len(images)) as progress:
            for image in images:
                ...
                progress.update()
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str = "images",
        period: float = 30.0,
        delay: float = 5.0,
    ):
        self.what, self.total, self.unit = what, total, unit
        self.period, self.delay = period, delay
        self.done = 0
        self._start = time.monotonic()
        self._shown = None  # never shown; not 0, because a monotonic clock may start anywhere
        self._bar = tqdm(
            total=total,
            desc=what,
            unit=f" {unit}",
            disable=True if _verbosity < 0 else None,
            leave=False,
            delay=min(delay, 1.0),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def update(self, steps: int = 1) -> None:
        """Count finished steps."""
        self.done += steps
        self._bar.update(steps)
        if not self._bar.disable or _verbosity < 0:
            return
        now = time.monotonic()
        if self._shown is None:
            due = now - self._start >= self.delay
        else:
            due = now - self._shown >= self.period or self.done == self.total
        if due:
            left = (now - self._start) / max(self.done, 1) * (self.total - self.done)
            print(
                f"{self.what} {self.done}/{self.total} {self.unit}, {duration(left)} left",
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


def duration(seconds: float) -> str:
    """Write a time as people do: `12 s`, `3 min`, `2 h 5 min`, `3 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"


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
        names: dotted module names. Without any, Python does not search the current folder.
    Raises:
        ImportError: a module, or one that it imports, is missing; the message names both.
    """
    names = list(names)
    # Last, because nothing in the current folder may take the place of an installed module: a file
    # named torch.py that lies there by chance or by malice would run.
    if names and "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        # Python answers an empty name, and one with a leading dot, by other errors.
        except (ImportError, ValueError, TypeError) as error:
            raise ImportError(
                f"cannot import {name!r}, given by --import or MODEL.IMPORTS: {error}"
            ) from error
