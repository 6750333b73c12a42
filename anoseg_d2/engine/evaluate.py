"""Evaluate a model on datasets, measure statistics of ensembles, and write the report."""

import dataclasses
import functools
import logging
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import detectron2
import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, inference_context, inference_on_dataset
from tabulate import tabulate
from torch import nn

import anoseg_d2
from anoseg_d2.data.loader import build_test_loader
from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator
from anoseg_d2.evaluation.closed_set_evaluation import ClosedSetEvaluator
from anoseg_d2.evaluation.score_statistics import ScoreStatistics
from anoseg_d2.modeling.eomt import EoMT
from anoseg_d2.modeling.inference import score_map_settings, unfiltered
from anoseg_d2.modeling.patch_model import PatchModel
from anoseg_d2.modeling.scores import ensemble_parts, single_scores
from anoseg_d2.report.runs import CLOSED_FIGURES, FIGURE_NAMES, load_run
from anoseg_d2.report.write import write_report
from anoseg_d2.utils.unwrap import unwrap

logger = logging.getLogger(__name__)


# Whose figures the log and the report of this project show.
OURS = (AnomalyEvaluator, ClosedSetEvaluator)


def measure_ensembles(cfg, model: nn.Module, build_loader=build_test_loader) -> None:
    """Measure what the model's ensembles need, on the first closed set of DATASETS.TEST.

    The figures stay with the model (`score_statistics`) and in its next checkpoint. Does nothing if
    there are no ensembles or their statistics are known.

    Args:
        build_loader: `(cfg, dataset name)` to a loader.
    Raises:
        ValueError: an ensemble is asked for, its statistics are unknown, and there is no closed
            set to measure them on.
    """
    names = model.score_names if isinstance(model, EoMT) else ()
    ensembles = [name for name in names if len(ensemble_parts(name)) > 1]
    parts = single_scores(ensembles)
    if all(part in model.info.score_statistics for part in parts):
        return
    closed = [n for n in cfg.DATASETS.TEST if MetadataCatalog.get(n).evaluator_type == "closed_set"]
    if not closed:
        raise ValueError(
            f"ensembles {', '.join(ensembles)} are measured on known pixels first; "
            "DATASETS.TEST has no closed set"
        )
    logger.info("Measuring %s on %s", ", ".join(parts), closed[0])
    loader = build_loader(cfg, closed[0])
    # Only the parts: their ensembles are what the statistics are still missing for.
    score = functools.partial(model, score_names=parts)
    with inference_context(model), unfiltered(model):
        found = inference_on_dataset(score, loader, ScoreStatistics(closed[0]))
    model.info = dataclasses.replace(
        model.info,
        score_statistics={**model.info.score_statistics, **found},
        statistics_settings=score_map_settings(cfg, filters=False),
    )


def report_evaluation(
    cfg, model: nn.Module, evaluators: dict[str, DatasetEvaluator], facts: dict | None = None
) -> None:
    """Log the figures of our evaluators, and write `report/` with them under OUTPUT_DIR.

    Args:
        cfg: config node.
        model: that was evaluated.
        evaluators: by dataset. User-defined evaluators do not appear in the report.
        facts: more about the model, such as where its weights are from, for results.json.
    """
    ours = [name for name, evaluator in evaluators.items() if isinstance(evaluator, OURS)]
    if not ours:
        return
    # From the files: those of an interrupted evaluation were not evaluated again.
    records = load_run(cfg.OUTPUT_DIR, ours).records
    results = {name: record["result"] for name, record in records.items()}
    # Closed sets and anomaly sets have no figure in common: one table each.
    closed = [
        [name, *(result.get(figure) for figure in CLOSED_FIGURES)]
        for name, result in results.items()
        if "mIoU" in result
    ]
    anomaly = [
        [name, score, entry.get("auprc"), entry.get("fpr95")]
        for name, result in results.items()
        for score, entry in result.get("scores", {}).items()
    ]
    heads = ["dataset", *(FIGURE_NAMES.get(figure, figure) for figure in CLOSED_FIGURES)]
    for rows, names in ((closed, heads), (anomaly, ["dataset", "score", "AUPRC", "FPR95"])):
        if rows:
            table = tabulate(rows, headers=names, floatfmt=".2f", missingval="-")
            logger.info("Figures in percent:\n%s", table)
    run = {
        "versions": versions(),
        "git": git_state(Path(anoseg_d2.__file__).parent),
        "seed": cfg.SEED,
        "command": shlex.join(sys.argv),
    }
    about = {**describe_model(cfg, unwrap(model)), **run, **(facts or {})}
    write_report(cfg.OUTPUT_DIR, ours, model=about, config=cfg.dump())


def describe_model(cfg, model: nn.Module) -> dict:
    """Return facts about the evaluated model for results.json."""
    parameters = list(model.parameters())
    bare = isinstance(model, PatchModel)  # the config has keys of a head that it lacks
    return {
        "averaged": isinstance(model, EoMT) and model.info.averaged,
        "head": None if bare else cfg.MODEL.HEAD.NAME,
        "num_known": 0 if bare else cfg.MODEL.EOMT.NUM_CLASSES,
        "anomaly_class": cfg.MODEL.EOMT.ANOMALY_CLASS,
        "lora": bool(cfg.MODEL.LORA.ENABLED),
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "image_size": list(cfg.INPUT.CROP_SIZE),
    }


def versions() -> dict[str, str]:
    """Return the versions of everything that computes figures."""
    return {
        "anoseg_d2": anoseg_d2.__version__,
        "detectron2": detectron2.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def git_state(package: Path) -> str | None:
    """Return the commit of a package's source tree, with "-dirty" after uncommitted changes.

    Args:
        package: its folder.
    Returns:
        None without git, and for a package that was installed somewhere inside another repository.
    """

    git = functools.partial(
        subprocess.run, cwd=package, capture_output=True, text=True, timeout=30, check=True
    )
    try:
        # It fails for a package that only happens to be inside another repository.
        git(["git", "ls-files", "--error-unmatch", "__init__.py"])
        named = git(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])
        return named.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
