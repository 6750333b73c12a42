"""Run a training or an evaluation from a command line.

`train_net` and `anoseg train` both call `run`. It reads and checks everything once, in the
process that was started; what it found goes to the ranks, which only build and work.

    run: load_config -> follow_weights -> check_inputs -> claim_output_dir -> launch_ranks
    run_rank, on every rank: set_up_run -> Trainer(cfg).train(), or Trainer.test(cfg, model)
"""

import argparse
import logging
import re
from pathlib import Path

from anoseg_d2.utils import cli
from anoseg_d2.utils.ranges import integer

logger = logging.getLogger(__name__)


def argument_parser(description=None, short: bool = False) -> argparse.ArgumentParser:
    """Build the parser of `train_net`: detectron2's usual options, and ours.

    detectron2's own parser would do, but importing it takes seconds, and `--help` should not.

    Args:
        description: of the help page.
        short: leave out of it what a command on the folder of a run does not need.
    """
    parser = cli.build_parser(
        description or "Train or evaluate an EoMT anomaly segmenter.", imports=True
    )
    add = parser.add_argument
    named = "yaml file, or the name of a shipped config"
    add("--config-file", default="", metavar="FILE", help=named)
    for option, text in (
        ("--resume", "continue from the last checkpoint of OUTPUT_DIR"),
        ("--overwrite", "delete the run that OUTPUT_DIR holds"),
        ("--eval-only", "evaluate only; with --resume, the last checkpoint"),
    ):
        add(option, action="store_true", help=argparse.SUPPRESS if short else text)
    add("--num-gpus", type=int, default=1, help="processes on this machine, one per GPU")
    add("--num-machines", type=int, default=1, help="number of machines")
    add("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    add("--dist-url", default="auto", help="tcp://HOST:PORT of machine 0; auto: this machine only")
    add("opts", nargs="*", help="config keys and values in turn: KEY VALUE ...")
    return parser


def run(trainer_class, args: argparse.Namespace) -> int:
    """Check the request once, claim OUTPUT_DIR, and train or evaluate on every rank.

    Args:
        trainer_class: `Trainer` or a subclass, defined at the top level of its module so that the
            other ranks can import it; None for `Trainer`.
        args: as `argument_parser` gives them.
    Returns:
        exit status: 0, 2 after a user's mistake, 130 after an interruption.
    """
    stopped = "stopped; continue with the same command and --resume"
    if args.eval_only:  # where --resume would evaluate other weights
        stopped = "stopped; the same command continues after the datasets that are finished"
    return cli.run_command(lambda: _run(trainer_class, args), stopped, args.verbosity)


def _run(trainer_class, args: argparse.Namespace) -> None:
    check_request(args)

    # Only now: help and mistaken options are answered before torch is loaded.
    from anoseg_d2.config import load_config
    from anoseg_d2.engine.launch import launch_ranks
    from anoseg_d2.engine.output_dir import claim_output_dir
    from anoseg_d2.engine.preflight import check_inputs, follow_weights
    from anoseg_d2.engine.trainer import Trainer
    from anoseg_d2.utils.config_files import override_pairs

    trainer_class = trainer_class or Trainer
    cfg = load_config(args.config_file, args.opts, args.imports)
    training = not args.eval_only
    given = [key for key, _ in override_pairs(args.opts)]
    follow_weights(cfg, given, training, args.resume)
    cfg.freeze()
    images = check_inputs(cfg, training, args.resume)
    if args.machine_rank == 0:  # which makes the folder ready for all others
        claim_output_dir(
            cfg.OUTPUT_DIR, training=training, resume=args.resume, overwrite=args.overwrite
        )
    launch_ranks(
        run_rank,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(trainer_class, cfg, args, images),
    )


def run_rank(trainer_class, cfg, args: argparse.Namespace, images: dict[str, list[dict]]) -> None:
    """Train or evaluate on one rank.

    Args:
        trainer_class: `Trainer` or a subclass.
        cfg: frozen config node that was checked.
        args: as `argument_parser` gives them.
        images: of every dataset, as `check_inputs` found them.
    """
    from detectron2.data import DatasetCatalog

    from anoseg_d2.data.builtin import complete_dataset, register_cards
    from anoseg_d2.engine.preflight import listed_once
    from anoseg_d2.engine.run_log import log_data, set_up_run

    # A rank in a process of its own has neither the user's modules nor the cards' datasets yet.
    cli.import_modules(cfg.MODEL.IMPORTS)
    if not set(images) <= set(DatasetCatalog.list()):
        register_cards(cfg)
    for name in images:
        complete_dataset(name)
    with listed_once(images):
        set_up_run(cfg, verbosity=args.verbosity, training=not args.eval_only)
        if not args.eval_only:
            trainer = trainer_class(cfg)
            trainer.resume_or_load(resume=args.resume)
            trainer.train()
            return
        model = trainer_class.build_model(cfg)
        log_data((), cfg.DATASETS.TEST)
        facts = load_evaluated(cfg, model, resume=args.resume)
        trainer_class.test(cfg, model, facts=facts, resume=True)


def check_request(args: argparse.Namespace) -> None:
    """Refuse options that exclude each other, and what detectron2's `launch` would fail on.

    Raises:
        ValueError: names the option, what was given and what is allowed.
    """
    if args.resume and args.overwrite:
        raise ValueError("--resume continues a run that --overwrite deletes; use only one of them")
    rules = {"--num-gpus": integer(1, 256), "--num-machines": integer(1, 100_000)}
    cli.check_options(args, rules | {"--machine-rank": integer(0, args.num_machines - 1)})
    if not re.fullmatch(r"auto|tcp://[^/:]+:[0-9]{1,5}", args.dist_url):
        raise ValueError(f"--dist-url is {args.dist_url!r}; it must be auto or tcp://HOST:PORT")
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ValueError(
            "--num-machines needs the address of machine 0: --dist-url tcp://HOST:PORT"
        )


def load_evaluated(cfg, model, resume: bool = False) -> dict:
    """Load the weights that `--eval-only` evaluates.

    Args:
        cfg: config node.
        model: built from it.
        resume: load OUTPUT_DIR's last checkpoint instead of MODEL.WEIGHTS.
    Returns:
        facts for results.json: where the weights are from, and which tensors are untrained.
    Raises:
        FileNotFoundError, ValueError: see `load_weights`.
    """
    from anoseg_d2.checkpoint import describe_weights
    from anoseg_d2.checkpoint.files import last_checkpoint
    from anoseg_d2.checkpoint.from_config import load_weights, resolve_weights
    from anoseg_d2.checkpoint.transfer import UNTRAINED

    cfg = cfg.clone()
    cfg.defrost()
    if resume:
        cfg.MODEL.WEIGHTS = str(last_checkpoint(Path(cfg.OUTPUT_DIR)))
    report = load_weights(cfg, model)
    facts = {"weights": resolve_weights(cfg), **describe_weights(model, report.file)}
    facts["trainable_parameters"] = None  # what this config would train may be other parts
    untrained = sorted(name for action in UNTRAINED for name in report.names(action))
    if untrained:  # MODEL.ALLOW_UNTRAINED True
        facts["untrained_tensors"] = untrained
    logger.info("Evaluating %s", report.source)
    return facts
