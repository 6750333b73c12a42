"""Predict with an exported ONNX file: onnxruntime and numpy, without torch or detectron2."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from anoseg_d2.modeling.model_info import ModelInfo
from anoseg_d2.prediction.predictor import AnomalyPredictor, read_bgr


class ExportedPredictor(AnomalyPredictor):
    """`AnomalyPredictor` of a file that `anoseg export` wrote; see `from_exported`.

    Args:
        path: of the file.
    """

    def __init__(self, path):
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{path} needs onnxruntime: pip install onnxruntime", name="onnxruntime"
            ) from error
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist")
        try:
            providers = ["CPUExecutionProvider"]
            self.session = onnxruntime.InferenceSession(str(path), providers=providers)
            about = self.session.get_modelmeta().custom_metadata_map
            outputs, scores, names, known = (
                json.loads(about[key])
                for key in ("outputs", "score_names", "class_names", "num_known")
            )
        except Exception as error:  # onnxruntime's own have no common class
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{path} is not a file of `anoseg export`: {reason}") from error
        self.weights_file = Path(path)
        # What the properties of a predictor ask a model for.
        info = ModelInfo(class_names=names, thresholds=json.loads(about.get("thresholds", "{}")))
        self.model = SimpleNamespace(score_names=scores, num_known=known, info=info)
        self.outputs = [name for name in outputs if name in ("sem_seg", *scores, "confidence")]

    def unit_scores(self, result: dict) -> dict[str, np.ndarray]:
        on_it = [name for name, record in self.thresholds.items() if record.get("unit_scale")]
        return super().unit_scores(result) | {name: result["scores"][name] for name in on_it}

    def _predict(self, images) -> list[dict]:
        return [self._predict_one(read_bgr(image)) for image in images]

    def _predict_one(self, image: np.ndarray) -> dict:
        (taken,) = self.session.get_inputs()
        batch, _, *size = taken.shape
        open_size = not all(isinstance(side, int) for side in size)
        if not open_size and tuple(size) != image.shape[:2] or batch not in (1, "batch"):
            raise ValueError(
                f"{self.weights_file} takes {batch} image(s) of {size[0]}x{size[1]} pixels, not "
                f"{image.shape[0]}x{image.shape[1]}: export it without --image-size"
            )
        kind = np.float32 if taken.type == "tensor(float)" else np.uint8
        channels = np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)[None], kind)
        values = self.session.run(self.outputs, {taken.name: channels})
        found = {name: value[0] for name, value in zip(self.outputs, values, strict=True)}
        result = {"sem_seg": found["sem_seg"], "scores": {n: found[n] for n in self.score_names}}
        return result | {n: found[n] for n in ("confidence",) if n in found}
