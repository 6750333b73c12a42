#!/usr/bin/env python3
"""Draw the miniature: road scenes, objects to cut out, and five anomaly benchmarks.

    python datasets/make_miniature.py --output output/quickstart/datasets/miniature --seed 0

Nothing is downloaded. An existing miniature with the same options is kept.
"""

import argparse
import os
import sys

from miniature.job import MiniatureOptions, make_miniature

from anoseg_d2.utils import cli


def parse_size(text: str) -> tuple[int, int]:
    """Read `WxH`."""
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size; write WxH, as in 512x256"
        ) from None
    return width, height


def parse_args(argv=None) -> argparse.Namespace:
    """Read the command line."""
    default = MiniatureOptions()
    parser = cli.build_parser(__doc__)
    parser.add_argument(
        "--output",
        default="output/quickstart/datasets/miniature",
        metavar="DIR",
        help="folder to make; set DETECTRON2_DATASETS to its parent to train on it",
    )
    parser.add_argument("--seed", type=int, default=default.seed, metavar="N")
    parser.add_argument("--train", type=int, default=default.train, metavar="N", help="scenes")
    parser.add_argument("--val", type=int, default=default.val, metavar="N", help="scenes")
    parser.add_argument("--coco", type=int, default=default.coco, metavar="N", help="images")
    parser.add_argument("--size", type=parse_size, default=default.size, metavar="WxH")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 8), metavar="N")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a miniature made with other options"
    )
    return parser.parse_args(argv)


def main(argv=None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(argv)
    stopped = "interrupted; nothing half-finished is left. Run it again to start over."
    return cli.run_command(lambda: make(args), stopped, args.verbosity)


def make(args: argparse.Namespace) -> None:
    """Make the miniature and print whether it already existed."""
    options = MiniatureOptions(args.seed, args.train, args.val, args.coco, args.size)
    bar = None

    def progress(done, total):
        nonlocal bar
        bar = bar or cli.Progress("miniature", total, period=5.0)
        bar.update()

    made = make_miniature(
        args.output, options, workers=args.workers, overwrite=args.overwrite, progress=progress
    )
    cli.say(f"{args.output}: {'made' if made else 'already there'}")


if __name__ == "__main__":
    sys.exit(main())
