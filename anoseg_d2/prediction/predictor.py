"""One image in, segmentation and anomaly scores out."""

import numpy as np
import torch
from detectron2.modeling import build_model

from anoseg_d2.checkpoint import build_config_overrides, read_checkpoint
from anoseg_d2.checkpoint.from_config import load_checkpoint, load_weights
from anoseg_d2.config import load_config
from anoseg_d2.modeling import eomt  # noqa: F401  registers the meta-architecture

__all__ = ["AnomalyPredictor", "as_bgr"]


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
        predictor = cls.__new__(cls)
        predictor.cfg = cfg
        predictor.model = build_model(cfg).eval()
        load_checkpoint(cfg, predictor.model, checkpoint)
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


def as_bgr(image: np.ndarray) -> np.ndarray:
    """Bring an image in memory, as cv2 reads it with any flag, to what the predictor takes.

    One channel is repeated, an alpha channel is dropped (transparent pixels show the colour that
    is stored under them), 16-bit values keep their high byte: they are taken to fill 0..65535.

    Args:
        image: (H, W), (H, W, 1), (H, W, 3) BGR or (H, W, 4) BGRA; uint8, uint16 or bool.
    Returns:
        (H, W, 3) uint8 BGR; the very array when it is that already.
    Raises:
        ValueError: another shape or type; the message says what to convert.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or image.size == 0:
        hint = "; transpose it: channels come last" if image.shape[:1] in ((1,), (3,)) else ""
        raise ValueError(
            f"an image is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {image.shape}{hint}"
        )
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    elif image.dtype == bool:
        image = image.astype(np.uint8) * 255
    elif image.dtype != np.uint8:
        raise ValueError(
            f"an image is uint8 or uint16, not {image.dtype}; bring it to 0..255 and to uint8"
        )
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[..., :3]
