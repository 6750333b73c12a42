"""Evaluate anomaly scores per pixel and per component, and known classes.

- `AnomalyEvaluator`: all figures of a model's anomaly scores on one dataset.
- `ClosedSetEvaluator`: mIoU, accuracy and calibration on the known classes of one dataset.
- `ScoreStatistics`: mean and spread of scores on known pixels, for ensembles.
- `PixelMetrics`: AUPRC, FPR95 and AUROC of one score in bounded memory, with certified bounds.
- `ComponentMetrics`, `component_metrics`: sIoU, PPV and F1 as SegmentMeIfYouCan defines them.
- `read_map`, `write_map`: score maps from and to files.
- `find_maps`: finds the score map of every image of a dataset.
"""

from anoseg_d2.utils.index import lazy_index

# Resolved on first use, so that the metrics import without detectron2.
__all__, __getattr__, __dir__ = lazy_index(
    __name__,
    {
        "anomaly_evaluation": ["AnomalyEvaluator"],
        "closed_set_evaluation": ["ClosedSetEvaluator"],
        "score_statistics": ["ScoreStatistics"],
        "metrics": ["PixelMetrics"],
        "components": ["ComponentMetrics", "component_metrics"],
        "map_files": ["read_map", "write_map", "find_maps"],
    },
)
