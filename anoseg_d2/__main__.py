"""`python -m anoseg_d2`, where the command `anoseg` is not on the PATH."""

import sys

from anoseg_d2.cli import main

if __name__ == "__main__":
    sys.exit(main())
