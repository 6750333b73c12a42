"""Train or evaluate an EoMT anomaly segmenter.

Examples:
    anoseg train --config-file eomt_baseline
    anoseg train --config-file arcface_lora --num-gpus 4 --resume
    anoseg train --config-file arcface_lora --eval-only MODEL.WEIGHTS model.pth
    torchrun --nproc-per-node 4 -m anoseg_d2 train --config-file arcface_lora
"""

import argparse
import os
import re
import tempfile

from anoseg_d2.utils import cli
from anoseg_d2.utils.config_files import find_config
from anoseg_d2.utils.ranges import integer

MAX_PROCESSES = 256  # on one machine


def build_parser() -> argparse.ArgumentParser:
    """Take detectron2's usual options and more; importing its own parser takes seconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--config-file",
        default="",
        metavar="FILE",
        help="yaml file, or the name of a shipped config",
    )
    add("--resume", action="store_true", help="continue from the last checkpoint of OUTPUT_DIR")
    add("--overwrite", action="store_true", help="delete the run that OUTPUT_DIR holds")
    add(
        "--dry-run",
        action="store_true",
        help="take one step, show the plan and the memory it needs, and keep nothing",
    )
    add(
        "--eval-only", action="store_true", help="evaluate only; with --resume, the last checkpoint"
    )
    add("--num-gpus", type=int, default=1, help="processes on this machine, one per GPU")
    add("--num-machines", type=int, default=1, help="number of machines")
    add("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    add("--dist-url", default="auto", help="tcp://HOST:PORT of machine 0; auto: this machine only")
    cli.add_import_option(parser)
    cli.add_verbosity_options(parser)
    add("opts", nargs=argparse.REMAINDER, help="config keys and values in turn: KEY VALUE ...")
    return parser


def main(argv=None) -> int:
    """Run the command; returns its exit status."""
    args = build_parser().parse_args(argv)
    stopped = "stopped; continue with the same command and --resume"
    if args.eval_only:  # where --resume would evaluate other weights
        stopped = "stopped; the same command continues after the datasets that are finished"
    return cli.run_command(lambda: run(args), stopped, args.verbosity)


def run_rank(args: argparse.Namespace) -> None:
    """Train or evaluate on one rank."""
    from anoseg_d2.config import load_config
    from anoseg_d2.data.builtin import register_cards
    from anoseg_d2.engine import Trainer, UnfinishedEvaluation, load_evaluated, set_up_run
    from anoseg_d2.engine.run_log import log_data

    cfg = load_config(args.config_file, args.opts, args.imports)
    cfg.freeze()
    register_cards(cfg)
    set_up_run(cfg, verbosity=args.verbosity, training=not args.eval_only)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        log_data((), cfg.DATASETS.TEST)
        load_evaluated(cfg, model, resume=args.resume)
        Trainer.test(cfg, model, unfinished=UnfinishedEvaluation(cfg, model))
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def run(args: argparse.Namespace) -> None:
    """Check arguments, config, data and folder once, then launch the ranks."""
    check_ranks(args)
    if args.resume and args.overwrite:
        raise ValueError("--resume continues a run that --overwrite deletes; give one of them")
    if args.config_file:
        args.config_file = str(find_config(args.config_file))  # detectron2 opens it too

    from anoseg_d2.config import load_config
    from anoseg_d2.engine import check_inputs, claim_output_dir, is_torchrun, launch_ranks

    # torchrun restarts every rank after one has failed: go on from the last checkpoint then.
    args.resume |= int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    cfg = load_config(args.config_file, args.opts, args.imports)
    training = not args.eval_only
    if args.dry_run and (args.eval_only or args.resume):
        raise ValueError(
            "--dry-run tries a training from its start; leave --eval-only, --resume out"
        )
    check_inputs(cfg, training, args.resume)
    if args.dry_run:
        dry_run(cfg, args.num_gpus * args.num_machines)
        return
    ranks = {
        "num_machines": args.num_machines,
        "machine_rank": args.machine_rank,
        "dist_url": args.dist_url,
        "args": (args,),
    }
    if args.machine_rank or (is_torchrun() and int(os.environ["RANK"])):
        launch_ranks(run_rank, args.num_gpus, **ranks)  # the first process holds the folder
        return
    with claim_output_dir(
        cfg.OUTPUT_DIR, training=training, resume=args.resume, overwrite=args.overwrite
    ):
        launch_ranks(run_rank, args.num_gpus, **ranks)


def check_ranks(args: argparse.Namespace) -> None:
    """Refuse numbers of processes and addresses that detectron2's `launch` would fail on.

    Raises:
        ValueError: names the option, what was given and what is allowed.
    """
    if not 1 <= args.num_gpus <= MAX_PROCESSES:
        raise ValueError(
            f"--num-gpus is {args.num_gpus}; it must be in 1..{MAX_PROCESSES}. On a CPU: "
            "--num-gpus 1 MODEL.DEVICE cpu"
        )
    cli.check_options(args, {"--num-machines": integer(1, 100_000)})
    cli.check_options(args, {"--machine-rank": integer(0, args.num_machines - 1)})
    address = re.fullmatch(r"tcp://[^/:]+:([0-9]{1,5})", args.dist_url)
    if args.dist_url != "auto" and not (address and 0 < int(address[1]) < 65_536):
        raise ValueError(f"--dist-url is {args.dist_url!r}; it must be auto or tcp://HOST:PORT")
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ValueError(
            f"--num-machines is {args.num_machines}, which needs the address of machine 0: "
            "--dist-url tcp://HOST:PORT"
        )


def dry_run(cfg, processes: int) -> None:
    """Build everything, take one step, and print the plan, what trains and the memory of a process.

    Args:
        cfg: config node whose inputs were checked; its OUTPUT_DIR is not touched.
        processes: number of those that the run will have.
    Raises:
        ValueError, OSError, MemoryError: what would have stopped the run.
    """
    from detectron2.data import DatasetCatalog
    from detectron2.utils.events import EventStorage

    from anoseg_d2.engine import Trainer
    from anoseg_d2.engine.trainer import parameter_table

    solver = cfg.SOLVER
    batch, planned = solver.IMS_PER_BATCH, solver.REFERENCE_WORLD_SIZE or processes
    if batch % planned:
        raise ValueError(f"SOLVER.IMS_PER_BATCH is {batch}, which {planned} processes cannot share")
    trial = cfg.clone()
    trial.TRACKER, trial.VIS_PERIOD = "none", 0
    # One process tries what every process of the run will do.
    trial.SOLVER.IMS_PER_BATCH, trial.SOLVER.REFERENCE_WORLD_SIZE = batch // planned, 0
    with tempfile.TemporaryDirectory(prefix="anoseg_dry_run_") as folder:
        trial.OUTPUT_DIR = folder
        trial.freeze()
        trainer = Trainer(trial)
        trainer.resume_or_load(resume=False)
        trainer.iter = trainer.start_iter
        with EventStorage(trainer.start_iter):
            trainer.run_step()
        for kind, names in (("train", cfg.DATASETS.TRAIN), ("test", cfg.DATASETS.TEST)):
            for name in names:
                cli.say(f"{kind}: {name}, {len(DatasetCatalog.get(name))} images")
        cli.say(f"steps: {solver.MAX_ITER}, of {batch} images on {processes} process(es)")
        cli.say(f"checkpoints: every {solver.CHECKPOINT_PERIOD} steps, in {cfg.OUTPUT_DIR}")
        cli.say(f"evaluation: {_periods(cfg.TEST.EVAL_PERIOD, solver.MAX_ITER)}")
        cli.say(parameter_table(trainer.model))
        cli.say(f"memory: about {trainer.memory_needs()}")


def _periods(period: int, steps: int) -> str:
    return f"every {period} steps and at the end" if 0 < period < steps else "at the end"
