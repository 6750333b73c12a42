#!/usr/bin/env python3
"""Draw the miniature: road scenes, objects to cut out, and five anomaly benchmarks.

    python datasets/make_miniature.py --output datasets/miniature --seed 0

Nothing is downloaded. What is there already and was made with the same options is left as it is.
"""

import argparse
import os
import sys
import time

from miniature.job import MiniatureOptions, make_miniature


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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="datasets/miniature", metavar="DIR")
    parser.add_argument("--seed", type=int, default=default.seed, metavar="N")
    parser.add_argument("--train", type=int, default=default.train, metavar="N", help="scenes")
    parser.add_argument("--val", type=int, default=default.val, metavar="N", help="scenes")
    parser.add_argument("--coco", type=int, default=default.coco, metavar="N", help="images")
    parser.add_argument("--size", type=parse_size, default=default.size, metavar="WxH")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 8), metavar="N")
    parser.add_argument("--overwrite", action="store_true", help="remake one of other options")
    return parser.parse_args(argv)


def progress_line(start: float):
    """A function that keeps one line up to date; on a log, where lines stay, every tenth part."""

    def show(done: int, total: int) -> None:
        left = (time.monotonic() - start) / done * (total - done)
        line = f"miniature: {done}/{total} images, {left:.0f} s left"
        if sys.stderr.isatty():
            print(f"\r{line:<50}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif done == total or done % max(1, total // 10) == 0:
            print(line, file=sys.stderr, flush=True)

    return show


def main(argv=None) -> int:
    """Make the miniature; 0 when it is there at the end."""
    args, start = parse_args(argv), time.monotonic()
    try:
        options = MiniatureOptions(args.seed, args.train, args.val, args.coco, args.size)
        made = make_miniature(
            args.output,
            options,
            workers=args.workers,
            overwrite=args.overwrite,
            progress=progress_line(start),
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\ninterrupted; nothing half-made is left. Run it again to start over.", file=sys.stderr
        )
        return 130
    print(
        f"{args.output}: {'made' if made else 'already there'} ({time.monotonic() - start:.0f} s)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
