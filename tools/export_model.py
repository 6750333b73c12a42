#!/usr/bin/env python3
"""Export a model, as `anoseg export` does; `--help` says how."""

import sys

from anoseg_d2.commands.export import main

if __name__ == "__main__":
    sys.exit(main())
