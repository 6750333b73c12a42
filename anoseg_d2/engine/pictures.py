"""Show during training how the model segments and scores a few fixed test images."""

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.evaluation import inference_context
from torch import nn

from anoseg_d2.data.dataset_mapper import AnosegDatasetMapper
from anoseg_d2.data.label_rules import load_label
from anoseg_d2.evaluation.streaming.keys import to_numpy
from anoseg_d2.utils.constants import ANOMALY_COLOR
from anoseg_d2.utils.unwrap import unwrap
from anoseg_d2.utils.visualization import (
    class_palette,
    color_anomaly_label,
    color_classes,
    fit_long_side,
    heat_map,
    resize_image,
    resize_label,
    resize_score,
    score_range,
)

__all__ = ["PictureHook"]

IMAGES = 2  # of each dataset
LONG_SIDE = 320  # of each of the four parts of a picture, pixels


class PictureHook(HookBase):
    """Put pictures of the first images of DATASETS.TEST into the storage, for TensorBoard.

    Each shows, from left to right, photograph, label, segmentation, and the score: the learned
    anomaly where the model has it, else the first of its scores. Its colours span the range that
    the score has in this image.

    Args:
        cfg: config node; reads VIS_PERIOD and DATASETS.TEST.
    """

    def __init__(self, cfg):
        self.cfg, self.period = cfg, cfg.VIS_PERIOD

    def before_train(self):
        mapper = AnosegDatasetMapper(self.cfg, False)
        kinds = ("closed_set", "anomaly")
        known = [n for n in self.cfg.DATASETS.TEST if _metadata(n, "evaluator_type") in kinds]
        self.samples = [
            (name, mapper(entry)) for name in known for entry in DatasetCatalog.get(name)[:IMAGES]
        ]
        train = MetadataCatalog.get(self.cfg.DATASETS.TRAIN[0]) if self.cfg.DATASETS.TRAIN else {}
        self.colors = train.get("stuff_colors")

    def after_step(self):
        done = self.trainer.iter + 1
        if done % self.period and done != self.trainer.max_iter:
            return
        model = unwrap(self.trainer.model)
        with inference_context(model), torch.no_grad():
            for name, sample in self.samples:
                picture = self._picture(model, name, sample)
                tensor = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
                self.trainer.storage.put_image(f"{name}/{sample['image_id']}", tensor)

    def _picture(self, model: nn.Module, name: str, sample: dict) -> np.ndarray:
        """Draw photograph, label, segmentation and score side by side, (h, 4 w, 3) uint8 RGB."""
        (output,) = model([sample])
        scores, anomaly = output["scores"], _metadata(name, "evaluator_type") == "anomaly"
        score = to_numpy(scores.get("anomaly", next(iter(scores.values()))))
        label = load_label(sample["sem_seg_file_name"], _metadata(name, "label_rule"))
        sem_seg = to_numpy(output["sem_seg"])
        if sem_seg.ndim == 3:  # one-hot, for detectron2's evaluators
            sem_seg = sem_seg.argmax(axis=0)
        palette = class_palette(self.cfg.MODEL.EOMT.NUM_CLASSES, self.colors)
        palette[self.cfg.MODEL.EOMT.NUM_CLASSES] = ANOMALY_COLOR
        size = fit_long_side(*label.shape, LONG_SIDE)
        small = resize_label(label, size, keep=1 if anomaly else None)  # no anomaly vanishes
        return np.hstack(
            [
                resize_image(to_numpy(sample["image"]).transpose(1, 2, 0), size),
                color_anomaly_label(small) if anomaly else color_classes(small, palette),
                color_classes(resize_label(sem_seg.astype(np.uint8), size), palette),
                heat_map(resize_score(score, size), *score_range([score])),
            ]
        )


def _metadata(name: str, key: str):
    return MetadataCatalog.get(name).get(key)
