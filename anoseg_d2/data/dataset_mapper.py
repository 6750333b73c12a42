"""From a dataset dict to what the model takes."""

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import MetadataCatalog

from anoseg_d2.data.augmentation import Augmentation
from anoseg_d2.data.builtin import datasets_root
from anoseg_d2.data.cut_paste import CutPasteOptions
from anoseg_d2.data.cut_paste.sampling import OnlineCutPaste
from anoseg_d2.data.cut_paste.sources import CONTROL_CLASSES, CocoObjects
from anoseg_d2.data.image_io import read_image
from anoseg_d2.data.label_rules import load_label

__all__ = ["AnosegDatasetMapper", "sample_generator"]


def sample_generator(seed: int, number: int, index: int) -> np.random.Generator:
    """Return the random source of one training sample.

    Args:
        seed: of the run.
        number: running number of the sample in the whole run, over all processes.
        index: of the image in the training list.
    """
    # The spawn key keeps this stream apart from that of pasting, which has the same three numbers.
    return np.random.default_rng(np.random.SeedSequence([seed, number, index], spawn_key=(1,)))


class AnosegDatasetMapper:
    """Read an image and its label, paste and augment for training, and make tensors.

    What a sample becomes depends only on its dataset dict and on `(seed, number, index)`, which the
    training loader puts into the dict as "sample", and not on worker, process or order.

    Args:
        is_train: augment and give labels; otherwise only the whole image, at native size.
        augmentation: for training.
        cut_paste: `(image, label, number, index) -> (image, label)` on train ids, before the
            augmentation, such as `OnlineCutPaste`; None for no pasting while loading.
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
        augmentation = Augmentation(
            crop_size=tuple(cfg.INPUT.CROP_SIZE),
            color_jitter=cfg.INPUT.COLOR_JITTER,
            scale_jitter=tuple(cfg.INPUT.SCALE_JITTER),
            flip=cfg.INPUT.FLIP,
        )
        return {
            "is_train": True,
            "augmentation": augmentation,
            "cut_paste": _online_cut_paste(cfg),
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Map one sample.

        Args:
            dataset_dict: from DatasetCatalog; for training with "sample", (seed, number, index).
        Returns:
            the dict's entries, and for training "image" (3, crop_h, crop_w) uint8 RGB and
            "sem_seg" (crop_h, crop_w) int64 with 255 for void and padding; else "image"
            (3, H, W) uint8 RGB of native size, "height" and "width".
        Raises:
            FileNotFoundError, ValueError: unreadable files, label values without a rule, or
                image and label of different sizes; the message names the file.
        """
        sample = {k: v for k, v in dataset_dict.items() if k not in ("sample", "label_rule")}
        image = read_image(sample["file_name"])
        if not self.is_train:
            height, width = image.shape[:2]
            return {**sample, "image": _to_tensor(image), "height": height, "width": width}
        label = load_label(sample["sem_seg_file_name"], dataset_dict["label_rule"])
        if image.shape[:2] != label.shape:
            raise ValueError(
                f"{sample['file_name']} is {image.shape[1]}x{image.shape[0]}, but its label "
                f"{sample['sem_seg_file_name']} is {label.shape[1]}x{label.shape[0]} (width x "
                "height); they must agree"
            )
        image, label = self._augmented(image, label, dataset_dict.get("sample"))
        sem_seg = torch.from_numpy(label.astype(np.int64))
        return {**sample, "image": _to_tensor(image), "sem_seg": sem_seg}

    def _augmented(self, image, label, sample_id):
        # detectron2's own loaders number nothing, but seed numpy's global state in each worker.
        seed, number, index = sample_id or np.random.randint(2**31, size=3).tolist()
        if self.cut_paste is not None:
            image, label = self.cut_paste(image, label, number, index)
        return self.augmentation(image, label, sample_generator(seed, number, index))


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _online_cut_paste(cfg) -> OnlineCutPaste | None:
    """Build the pasting of INPUT.CUT_PASTE, in train ids: K for the anomaly."""
    node = cfg.INPUT.CUT_PASTE
    if not node.ENABLED:
        return None
    for key in ("COCO_JSON", "COCO_IMAGES"):
        if not node[key]:
            raise ValueError(
                f"INPUT.CUT_PASTE.ENABLED is True, but INPUT.CUT_PASTE.{key} is empty; give COCO's "
                "instances_train2017.json and train2017"
            )
    coco = [datasets_root() / path for path in (node.COCO_JSON, node.COCO_IMAGES)]
    train_ids = _train_ids_by_name(cfg)
    options = CutPasteOptions(
        ratio=node.RATIO,
        control_count=(0, node.CONTROL_OBJECTS),
        placement=node.PLACEMENT,
        size="native" if node.SCALE_MODE == "uniform" else node.SCALE_MODE,
        ground_labels=tuple(train_ids[name] for name in ("road", "sidewalk") if name in train_ids),
        feather=tuple(node.FEATHER),
        opaque_core=node.OPAQUE_CORE,
        anomaly_value=cfg.MODEL.EOMT.NUM_CLASSES,
    )
    controls = []
    if node.CONTROL_OBJECTS:
        labels = {name: train_ids[name] for name in CONTROL_CLASSES if name in train_ids}
        controls = [CocoObjects(*coco, labels=labels)]
    seed = cfg.SEED if cfg.SEED >= 0 else int(np.random.SeedSequence().generate_state(1)[0])
    outliers = CocoObjects(*coco)
    return OnlineCutPaste(outliers, options, seed, controls)


def _train_ids_by_name(cfg) -> dict[str, int]:
    classes = {tuple(MetadataCatalog.get(name).stuff_classes) for name in cfg.DATASETS.TRAIN}
    if len(classes) != 1:
        raise ValueError(
            "INPUT.CUT_PASTE.ENABLED needs training sets that share their classes; DATASETS.TRAIN "
            f"is {cfg.DATASETS.TRAIN}"
        )
    return {name: train_id for train_id, name in enumerate(classes.pop())}
