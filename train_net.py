#!/usr/bin/env python3
"""Train or evaluate a model, as `anoseg train` does; `--help` says how."""

import sys

from anoseg_d2.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
