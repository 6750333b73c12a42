"""One image in, segmentation and anomaly scores out."""

import logging

import numpy as np
import torch
from detectron2.modeling import build_model

from anoseg_d2.checkpoint import build_config_overrides, load_into, read_checkpoint
from anoseg_d2.config import load_config
from anoseg_d2.data.image_io import as_bgr
from anoseg_d2.modeling import eomt  # noqa: F401  registers the meta-architecture
from anoseg_d2.weights import load_weights, restore_statistics, with_delta_base

__all__ = ["AnomalyPredictor"]

logger = logging.getLogger(__name__)


class AnomalyPredictor:
    """Run a model on single images of any size.

    Args:
        cfg: config node; MODEL.WEIGHTS is loaded, MODEL.DEVICE decides where it runs.

    Example::

        predictor = AnomalyPredictor.from_pretrained("model_final.pth")
        result = predictor(cv2.imread("street.jpg"))
        result["scores"]["rba"]  # (H, W) float32, higher is more anomalous
    """

    def __init__(self, cfg):
        self.cfg = cfg.clone()
        self.model = build_model(self.cfg).eval()
        load_weights(self.cfg, self.model)

    @classmethod
    def from_pretrained(cls, source: str, overrides: list | None = None) -> "AnomalyPredictor":
        """Build the model that a checkpoint describes and load it.

        Args:
            source: a checkpoint of ours, of EoMT's authors or of transformers: path, folder, or
                `hf://owner/name`.
            overrides: config keys and values in turn, over what the checkpoint says.
        Raises:
            FileNotFoundError, ValueError: see `read_checkpoint`, `load_config` and `load_into`.
        """
        checkpoint = read_checkpoint(source)
        cfg = load_config(overrides=[*build_config_overrides(checkpoint), *(overrides or [])])
        checkpoint = with_delta_base(cfg, checkpoint)
        predictor = cls.__new__(cls)
        predictor.cfg = cfg
        predictor.model = build_model(cfg).eval()
        load_into(predictor.model, checkpoint)
        restore_statistics(predictor.model, checkpoint)
        return predictor

    @property
    def score_names(self) -> list[str]:
        """Scores that the model gives."""
        return list(self.model.score_names)

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> dict:
        """Predict one image.

        Args:
            image: (H, W, 3) uint8, BGR as cv2 reads it; gray, BGRA and 16-bit images are
                converted as `as_bgr` says.
        Returns:
            `sem_seg` (H, W) int64 argmax over the known classes, `scores` {name: (H, W) float32},
            `confidence` (H, W) float32 in 0..1, all at native size.
        Raises:
            ValueError: another shape or type.
            RuntimeError: memory does not suffice for a single window.
        """
        image = as_bgr(image)
        rgb = torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)))
        output = self.model([{"image": rgb}])[0]
        return {
            "sem_seg": output["sem_seg"].cpu().numpy(),
            "scores": {name: value.cpu().numpy() for name, value in output["scores"].items()},
            "confidence": output["confidence"].cpu().numpy(),
        }
