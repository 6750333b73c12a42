#!/usr/bin/env python3
"""Evaluate the score maps of any method, as `anoseg maps` does; `--help` says how."""

import sys

from anoseg_d2.commands.maps import main

if __name__ == "__main__":
    sys.exit(main())
