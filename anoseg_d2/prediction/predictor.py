"""Predict the segmentation and anomaly scores of images."""

import os
from typing import TYPE_CHECKING

import numpy as np

from anoseg_d2.data.class_colors import class_colors
from anoseg_d2.data.image_io import read_image, to_rgb
from anoseg_d2.utils.constants import SHIPPED_NAME

# An exported file needs neither torch nor detectron2, so they are imported where a model is built.
if TYPE_CHECKING:
    import torch

    from anoseg_d2.checkpoint import Checkpoint


class AnomalyPredictor:
    """Run a model on images of any size.

    Args:
        cfg: config node; MODEL.WEIGHTS is loaded, MODEL.DEVICE decides where it runs.
        device: overrides MODEL.DEVICE, such as "cuda:1" or "cpu".

    Example::

        predictor = AnomalyPredictor.from_pretrained()  # or ("model_final.pth")
        result = predictor("street.jpg")
        result["scores"][predictor.score_names[0]]  # (H, W) float32, higher is more anomalous
    """

    def __init__(self, cfg, device: "str | torch.device | None" = None):
        from anoseg_d2.checkpoint.from_config import load_weights
        from anoseg_d2.config import check_config

        self.cfg = cfg.clone()
        self.cfg.defrost()
        self.cfg.MODEL.DEVICE = str(device or self.cfg.MODEL.DEVICE)
        check_config(self.cfg)
        self.model = _build_model(self.cfg)
        self.weights_file = load_weights(self.cfg, self.model).file

    @classmethod
    def from_pretrained(
        cls,
        source: "str | Checkpoint" = SHIPPED_NAME,
        overrides: list | None = None,
        device: "str | torch.device | None" = None,
    ) -> "AnomalyPredictor":
        """Build the model that a checkpoint describes and load it.

        Args:
            source: a checkpoint of ours, of EoMT's authors or of transformers: path, folder, or
                `hf://owner/name`; or one that was read. Default: the model that ships, whose
                backbone is downloaded once (44 MB).
            overrides: config keys and values in turn, which override the checkpoint's own.
            device: overrides MODEL.DEVICE.
        Raises:
            FileNotFoundError, ValueError: see `read_checkpoint`, `load_config` and `load_into`.
        """
        from anoseg_d2.checkpoint import Checkpoint, build_config_overrides, read_checkpoint
        from anoseg_d2.checkpoint.from_config import inference_overrides, load_checkpoint
        from anoseg_d2.config import load_config

        checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source)
        chosen = [] if device is None else ["MODEL.DEVICE", str(device)]
        # Later ones win: what the weights are, how they ask to be used, what the user says.
        stored = [*build_config_overrides(checkpoint), *inference_overrides(checkpoint)]
        overrides = [*stored, *(overrides or []), *chosen]
        cfg = load_config(overrides=overrides)
        # The checkpoint has been read already, to know its model; `__init__` would read it again.
        predictor = cls.__new__(cls)
        predictor.cfg = cfg
        predictor.model = _build_model(cfg)
        predictor.weights_file = load_checkpoint(cfg, predictor.model, checkpoint).file
        return predictor

    @classmethod
    def from_exported(cls, path: str | os.PathLike) -> "AnomalyPredictor":
        """Open a file of `anoseg export`, which needs neither torch nor detectron2.

        It gives the same results, on the CPU by onnxruntime, and mostly faster. The scores are
        those that were exported; `confidence` is among the results if it was.

        Args:
            path: of the ONNX file.
        Raises:
            FileNotFoundError, ValueError: the file does not exist, or no export of ours.
            ModuleNotFoundError: onnxruntime is not installed.
        """
        from anoseg_d2.prediction.exported import ExportedPredictor

        return ExportedPredictor(path)

    @property
    def score_names(self) -> list[str]:
        """Scores that the model gives."""
        return list(self.model.score_names)

    @property
    def thresholds(self) -> dict[str, dict]:
        """Thresholds of `anoseg threshold` by score, see `evaluation.alarm_rate`."""
        return dict(self.model.info.thresholds)

    def unit_scores(self, result: dict) -> dict[str, np.ndarray]:
        """Put the scores of a result that have a threshold on 0..1, with the threshold at 0.5."""
        from anoseg_d2.evaluation.alarm_rate import to_unit  # it needs scipy

        return {
            name: to_unit(result["scores"][name], record["threshold"], record["median"])
            for name, record in self.thresholds.items()
            if name in result["scores"]
        }

    @property
    def class_names(self) -> list[str]:
        """Names of the known classes, in the order of `sem_seg`'s values."""
        return class_colors(self.model.num_known, self.model.info.class_names)[0]

    @property
    def palette(self) -> np.ndarray:
        """Colours of the known classes: (256, 3) uint8 RGB, to index with `sem_seg`."""
        return class_colors(self.model.num_known, self.model.info.class_names)[1]

    def __call__(self, images):
        """Predict one image or several.

        Args:
            images: an image, or a list or tuple of images. An image is (H, W, 3) uint8, BGR as cv2
                reads it, a path, or a PIL image.
        Returns:
            for an image: `sem_seg` (H, W) int64 argmax over the known classes, `scores`
            {name: (H, W) float32}, `confidence` (H, W) float32 in 0..1, all at native size. For
            several, a list of such results.
        Raises:
            FileNotFoundError, ValueError: an image cannot be read, or has another shape or type.
        """
        if isinstance(images, (list, tuple)):
            return self._predict(images)
        return self._predict([images])[0]

    def _predict(self, images) -> list[dict]:
        import torch

        samples = []
        for image in images:
            # The model takes RGB with channels first; here images are BGR, as in detectron2.
            channels = read_bgr(image)[..., ::-1].transpose(2, 0, 1)
            samples.append({"image": torch.from_numpy(np.ascontiguousarray(channels))})
        return [
            {
                "sem_seg": output["sem_seg"].cpu().numpy(),
                "scores": {name: value.cpu().numpy() for name, value in output["scores"].items()},
                "confidence": output["confidence"].cpu().numpy(),
            }
            for output in self.model(samples)
        ]


def _build_model(cfg):
    from detectron2.modeling import build_model

    from anoseg_d2.modeling import eomt  # noqa: F401  registers the meta-architecture

    return build_model(cfg).eval()


def read_bgr(image) -> np.ndarray:
    """Return an image, given in any accepted form, as (H, W, 3) uint8 BGR.

    Raises:
        ValueError: an array has another shape or type.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)[..., ::-1]
    if hasattr(image, "convert"):
        return to_rgb(image, "an image")[..., ::-1]
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"an image is (H, W, 3) uint8, as cv2.imread gives it, not {image.shape} {image.dtype}"
        )
    return image
