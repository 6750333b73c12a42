"""Facts about a model that are not in its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelInfo:
    """Facts about a model that its checkpoint holds; `EoMT.info` is replaced as a whole.

    Example: `model.info = dataclasses.replace(model.info, averaged=True)`.

    Args:
        class_names: of the known classes, from a dataset or a checkpoint; None if unknown.
        score_statistics: mean and standard deviation of scores on known pixels, for ensembles.
        statistics_settings: config keys and values that they were measured at; None if unknown.
        thresholds: what `anoseg threshold` found by score: "threshold", the "settings" that it
            holds for (config keys and values) and its promise, see `evaluation.alarm_rate`.
        averaged: whether the weights are the moving average of a training.
    """

    class_names: tuple[str, ...] | None = None
    score_statistics: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    statistics_settings: Mapping[str, Any] | None = None
    thresholds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    averaged: bool = False
