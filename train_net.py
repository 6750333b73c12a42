#!/usr/bin/env python3
"""Train or evaluate a model; `--help` says how.

`anoseg train` does the same with the project's own `Trainer`. To change something, copy this file
to wherever you like and override one method of `Trainer`. docs/extending.md has an example of each:

    build_train_loader    other images, or a mapper of your own
    build_test_loader     the same in evaluation
    build_evaluator       figures of your own
    build_model           a network of your own, or a change to this one
    build_optimizer       another optimiser
    build_lr_scheduler    another schedule
    build_hooks           something that happens around the steps

Class heads, patch heads, losses and scores need no subclass: register them in a module that
MODEL.IMPORTS names.
"""

import sys

from anoseg_d2 import Trainer as BaseTrainer
from anoseg_d2.engine import argument_parser, run


class Trainer(BaseTrainer):
    """The trainer of this run.

    Example::

        @classmethod
        def build_evaluator(cls, cfg, dataset_name, output_folder=None):
            return MyEvaluator(dataset_name)
    """


# The guard matters: with --num-gpus 2, each process imports this file to find `Trainer`.
if __name__ == "__main__":
    sys.exit(run(Trainer, argument_parser().parse_args()))
