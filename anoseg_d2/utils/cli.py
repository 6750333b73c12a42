"""Give all commands the same exit status, verbosity and imports of the user's modules.

Nothing heavy is imported here, so that `--help` and mistyped options respond at once.
"""

import argparse
import functools
import importlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping

from tqdm import tqdm

from anoseg_d2.utils.ranges import Rule

# Processes or threads; far more than a machine runs well.
MAX_WORKERS = 1000

# For a user's mistake or a limit of the machine, one line says enough. Anything else is a defect
# of ours, and then we need the traceback.
USER_ERRORS = (ValueError, OSError, ImportError, MemoryError, FloatingPointError)
# What a plain RuntimeError says of such a limit: memory on CPUs and GPUs, and processes.
_LIMITS = (
    *("out of memory", "allocate memory", "not enough memory", "alloc_failed", "bad_alloc"),
    *("can't start new thread", "dataloader worker", "shared memory"),
)

# -1 after --quiet, 1 after --verbose; of the whole process, like the streams that it is about.
_verbosity = 0


def build_parser(description: str, imports: bool = False) -> argparse.ArgumentParser:
    """Return a parser with the options that all commands have; `imports` adds `--import`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_verbosity_options(parser)
    if imports:
        add_import_option(parser)
    return parser


def add_verbosity_options(parser: argparse.ArgumentParser, default=None) -> None:
    """Add `-q` and `-v`, which exclude each other, as `args.verbosity`: -1, 0 or 1.

    Without a `default` it is what the process is set to, so that `anoseg -q COMMAND` counts too.
    """
    default = _verbosity if default is None else default
    group = parser.add_mutually_exclusive_group()
    for letter, name, value, text in (
        ("-q", "--quiet", -1, "print only warnings and errors"),
        ("-v", "--verbose", 1, "print more, and the whole traceback of an error"),
    ):
        options = {"dest": "verbosity", "action": "store_const", "const": value}
        group.add_argument(letter, name, default=default, help=text, **options)


def set_verbosity(verbosity: int) -> None:
    """Set the verbosity of this process, and which log messages go to stderr."""
    global _verbosity
    _verbosity = verbosity
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger().setLevel(logging.INFO if verbosity > 0 else logging.WARNING)


def say(text: object = "", file=None) -> None:
    """Print a line of a command's own output, unless it was called with `--quiet`."""
    if _verbosity >= 0:
        print(printable(text, keep="\n\t"), file=file, flush=True)


def command(
    build_parser: Callable[[], argparse.ArgumentParser],
    rules: Mapping[str, Rule] | None = None,
    stopped: str = "stopped",
    *,
    mixed: bool = False,
) -> Callable:
    """Make a function of the parsed arguments a command, `main(argv=None) -> exit status`.

    Args:
        rules: see `check_options`, which comes before any work.
        stopped: see `run_command`; {NAME} stands for the value of an option.
        mixed: options may stand between positional arguments.
    """

    def decorate(work: Callable[[argparse.Namespace], int | None]) -> Callable:
        @functools.wraps(work)
        def main(argv: list[str] | None = None) -> int:
            parser = build_parser()
            args = (parser.parse_intermixed_args if mixed else parser.parse_args)(argv)

            def checked() -> int | None:
                check_options(args, rules or {})
                import_modules(getattr(args, "imports", ()))
                return work(args)

            return run_command(checked, stopped.format_map(vars(args)), args.verbosity)

        return main

    return decorate


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
    for stream in (sys.stdout, sys.stderr):
        # Names of files may hold bytes that are not UTF-8, which a strict stream would not print.
        if hasattr(stream, "reconfigure"):  # tests and notebooks put others there
            stream.reconfigure(errors="backslashreplace")
    # A log that cannot be written, on a full disk, must not print a page for every line.
    logging.raiseExceptions = False
    # Where in our code a warning is raised tells a user nothing.
    long_form = warnings.formatwarning
    warnings.formatwarning = lambda message, *_: printable(f"warning: {message}", "\t") + "\n"
    try:
        return work() or 0
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
    except (*USER_ERRORS, RuntimeError) as error:
        limit = any(phrase in str(error).lower() for phrase in _LIMITS)
        if not (isinstance(error, USER_ERRORS) or limit) or verbosity > 0:
            raise
        print(printable(f"error: {one_message(error)}", keep="\n\t"), file=sys.stderr)
        return 2
    finally:
        warnings.formatwarning = long_form
        set_verbosity(before)  # a caller in Python may run the next command loud again


def one_message(error: BaseException) -> str:
    """Return the message of an error without the traceback that a worker process adds to it."""
    text = str(error).strip() or type(error).__name__
    if "Traceback (most recent call last)" in text:
        # The last line is "SomeError: message"; only the message is for the user.
        text = text.splitlines()[-1].partition(": ")[2] or text.splitlines()[-1]
    return text


def printable(text: object, keep: str = "") -> str:
    """Replace control characters, except those in `keep`, by escapes such as `\\x1b`.

    For names that come from strangers: in a terminal they could set its title, or forge a message.
    """
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode()
        for c in str(text)
    )


class Progress(tqdm):
    """Progress of a long job: a bar on a terminal, elsewhere a line from time to time.

    After `--quiet` it shows nothing.

    Args:
        what: what was done to each item, such as "checked".
        total: number of steps; None when nobody knows.
        unit: name of the items.
        period: seconds between two lines if stderr is not a terminal.
    """

    monitor_interval = 0  # no thread of tqdm's: `update` looks at the clock every time

    def __init__(self, what: str, total: int | None, unit: str = "images", period: float = 30.0):
        bar = sys.stderr.isatty()
        # Without a terminal, each state is a line of its own; the driver of experiments reads them.
        line = "{desc} {n_fmt}/{total_fmt}{unit}, {remaining_s:.0f} s left\n"
        if total is None:
            line = "{desc} {n_fmt}{unit} in {elapsed_s:.0f} s\n"
        super().__init__(
            desc=printable(what),
            total=total,
            unit=f" {unit}",
            disable=_verbosity < 0,
            leave=False,
            delay=1.0 if bar else period,
            miniters=1,
            mininterval=0.1 if bar else period,
            bar_format=None if bar else line,
        )


def check_options(args: argparse.Namespace, rules: Mapping[str, Rule]) -> None:
    """Check options before any work; None, which stands for a default, is left out.

    Args:
        args: parsed command line.
        rules: option, such as "--min-size", to what each of its values may be.
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
        help="Python module to import first, in which you register your own head or score; "
        "may be repeated",
    )


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add `--device` and `--opts`; both give config keys and values in turn, as `args.opts`."""
    device = {"type": lambda name: ["MODEL.DEVICE", name], "metavar": "NAME"}
    device["help"] = "such as cpu or cuda:1; default: a GPU if there is one"
    keys = {"nargs": argparse.REMAINDER, "metavar": "KEY VALUE"}
    keys["help"] = "config keys and values; must come last"
    for name, facts in (("--device", device), ("--opts", keys)):
        parser.add_argument(name, dest="opts", action="extend", default=[], **facts)


def import_modules(names: Iterable[str]) -> None:
    """Import modules by name, also from the current folder.

    Args:
        names: dotted module names. Without any, Python does not search the current folder.
    Raises:
        ImportError: a module, or one that it imports, is missing; the message names both.
    """
    names = list(names)
    # Last, so that nothing in the current folder can replace an installed module: a file named
    # torch.py there, by accident or malice, would run.
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
