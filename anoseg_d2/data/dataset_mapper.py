"""Turn a dataset dict into the input of the model."""

from functools import partial

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import DatasetCatalog, MetadataCatalog

from anoseg_d2.data.augmentation import Augmentation
from anoseg_d2.data.builtin import datasets_root
from anoseg_d2.data.cut_paste.options import ObjectOptions, read_options
from anoseg_d2.data.cut_paste.sampling import OnlineCutPaste, object_sources
from anoseg_d2.data.cut_paste.sources import ClosedSetObjects
from anoseg_d2.data.image_io import read_image
from anoseg_d2.data.label_rules import load_label
from anoseg_d2.utils.cli import printable
from anoseg_d2.utils.options import options_of


def sample_generator(seed: int, number: int, index: int) -> np.random.Generator:
    """Return the random generator of one training sample.

    Args:
        seed: of the run.
        number: position of the sample in the whole run, counted over all processes.
        index: of the image in the training list.
    """
    # Pasting is seeded by the same three numbers; the spawn key keeps the two streams independent.
    return np.random.default_rng(np.random.SeedSequence([seed, number, index], spawn_key=(1,)))


class AnosegDatasetMapper:
    """Read an image and its label, paste and augment for training, and make tensors.

    The result depends only on the dataset dict and on `(seed, number, index)`, which the training
    loader adds to the dict as "sample"; it does not depend on worker, process or order.

    Args:
        is_train: augment and return labels; otherwise return only the whole image at native size.
        augmentation: for training.
        cut_paste: `(image, label, number, index) -> (image, label)` on train ids, before the
            augmentation, such as `OnlineCutPaste`; None pastes nothing while loading.
    """

    @configurable
    def __init__(self, *, is_train: bool, augmentation: Augmentation | None = None, cut_paste=None):
        if is_train and augmentation is None:
            raise ValueError("a training mapper needs an augmentation")
        self.is_train = is_train
        self.augmentation = augmentation
        self.cut_paste = cut_paste

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict:
        if not is_train:
            return {"is_train": False}
        return {
            "is_train": True,
            "augmentation": options_of(cfg, "INPUT", Augmentation),
            "cut_paste": _online_cut_paste(cfg),
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Map one sample.

        Args:
            dataset_dict: from DatasetCatalog; for training with "sample", (seed, number, index).
        Returns:
            the dict's entries, and for training "image" (3, crop_h, crop_w) uint8 RGB and
            "sem_seg" (crop_h, crop_w) int64 with 255 for void and padding; else "image" (3, H, W)
            uint8 RGB of native size, "height" and "width".
        Raises:
            FileNotFoundError, ValueError: a file is unreadable, a label value has no rule, or image
                and label differ in size; the message names the file.
        """
        # What only this mapper needs would travel through the worker's queue with every image.
        sample = {k: v for k, v in dataset_dict.items() if k not in ("sample", "label_rule")}
        image = read_image(sample["file_name"])
        if not self.is_train:
            height, width = image.shape[:2]
            return {**sample, "image": _to_tensor(image), "height": height, "width": width}
        label = load_label(sample["sem_seg_file_name"], dataset_dict["label_rule"])
        if image.shape[:2] != label.shape:
            photo, stored = (printable(sample[key]) for key in ("file_name", "sem_seg_file_name"))
            sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (image, label)]
            raise ValueError(
                f"{photo} is {sizes[0]}, but its label {stored} is {sizes[1]} (width x height)"
            )
        # detectron2's own loaders do not number samples, but they seed numpy in each worker.
        seed, number, index = (
            dataset_dict.get("sample") or np.random.randint(2**31, size=3).tolist()
        )
        if self.cut_paste is not None:
            image, label = self.cut_paste(image, label, number, index)
        image, label = self.augmentation(image, label, sample_generator(seed, number, index))
        sem_seg = torch.from_numpy(label.astype(np.int64))
        return {**sample, "image": _to_tensor(image), "sem_seg": sem_seg}


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _online_cut_paste(cfg) -> OnlineCutPaste | None:
    """Build what INPUT.CUT_PASTE describes; pasted anomalies get train id K."""
    if not cfg.INPUT.CUT_PASTE.ENABLED:
        return None
    classes = {tuple(MetadataCatalog.get(name).stuff_classes) for name in cfg.DATASETS.TRAIN}
    if len(classes) != 1:
        raise ValueError(
            f"INPUT.CUT_PASTE.ENABLED needs sets of the same classes: {cfg.DATASETS.TRAIN}"
        )
    # Labels are already train ids when this pastes, so ground and anomaly are given as train ids.
    train_ids = {name: train_id for train_id, name in enumerate(classes.pop())}
    objects = options_of(cfg, "INPUT.CUT_PASTE", ObjectOptions)
    options = read_options(
        cfg,
        ground_labels=tuple(train_ids[name] for name in ("road", "sidewalk") if name in train_ids),
        anomaly_value=cfg.MODEL.EOMT.NUM_CLASSES,
    )

    def closed_set() -> ClosedSetObjects:
        # The images in the order of the loader, whose numbers keep an image from its own segments.
        entries = [entry for name in cfg.DATASETS.TRAIN for entry in DatasetCatalog.get(name)]
        rules = {entry["sem_seg_file_name"]: entry["label_rule"] for entry in entries}
        return ClosedSetObjects(
            [(entry["file_name"], entry["sem_seg_file_name"]) for entry in entries],
            partial(_load_by_file, rules=rules),
            train_ids,
            rarest_first=objects.rarest_first,
        )

    sources = object_sources(objects, options, train_ids, closed_set, datasets_root())
    seed = cfg.SEED if cfg.SEED >= 0 else int(np.random.SeedSequence().generate_state(1)[0])
    return OnlineCutPaste(sources[0], options, seed, *sources[1:])


def _load_by_file(path, rules) -> np.ndarray:
    return load_label(path, rules[str(path)])
