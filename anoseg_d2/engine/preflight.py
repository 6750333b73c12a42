"""Check before a run starts that its datasets and weights exist."""

import contextlib
import copy
import functools
import logging
from collections.abc import Collection, Iterator
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from anoseg_d2.checkpoint.files import last_checkpoint, read_checkpoint
from anoseg_d2.checkpoint.from_config import follow_checkpoint, resolve_weights
from anoseg_d2.config import check_config
from anoseg_d2.data.builtin import register_cards
from anoseg_d2.data.loader import training_dicts
from anoseg_d2.modeling.scores import ensemble_parts

logger = logging.getLogger(__name__)


def follow_weights(cfg, given: Collection[str], training: bool, resume: bool = False) -> None:
    """Set the config's network keys to those of the weights.

    Args:
        cfg: config node, not frozen; see `follow_checkpoint`.
        given: keys of the command line, whose values stay.
        training: else evaluation.
        resume: as in `check_inputs`.
    """
    last = last_checkpoint(Path(cfg.OUTPUT_DIR)) if resume else None
    weights = str(last or resolve_weights(cfg))
    # timm has only bare ViTs, which say nothing of the rest; what is missing is named later.
    if not weights or "timm://" in weights or ("://" not in weights and not Path(weights).exists()):
        return
    finished = not training or cfg.MODEL.RATIO.ALONE
    follow_checkpoint(cfg, read_checkpoint(weights), given, finished=finished)


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
    register_cards(cfg)
    images = {}
    for name in (*(cfg.DATASETS.TRAIN if training else ()), *cfg.DATASETS.TEST):
        if name not in DatasetCatalog.list():
            known = [n for n in DatasetCatalog.list() if _kind(n) in ("closed_set", "anomaly")]
            raise ValueError(f"no dataset named {name!r} is registered; ours: {', '.join(known)}")
        if name not in images:
            images[name] = DatasetCatalog.get(name)
    if training:
        with listed_once(images):  # it asks the catalog for the same sets
            training_dicts(cfg)
    _check_tests(cfg, training)
    # A resumed run does not need the weights that it started from: they may be gone.
    if not (resume and last_checkpoint(Path(cfg.OUTPUT_DIR)) is not None):
        _check_weights(cfg, training, resume)
    return images


def _kind(name: str) -> str | None:
    return MetadataCatalog.get(name).get("evaluator_type")


def _check_tests(cfg, training: bool) -> None:
    """Check that DATASETS.TEST is sufficient for an evaluation."""
    if not cfg.DATASETS.TEST:
        if not training:
            raise ValueError("DATASETS.TEST is empty: --eval-only has nothing to evaluate")
        logger.warning("DATASETS.TEST is empty: the run will end without an evaluation")
    # A set of detectron2's own catalog has a kind of its own, and its own evaluator.
    kinds = {_kind(name) for name in cfg.DATASETS.TEST}
    if cfg.MODEL.META_ARCHITECTURE == "PatchModel" and (training or "closed_set" in kinds):
        raise ValueError(
            "the weights are a memory on a bare backbone (MODEL.META_ARCHITECTURE PatchModel), "
            "which knows no classes and is not trained: DATASETS.TEST can only name anomaly sets"
        )
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
