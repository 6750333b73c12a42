#!/usr/bin/env python3
"""Predict images and videos, as `anoseg predict` does; `--help` says how."""

import sys

from anoseg_d2.commands.predict import main

if __name__ == "__main__":
    sys.exit(main())
