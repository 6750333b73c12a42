"""Road-anomaly segmentation with EoMT mask classification on Detectron2."""

import importlib
import warnings

__version__ = "0.1.0"

# Resolved on first use, so that the pure modules (scores, losses, metrics, cut_paste) import
# without detectron2.
_EXPORTS = {
    "add_anoseg_config": "anoseg_d2.config",
    "AnomalyPredictor": "anoseg_d2.prediction.predictor",
}
__all__ = sorted(_EXPORTS)

# fvcore scripts two functions when it is imported; nobody who uses this package can change that.
warnings.filterwarnings("ignore", message="`torch.jit.script", category=FutureWarning)


def __getattr__(name):
    if name in _EXPORTS:
        try:
            return getattr(importlib.import_module(_EXPORTS[name]), name)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != "detectron2":
                raise
            raise ModuleNotFoundError(
                "anoseg_d2 needs detectron2, which is not installed: build the official one, or "
                "run python tools/setup_env.py --detectron2-only",
                name="detectron2",
            ) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
