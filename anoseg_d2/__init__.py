"""Road-anomaly segmentation with EoMT mask classification on Detectron2.

Importing this package registers everything with detectron2: the `EoMT` meta-architecture, the
datasets, class heads and scores. Its public names:

- `add_anoseg_config`: adds the project's keys to a detectron2 config.
- `EoMT`: the network, built from a config or from parts.
- `AnosegDatasetMapper`: turns a dataset dict into what the network takes.
- `Trainer`: detectron2's `DefaultTrainer` with this project's loaders, optimiser and evaluators.
- `train`: trains on a dataset card in one call, as `anoseg train` does.
- `AnomalyEvaluator`: anomaly figures of one dataset, as a detectron2 evaluator.
- `PixelMetrics`: AUPRC, FPR95 and AUROC in bounded memory, without detectron2.
- `AnomalyPredictor`: one image in, segmentation and anomaly scores out.
"""

import importlib
import warnings

from anoseg_d2.utils.on_import import after_import

__version__ = "0.1.0"

# Resolved on first use: the pure modules (scores, losses, metrics, cut_paste) import without
# detectron2, and a command answers `--help` before torch is loaded, which takes seconds.
_EXPORTS = {
    "add_anoseg_config": "anoseg_d2.config",
    "AnomalyPredictor": "anoseg_d2.prediction.predictor",
    "EoMT": "anoseg_d2.modeling.eomt",
    "Trainer": "anoseg_d2.engine.trainer",
    "train": "anoseg_d2.commands.train",
    "AnosegDatasetMapper": "anoseg_d2.data.dataset_mapper",
    "AnomalyEvaluator": "anoseg_d2.evaluation.anomaly_evaluation",
    "PixelMetrics": "anoseg_d2.evaluation.metrics",
}
__all__ = list(_EXPORTS)

# fvcore scripts two functions when it is imported; nobody who uses this package can change that.
warnings.filterwarnings("ignore", message="`torch.jit.script", category=FutureWarning)

# Nobody can look into detectron2's registries before they are imported, so that is soon enough.
after_import("detectron2.data", lambda: importlib.import_module("anoseg_d2.data.builtin"))
after_import("detectron2.modeling", lambda: importlib.import_module("anoseg_d2.modeling.eomt"))


def __getattr__(name):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "detectron2":
            raise
        raise ModuleNotFoundError(
            "anoseg_d2 needs detectron2, which is not installed: build the official one, or, in "
            "a checkout of anoseg_d2, run python tools/setup_env.py --detectron2-only",
            name="detectron2",
        ) from error


def __dir__():
    return sorted([*globals(), *_EXPORTS])
