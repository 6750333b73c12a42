"""Train an EoMT anomaly segmenter.

Examples:
    anoseg train street.yaml --size S --epochs 20
    anoseg train street/images --masks street/labels
    anoseg train street.yaml unknown.yaml --stage arcface --weights runs/street
    anoseg train street.yaml --epochs 200 --patience 5 --batch auto
    anoseg train --config-file arcface_lora --num-gpus 4 --resume

From a dataset card (`anoseg card` proposes one; with --masks that is done here, into the run's
folder) everything else is inferred, and printed with the keys that change it.
"""

import argparse
import sys

from tabulate import tabulate

from anoseg_d2.engine.run import argument_parser, run
from anoseg_d2.utils import cli
from anoseg_d2.utils.ranges import Rule, integer, number

RESUME = """Continue a training from its last checkpoint, as if it had not stopped.

    anoseg resume runs/street
    anoseg resume runs/street SOLVER.MAX_ITER 4000
"""
EVAL = """Evaluate the weights of a run, on its test sets and on those of further cards.

    anoseg eval runs/street
    anoseg eval runs/street unknown.yaml TEST.ANOMALY.EXACT True
    anoseg eval --config-file arcface_lora MODEL.WEIGHTS model.pth

The figures are in report/results.json of the run, and report/index.html shows them.
"""
OPTIONS = {
    "--epochs": number(0, above=True),
    "--steps": integer(1),
    "--batch": Rule("auto or at least 1", lambda value: value == "auto" or value >= 1),
    "--patience": integer(1),
}


def build_parser(first: str = "") -> argparse.ArgumentParser:
    """Describe the command line; `first` is --resume or --eval-only for `anoseg resume` and `eval`.

    Both take the same options as a training, but their help leaves out what is not for them.
    """
    text = {"--resume": RESUME, "--eval-only": EVAL}.get(first)
    parser = argument_parser(text or __doc__, short=bool(text))
    parser.add_argument("--device", metavar="NAME", help="such as cpu or cuda:1; MODEL.DEVICE")
    group = parser.add_argument_group("with a card instead of --config-file")

    def add(option, **facts):
        group.add_argument(option, **facts | ({"help": argparse.SUPPRESS} if text else {}))

    add("--stage", metavar="NAME", help="shipped config, such as arcface; default: eomt_baseline")
    add("--weights", metavar="RUN", help="start from a run folder or checkpoint")
    add("--size", choices=("S", "B", "L", "G"), help="of the ViT; default: S, or the weights'")
    add("--epochs", type=float, help="default: 20")
    add("--steps", type=int, metavar="N", help="instead of --epochs")
    add("--batch", type=_batch_size, metavar="N", help="images per step; default: 4. auto: 16, in "
        "parts that fit the free memory")  # fmt: skip
    add("--patience", type=int, metavar="N", help="stop when N evaluations of the validation set, "
        "one an epoch, have not become better")  # fmt: skip
    add("--masks", metavar="DIR", help="label maps with the names of the images in the folder that "
        "takes the place of the card")  # fmt: skip
    return parser


def _batch_size(text: str) -> int | str:
    return text if text == "auto" else int(text)


def main(argv=None) -> int:
    """Run the command; returns its exit status."""
    words = sys.argv[1:] if argv is None else argv
    # `anoseg resume` and `anoseg eval` put their option first.
    args = build_parser(words[0] if words else "").parse_intermixed_args(words)
    # A run has its own way of ending, on several processes; what precedes it ends as a command.
    return cli.run_command(lambda: prepare(args), verbosity=args.verbosity) or run(None, args)


def prepare(args: argparse.Namespace) -> None:
    """Complete the arguments from cards or a run folder, and print what was inferred."""
    from anoseg_d2.engine.short_form import expand, split_places

    cli.check_options(args, OPTIONS)
    places, args.opts = split_places(args.opts)
    if found := expand(args, places):
        cli.say(tabulate(found, headers=["key", "value", "from"], disable_numparse=True))


def train(*cards, opts=(), **options) -> None:
    """Train as `anoseg train` does: `train("street.yaml", size="S", epochs=20)`.

    Args:
        cards: of the datasets; with `masks`, the first is a folder of images.
        opts: config keys and values in turn.
        options: of the command by name, such as `stage`, `weights` or `batch`.
    Raises:
        RuntimeError: the training did not end well; what is wrong was printed.
    """
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    if status := main([*map(str, cards), *words, *map(str, opts)]):
        raise RuntimeError(f"the training ended with exit status {status}")
