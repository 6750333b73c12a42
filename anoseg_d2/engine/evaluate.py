"""Evaluate a model on the configured datasets and write the report."""

import functools
import logging
from collections import OrderedDict

from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_context, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn

from anoseg_d2.checkpoint.from_config import resolve_weights
from anoseg_d2.data.loader import build_test_loader
from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator
from anoseg_d2.evaluation.closed_set_evaluation import ClosedSetEvaluator
from anoseg_d2.evaluation.score_statistics import ScoreStatistics
from anoseg_d2.modeling.scores import ensemble_parts, single_scores
from anoseg_d2.report.write import write_report
from anoseg_d2.utils.unwrap import unwrap

__all__ = ["evaluate", "measure_ensembles"]

logger = logging.getLogger(__name__)


def evaluate(
    cfg, model: nn.Module, output_dir: str | None = None, facts: dict | None = None
) -> OrderedDict:
    """Run every dataset of DATASETS.TEST and write `report/` under the output folder.

    Args:
        cfg: config node.
        model: in any mode; left in the mode it came in.
        output_dir: where `report/` goes; OUTPUT_DIR by default.
        facts: what else results.json says of the model, such as what its training took.
    Returns:
        figures per dataset, for detectron2's printers; empty on ranks other than the first.
    """
    output_dir = output_dir or cfg.OUTPUT_DIR
    measure_ensembles(cfg, unwrap(model))
    results = OrderedDict()
    for name in cfg.DATASETS.TEST:
        evaluator = _build_evaluator(cfg, unwrap(model), name, output_dir)
        figures = inference_on_dataset(unwrap(model), build_test_loader(cfg, name), evaluator)
        if comm.is_main_process():
            results[name] = figures
            print_csv_format(figures)
    if comm.is_main_process() and results:
        path = write_report(
            output_dir,
            list(results),
            model={**_describe(cfg, model), **(facts or {})},
            config=cfg.dump(),
        )
        logger.info("Report: %s", path)
    comm.synchronize()
    return results


def measure_ensembles(cfg, model: nn.Module) -> bool:
    """Measure what the model's ensembles need, on the first closed set of DATASETS.TEST.

    The figures stay with the model (`score_statistics`) and in its next checkpoint.

    Returns:
        whether anything had to be measured.
    Raises:
        ValueError: an ensemble is asked for, its statistics are unknown, and there is no closed
            set to measure them on.
    """
    ensembles = [name for name in model.score_names if len(ensemble_parts(name)) > 1]
    parts = single_scores(ensembles)
    if all(part in model.score_statistics for part in parts):
        return False
    closed = [n for n in cfg.DATASETS.TEST if MetadataCatalog.get(n).evaluator_type == "closed_set"]
    if not closed:
        raise ValueError(
            f"ensembles {', '.join(ensembles)} are measured on known pixels first; "
            "DATASETS.TEST has no closed set"
        )
    logger.info("Measuring %s on %s", ", ".join(parts), closed[0])
    loader = build_test_loader(cfg, closed[0])
    score = functools.partial(model, score_names=parts)
    with inference_context(model):
        found = inference_on_dataset(score, loader, ScoreStatistics(closed[0]))
    model.score_statistics = {**model.score_statistics, **found}
    return True


def _build_evaluator(cfg, model, name: str, output_dir: str):
    kind = MetadataCatalog.get(name).evaluator_type
    if kind == "closed_set":
        return ClosedSetEvaluator(name, output_dir)
    return AnomalyEvaluator(
        name,
        model.score_names,
        output_dir,
        components=cfg.TEST.ANOMALY.COMPONENTS,
        exact=cfg.TEST.ANOMALY.EXACT,
        keep_images=cfg.TEST.ANOMALY.REPORT_IMAGES,
    )


def _describe(cfg, model: nn.Module) -> dict:
    """What results.json says of the model."""
    core = unwrap(model)
    parameters = list(core.parameters())
    return {
        "weights": resolve_weights(cfg),
        "head": cfg.MODEL.HEAD.NAME,
        "num_known": core.num_known,
        "anomaly_class": core.has_anomaly,
        "lora": bool(cfg.MODEL.LORA.ENABLED),
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "image_size": list(core.image_size),
    }
