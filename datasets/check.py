#!/usr/bin/env python3
"""Look through datasets, as `anoseg check` does; `--help` says how."""

import sys

from anoseg_d2.commands.check import main

if __name__ == "__main__":
    sys.exit(main())
