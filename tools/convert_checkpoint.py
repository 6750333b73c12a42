#!/usr/bin/env python3
"""Convert a checkpoint, as `anoseg convert` does; `--help` says how."""

import sys

from anoseg_d2.commands.convert import main

if __name__ == "__main__":
    sys.exit(main())
