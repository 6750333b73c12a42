#!/usr/bin/env python3
"""Give a checkpoint a memory of normal patches, as `anoseg memory` does; `--help` says how."""

import sys

from anoseg_d2.commands.memory import main

if __name__ == "__main__":
    sys.exit(main())
