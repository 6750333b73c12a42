"""Train or evaluate an EoMT anomaly segmenter.

Examples:
    anoseg train street.yaml --size S --epochs 20
    anoseg train street.yaml unknown.yaml --stage arcface --weights runs/street
    anoseg resume runs/street
    anoseg eval runs/street more.yaml
    anoseg train --config-file arcface_lora --num-gpus 4 --resume
    anoseg eval --config-file arcface_lora MODEL.WEIGHTS model.pth
    torchrun --nproc-per-node 4 -m anoseg_d2 train --config-file arcface_lora

From a dataset card (`anoseg card` proposes one) everything else is inferred, and printed with the
keys that change it. A run folder holds its config and weights.
"""

import argparse

from tabulate import tabulate

from anoseg_d2.engine.run import argument_parser, run
from anoseg_d2.utils import cli
from anoseg_d2.utils.ranges import integer, number

__all__ = ["main", "train"]

OPTIONS = {"--epochs": number(0, above=True), "--batch": integer(1, 4096)}


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argument_parser(__doc__)
    add = parser.add_argument_group("with a card instead of --config-file").add_argument
    add("--stage", metavar="NAME", help="shipped config, such as arcface; default: eomt_baseline")
    add("--weights", metavar="RUN", help="start from a run folder or checkpoint")
    add("--size", choices=("S", "B", "L", "G"), help="of the ViT; default: S, or the weights'")
    add("--epochs", type=float, help="default: 20")
    add("--batch", type=int, metavar="N", help="images per step; default: 4")
    return parser


def main(argv=None) -> int:
    """Run the command; returns its exit status."""
    args = build_parser().parse_intermixed_args(argv)
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
        cards: of the datasets.
        opts: config keys and values in turn.
        options: of the command by name, such as `stage`, `weights` or `batch`.
    Raises:
        RuntimeError: the training did not end well; what is wrong was printed.
    """
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    if status := main([*map(str, cards), *words, *map(str, opts)]):
        raise RuntimeError(f"the training ended with exit status {status}")
