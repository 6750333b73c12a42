"""Road-anomaly segmentation with EoMT mask classification on Detectron2."""

import importlib

__version__ = "0.1.0"

# Resolved on first use, so that the pure modules (scores, losses, metrics, cut_paste) import
# without detectron2.
_EXPORTS = {
    "add_anoseg_config": "anoseg_d2.config",
    "AnomalyPredictor": "anoseg_d2.predictor",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name):
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
