#!/usr/bin/env python3
"""Train or evaluate an EoMT anomaly segmenter.

Examples:
    python train_net.py --config-file configs/eomt_baseline.yaml
    python train_net.py --config-file configs/arcface_lora.yaml --num-gpus 4 --resume
    python train_net.py --config-file configs/arcface_lora.yaml --eval-only MODEL.WEIGHTS model.pth
"""

import os
import sys

import anoseg_d2  # noqa: F401  isort: skip  # before detectron2, whose import warns
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from anoseg_d2.checkpoint.from_config import load_weights
from anoseg_d2.config import load_config
from anoseg_d2.engine.evaluate import evaluate
from anoseg_d2.engine.trainer import Trainer, check_inputs


def setup(args):
    """Read the config, seed everything, and start logging under OUTPUT_DIR."""
    cfg = load_config(args.config_file, args.opts)
    cfg.freeze()
    check_inputs(cfg, training=not args.eval_only)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="anoseg_d2")
    return cfg


def main(args):
    """Run on one rank."""
    cfg = setup(args)
    if args.eval_only:
        model = build_model(cfg)
        load_weights(cfg, model)
        return evaluate(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def one_message(error: Exception) -> str:
    """What an error says, without the traceback that a data loader's worker wraps around it."""
    text = str(error).strip()
    return text.splitlines()[-1] if "Traceback (most recent call last)" in text else text


def command_line(argv=None) -> int:
    """Parse arguments, launch, and turn a user's mistake into one line; returns the exit status."""
    parser = default_argument_parser(epilog=__doc__)
    args = parser.parse_args(argv)
    try:
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except KeyboardInterrupt:
        print("stopped; go on with the same command and --resume", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if os.environ.get("ANOSEG_TRACEBACK"):
            raise
        print(f"error: {one_message(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(command_line())
