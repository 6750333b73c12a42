"""Registered datasets of a few small images, and score maps for them."""

from dataclasses import replace

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from anoseg_d2.data.builtin import DATASETS, register_dataset
from anoseg_d2.data.dataset_card import CARDS_FOLDER
from anoseg_d2.data.image_io import write_image
from anoseg_d2.data.label_rules import LabelRule

ANOMALY_RULE = LabelRule("test anomaly", ((0, 0), (1, 1), (255, 255)))
CLOSED_RULE = LabelRule("test closed", ((0, 0), (1, 1), (2, 2), (3, 3), (255, 255)))
CLASSES = ("road", "car", "sky")
COPIED = (
    *("cityscapes", "cityscapes_outlier", "road_anomaly", "road_anomaly21", "road_obstacle21"),
    *("fishyscapes_lostandfound", "fishyscapes_static", "lost_and_found"),
)


def register_copies() -> None:
    """Register the known datasets once more as `small_<name>`, where any number of images is right.

    Their files are in `small/cityscapes`, `small/cityscapes_outlier` and `small/benchmarks`.
    """
    for name, dataset in list(DATASETS.items()):
        if dataset.origin in [str(CARDS_FOLDER / f"{card}.yaml") for card in COPIED]:
            benchmark = dataset.evaluator_type == "anomaly"
            base = "small/benchmarks" if benchmark else "small"
            layouts = tuple(
                replace(layout, folders=tuple(f"{base}/{folder}" for folder in layout.folders))
                for layout in dataset.layouts
            )
            plain = name.removeprefix("cityscapes_19_").removeprefix("cityscapes_")
            copy = replace(dataset, name=f"small_{plain}", layouts=layouts, expected_images=None)
            register_dataset(replace(copy, origin="tests"))


def register(name: str, images: list[dict], **metadata) -> str:
    """File images under `name`, in place of an earlier test's."""
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: images)
    MetadataCatalog.get(name).set(**metadata)
    return name


def write_set(folder, name: str, labels: list[np.ndarray], **metadata) -> list[dict]:
    """Write photographs and labels, register them, and return their dataset dicts."""
    rng = np.random.default_rng(0)
    images = []
    for index, label in enumerate(labels):
        photo, target = folder / f"{name}_{index}.png", folder / f"{name}_{index}_label.png"
        write_image(photo, rng.integers(0, 255, (*label.shape, 3), dtype=np.uint8))
        write_image(target, label)
        images.append(
            {
                "file_name": str(photo),
                "sem_seg_file_name": str(target),
                "image_id": f"{name}_{index}",
            }
        )
    register(name, images, ignore_label=255, **metadata)
    return images


def anomaly_labels(count: int, shape=(40, 64), seed: int = 0) -> list[np.ndarray]:
    """Labels with one square of anomaly, a void row, and none in the last of several."""
    rng = np.random.default_rng(seed)
    labels = []
    for index in range(count):
        label = np.zeros(shape, np.uint8)
        if index < count - 1 or count == 1:
            top, left = rng.integers(2, shape[0] - 16), rng.integers(2, shape[1] - 16)
            label[top : top + 12, left : left + 12] = 1
        label[-1] = 255
        labels.append(label)
    return labels


def anomaly_set(folder, name: str = "test_anomaly", count: int = 4, **kwargs) -> list[dict]:
    """A registered anomaly set; see `anomaly_labels`."""
    labels = anomaly_labels(count, **kwargs)
    return write_set(folder, name, labels, evaluator_type="anomaly", label_rule=ANOMALY_RULE)


def closed_set(folder, labels, name: str = "test_closed", **metadata) -> list[dict]:
    """A registered closed set of three classes; label 3 is a pasted anomaly."""
    return write_set(
        folder,
        name,
        labels,
        evaluator_type="closed_set",
        label_rule=CLOSED_RULE,
        stuff_classes=list(CLASSES),
        stuff_colors=[(128, 64, 128), (0, 0, 142), (70, 130, 180)],
        **metadata,
    )


def outputs_for(label: np.ndarray, seed: int, names=("msp", "rba"), signal=2.0) -> dict:
    """What a model of middling quality would give for an image."""
    rng = np.random.default_rng(seed)
    scores = {
        name: (signal * (label == 1) + rng.standard_normal(label.shape)).astype(np.float32)
        for name in names
    }
    return {"sem_seg": rng.integers(0, 3, label.shape), "scores": scores}
