"""Find the scenes to paste objects into, and read their labels in one coding."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anoseg_d2.data.dataset_files import FoundFiles, Layout, find_files
from anoseg_d2.data.image_io import read_label
from anoseg_d2.data.label_rules import LABEL_RULES, LabelRule
from anoseg_d2.utils.constants import ANOMALY, CITYSCAPES_CLASSES, KNOWN, PASTED_ID, VOID
from anoseg_d2.utils.files import check_name

__all__ = [
    "IMAGE_SUFFIX",
    "Frame",
    "SceneLabelReader",
    "find_scenes",
    "frames_of_cityscapes",
]

IMAGE_SUFFIX = "_leftImg8bit"


@dataclass(frozen=True)
class Frame:
    """A scene to paste objects into.

    Args:
        index: position in the dataset; seeds what is pasted.
        group, stem: names of its folder and file in the output.
        image, label: files; label is None where the dataset has no label for this image.
    """

    index: int
    group: str
    stem: str
    image: Path
    label: Path | None

    @property
    def name(self) -> str:
        return f"{self.group}/{self.stem}"


@dataclass(frozen=True)
class SceneLabelReader:
    """Reader of closed-set labels as Cityscapes ids, or as train ids where the classes differ.

    Args:
        rule: label rule of the dataset.
        classes: its K known classes in train-id order.
    """

    rule: LabelRule
    classes: tuple[str, ...] = CITYSCAPES_CLASSES

    @property
    def is_cityscapes(self) -> bool:
        return tuple(self.classes) == CITYSCAPES_CLASSES

    def known(self) -> dict[str, int]:
        """Return class name -> value in the maps that this reader returns."""
        ids = _label_ids() if self.is_cityscapes else np.arange(len(self.classes))
        return {name: int(value) for name, value in zip(self.classes, ids, strict=False)}

    def __call__(self, path) -> np.ndarray:
        """Read a label map, (H, W) uint8; void keeps its official id or becomes 0 (train ids: 255).

        Raises:
            FileNotFoundError, ValueError: as in `label_rules.load_label`.
        """
        stored = read_label(path)
        train_ids = self.rule.apply(stored, str(path))
        if not self.is_cityscapes:
            return train_ids
        rule = self.rule.for_file(str(path))
        if rule == LABEL_RULES["cityscapes"]:
            return stored.astype(np.uint8)
        # A file of train ids between files of official ids: the set that is written has one coding.
        return np.take(_label_ids(), train_ids)

    def to_benchmark(self, label: np.ndarray) -> np.ndarray:
        """Convert labels with pasted objects to 0 known, 1 anomaly, 255 void."""
        table = np.full(256, VOID, np.uint8)
        table[list(self.known().values())] = KNOWN
        table[PASTED_ID] = ANOMALY
        return np.take(table, label)


def _label_ids() -> np.ndarray:
    """Return the table train id -> official Cityscapes id; void becomes 0, unlabeled."""
    table = np.zeros(256, np.uint8)
    for value, train_id in LABEL_RULES["cityscapes"].values:
        if train_id != VOID:
            table[train_id] = value
    return table


def find_scenes(
    cityscapes: str | None, dataset: str | None, split: str | None
) -> tuple[list[Frame], SceneLabelReader, str]:
    """Find the scenes that a command names.

    Args:
        cityscapes: folder in Cityscapes layout, or None for `dataset`.
        dataset: name of a registered closed set, or a dataset card.
        split: such as `train`; None for the dataset's own, `train` if it has several.
    Returns:
        the frames, the reader of their labels, and the name of the split.
    Raises:
        FileNotFoundError, ValueError: there is no such dataset, or it has no such split.
    """
    if cityscapes:
        split = check_name(split or "train", "split")
        frames = frames_of_cityscapes(cityscapes, split)
        return frames, SceneLabelReader(LABEL_RULES["cityscapes"]), split
    # It imports detectron2, which Cityscapes does without.
    from anoseg_d2.data.builtin import DATASETS, datasets_root, register_cards

    # A card, shipped or a file, has one or several sets; a registered set is one split already.
    known = [dataset] if dataset in DATASETS else register_cards(dataset)
    splits = {DATASETS[name].split or split: name for name in known}
    wanted = split or ("train" if len(splits) > 1 else next(iter(splits)))
    if wanted not in splits:
        raise ValueError(f"--dataset {dataset} has {', '.join(splits)}, but no split {wanted}")
    found = DATASETS[splits[wanted]]
    split = check_name(split or found.split or "train", "split")
    if found.evaluator_type != "closed_set" or found.anomaly_id is not None:
        raise ValueError(
            f"{found.name} already has anomalies; objects can only be pasted into closed sets"
        )
    group = re.sub("(_test)?(_val)?(_train)?$", "", found.name)
    frames = _frames(found.find(datasets_root()), group)
    return frames, SceneLabelReader(found.rule, found.classes), split


def frames_of_cityscapes(folder, split: str) -> list[Frame]:
    """List a folder in Cityscapes layout.

    Args:
        folder: holds leftImg8bit/ and gtFine/.
        split: such as `train`.
    Raises:
        FileNotFoundError: no image with a label was found; the message says what was looked for
            and what is there.
    """
    layout = Layout(
        "Cityscapes",
        ("",),
        (f"leftImg8bit/{split}/*/{{id}}{IMAGE_SUFFIX}.*",),
        # Both codings hold the same labels; where both exist, the official ids are read.
        tuple(f"gtFine/{split}/*/{{id}}_gtFine_{c}.png" for c in ("labelIds", "labelTrainIds")),
    )
    return _frames(find_files(f"--cityscapes, split {split}", folder, (layout,)), "")


def _frames(found: FoundFiles, group: str) -> list[Frame]:
    pairs = [(image, label) for _, image, label in found.pairs]
    # Images without a label are reported as not made, and count in the seeds of the others.
    pairs += [(image, None) for image in found.images_without_label]
    named = []
    for image, label in pairs:
        stem = image.stem.removesuffix(IMAGE_SUFFIX)
        named.append((image.parent.name if stem != image.stem else group, stem, image, label))
    twice = [name for name, number in Counter(item[:2] for item in named).items() if number > 1]
    if twice:
        raise ValueError(f"{len(twice)} names in {found.folder} occur twice, such as {twice[0]}")
    return [Frame(index, *item) for index, item in enumerate(sorted(named))]
