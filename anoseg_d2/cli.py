"""Run the command `anoseg`; its sub-commands are also scripts of a checkout.

A sub-command is imported when it is called, so that `anoseg --help` answers before torch loads.
"""

import argparse
import importlib
import sys

from anoseg_d2 import __version__
from anoseg_d2.utils.cli import add_verbosity_options, set_verbosity

__all__ = ["COMMANDS", "main"]

# Name, module, and arguments that go before the user's; what it does.
COMMANDS = {
    "train": ("train", [], "train a model"),
    "resume": ("train", ["--resume"], "continue a training"),
    "eval": ("train", ["--eval-only"], "evaluate a checkpoint"),
    "predict": ("predict", [], "anomaly maps of images and videos"),
    "app": ("app", [], "a local page to try a model on photographs"),
    "export": ("export", [], "write ONNX"),
    "convert": ("convert", [], "change a checkpoint's format"),
    "maps": ("maps", [], "evaluate the score maps of any method"),
    "submit": ("submit", [], "write score maps for a leaderboard"),
    "compare": ("compare", [], "runs and methods side by side"),
    "card": ("card", [], "propose a dataset card for your own images"),
    "check": ("check", [], "look through datasets"),
    "cut-paste": ("cut_paste", [], "paste unknown objects"),
    "threshold": ("threshold", [], "a threshold that promises a rate of false alarms"),
    "memory": ("memory", [], "add the memory score"),
}


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    listed = "\n".join(f"  {name:10} {text}" for name, (_, _, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="anoseg",
        usage="anoseg [-h] [--version] [-q | -v] COMMAND ...",
        description=f"Road-anomaly segmentation.\n\ncommands:\n{listed}\n\n"
        "`anoseg COMMAND --help` describes one of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"anoseg_d2 {__version__}")
    add_verbosity_options(parser, default=0)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a sub-command; returns its exit status."""
    args = build_parser().parse_args(argv)
    module, first, _ = COMMANDS[args.command]
    command = importlib.import_module(f"anoseg_d2.commands.{module}")
    # Its parser takes its name from here ("usage: anoseg train ..."), and a run notes its command.
    sys.argv = [f"anoseg {args.command}", *args.arguments]
    set_verbosity(args.verbosity)  # the default of the command's own -q and -v
    try:
        return command.main([*first, *args.arguments])
    finally:
        set_verbosity(0)
