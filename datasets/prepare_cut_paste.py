#!/usr/bin/env python3
"""Paste objects into road scenes, as `anoseg cut-paste` does; `--help` says how."""

import sys

from anoseg_d2.commands.cut_paste import main

if __name__ == "__main__":
    sys.exit(main())
