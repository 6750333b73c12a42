"""Find out before a run starts whether it can: datasets, weights, tracker, and one step to try."""

import contextlib
import copy
import functools
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage

from anoseg_d2.checkpoint.files import last_checkpoint
from anoseg_d2.checkpoint.from_config import resolve_weights
from anoseg_d2.config import check_config
from anoseg_d2.data.builtin import register_cards
from anoseg_d2.data.loader import training_dicts
from anoseg_d2.engine.memory import memory_needs, parameter_table
from anoseg_d2.engine.trackers import check_tracker
from anoseg_d2.modeling.scores import ensemble_parts
from anoseg_d2.utils.cli import say

__all__ = ["check_inputs", "dry_run", "listed_once"]

logger = logging.getLogger(__name__)


def check_inputs(cfg, training: bool, resume: bool = False) -> dict[str, list[dict]]:
    """Find every dataset and the weights before anything long starts.

    Args:
        cfg: config node.
        training: else evaluation.
        resume: OUTPUT_DIR's last checkpoint, if there is one, takes the place of MODEL.WEIGHTS.
    Returns:
        the images of every dataset of the run, for `listed_once`.
    Raises:
        FileNotFoundError, ValueError: what is missing or wrong, and the way out.
    """
    check_config(cfg)
    check_tracker(cfg.TRACKER)
    register_cards(cfg)
    images = _list_images((*(cfg.DATASETS.TRAIN if training else ()), *cfg.DATASETS.TEST))
    if training:
        with listed_once(images):
            training_dicts(cfg)
    _check_tests(cfg, training)
    if not (resume and last_checkpoint(Path(cfg.OUTPUT_DIR)) is not None):
        _check_weights(cfg, training, resume)
    return images


def _list_images(names) -> dict[str, list[dict]]:
    ours = ("closed_set", "anomaly")
    for name in names:
        if name not in DatasetCatalog.list():
            known = (n for n in DatasetCatalog.list() if _kind(n) in ours)
            raise ValueError(f"no dataset named {name!r} is registered; ours: {', '.join(known)}")
    return {name: DatasetCatalog.get(name) for name in dict.fromkeys(names)}


def _kind(name: str) -> str | None:
    return MetadataCatalog.get(name).get("evaluator_type")


def _check_tests(cfg, training: bool) -> None:
    """Check that DATASETS.TEST has what an evaluation needs."""
    if not cfg.DATASETS.TEST:
        if not training:
            raise ValueError("DATASETS.TEST is empty: --eval-only has nothing to evaluate")
        logger.warning("DATASETS.TEST is empty: the run will end without an evaluation")
    kinds = {_kind(name) for name in cfg.DATASETS.TEST}
    ensembles = [name for name in cfg.TEST.ANOMALY.SCORES if len(ensemble_parts(name)) > 1]
    if training and ensembles and kinds and "closed_set" not in kinds:
        raise ValueError(
            f"TEST.ANOMALY.SCORES has {', '.join(ensembles)}, which are measured on known pixels "
            "first: DATASETS.TEST needs a closed set"
        )


def _check_weights(cfg, training: bool, resume: bool) -> None:
    """Check that MODEL.WEIGHTS exists, and that an evaluation has weights at all."""
    weights = resolve_weights(cfg)
    if weights and "://" not in weights and not Path(weights).exists():
        raise FileNotFoundError(
            f"MODEL.WEIGHTS {weights} does not exist. A stage starts from the checkpoint of the "
            "one before it: train that first, or give MODEL.WEIGHTS the path of its model_final.pth"
        )
    if cfg.MODEL.DELTA_BASE and not weights:
        raise ValueError(
            f"MODEL.DELTA_BASE is {cfg.MODEL.DELTA_BASE}, but MODEL.WEIGHTS is empty: there is "
            "nothing to add it to"
        )
    if not training and resume:
        raise FileNotFoundError(
            f"--eval-only --resume evaluates the last checkpoint of OUTPUT_DIR {cfg.OUTPUT_DIR}, "
            "which has none; leave --resume out to evaluate MODEL.WEIGHTS"
        )
    if not training and not weights:
        raise ValueError(
            "--eval-only needs the checkpoint to evaluate: give MODEL.WEIGHTS, or --resume for the "
            "last checkpoint of OUTPUT_DIR"
        )


@contextlib.contextmanager
def listed_once(images: dict[str, list[dict]]) -> Iterator[None]:
    """Within the block, let `DatasetCatalog` give these lists instead of reading the disk again.

    Loader, log, evaluator and pictures each ask the catalog for the same dataset, and a list of a
    hundred thousand files takes a network disk minutes.

    Args:
        images: dataset to its dicts; whoever asks gets a copy.
    """
    before = {name: DatasetCatalog[name] for name in images}
    for name, dicts in images.items():
        DatasetCatalog[name] = functools.partial(copy.deepcopy, dicts)
    try:
        yield
    finally:
        DatasetCatalog.update(before)


def dry_run(trainer_class, cfg, processes: int) -> None:
    """Build everything, take one step, and print the plan, what trains and the memory of a process.

    Args:
        trainer_class: `Trainer` or a subclass.
        cfg: config node whose inputs were checked; its OUTPUT_DIR is not touched.
        processes: number of those that the run will have.
    Raises:
        ValueError, OSError, MemoryError: what would have stopped the run.
    """
    solver = cfg.SOLVER
    batch, planned = solver.IMS_PER_BATCH, solver.REFERENCE_WORLD_SIZE or processes
    if batch % planned:
        raise ValueError(f"SOLVER.IMS_PER_BATCH {batch} is not divisible by {planned} processes")
    trial = cfg.clone()
    trial.defrost()
    trial.TRACKER, trial.VIS_PERIOD = "none", 0
    # One process tries what every process of the run will do.
    trial.SOLVER.IMS_PER_BATCH, trial.SOLVER.REFERENCE_WORLD_SIZE = batch // planned, 0
    with tempfile.TemporaryDirectory(prefix="anoseg_dry_run_") as folder:
        trial.OUTPUT_DIR = folder
        trial.freeze()
        trainer = trainer_class(trial)
        trainer.resume_or_load(resume=False)
        trainer.iter = trainer.start_iter
        with EventStorage(trainer.start_iter):
            trainer.run_step()
        for kind, names in (("train", cfg.DATASETS.TRAIN), ("test", cfg.DATASETS.TEST)):
            for name in names:
                say(f"{kind}: {name}, {len(DatasetCatalog.get(name))} images")
        say(f"steps: {solver.MAX_ITER}, of {batch} images on {processes} process(es)")
        say(f"checkpoints: every {solver.CHECKPOINT_PERIOD} steps, in {cfg.OUTPUT_DIR}")
        period = cfg.TEST.EVAL_PERIOD
        often = f"every {period} steps and " if 0 < period < solver.MAX_ITER else ""
        say(f"evaluation: {often}at the end")
        say(parameter_table(trainer.model))
        say(f"memory: about {memory_needs(trainer.model, cfg, trainer.activation_bytes)}")
