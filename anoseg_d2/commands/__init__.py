"""The sub-commands of `anoseg`, one module each; scripts of the same purpose call them too.

Every module has `main(argv=None)`, which returns the exit status. `anoseg_d2/cli.py` lists them.
"""
