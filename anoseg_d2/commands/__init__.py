"""Sub-commands of `anoseg`, one module each, which scripts of the same purpose also call.

Every module has `main(argv=None)`, which returns the exit status. `anoseg_d2/cli.py` lists them.
"""
