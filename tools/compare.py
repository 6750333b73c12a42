#!/usr/bin/env python3
"""Compare evaluated runs, as `anoseg compare` does; `--help` says how."""

import sys

from anoseg_d2.commands.compare import main

if __name__ == "__main__":
    sys.exit(main())
