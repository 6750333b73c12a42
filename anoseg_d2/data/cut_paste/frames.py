"""Find the scenes to paste objects into, and read their labels in one coding."""

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from anoseg_d2.data.dataset_card import find_card, read_card
from anoseg_d2.data.dataset_files import FoundFiles
from anoseg_d2.data.image_io import read_label
from anoseg_d2.data.label_rules import LABEL_RULES, LabelRule
from anoseg_d2.utils.constants import ANOMALY, CITYSCAPES_CLASSES, KNOWN, PASTED_ID, VOID
from anoseg_d2.utils.files import check_name

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
        # Official ids where the scenes have them, so that Cityscapes' own tools read the new set.
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
        root, card, name = cityscapes, read_card(find_card("cityscapes")), "--cityscapes"
        # The folder itself is named, not the one that it is in.
        known = [replace(d, layouts=(replace(d.layouts[0], folders=("",)),)) for d in card]
    else:
        # It imports detectron2, which Cityscapes does without.
        from anoseg_d2.data.builtin import DATASETS, datasets_root, register_cards

        root, name = datasets_root(), f"--dataset {dataset}"
        # A card, shipped or a file, has one or several sets; a registered set is one split already.
        names = [dataset] if dataset in DATASETS else register_cards(dataset)
        known = [DATASETS[n] for n in names]
    splits = {d.split or split: d for d in known}
    wanted = split or ("train" if len(splits) > 1 else next(iter(splits)))
    if wanted not in splits:
        raise ValueError(f"{name} has {', '.join(splits)}, but no split {wanted}")
    found = splits[wanted]
    split = check_name(split or found.split or "train", "split")
    if found.evaluator_type != "closed_set" or found.anomaly_id is not None:
        raise ValueError(
            f"{found.name} already has anomalies; objects can only be pasted into closed sets"
        )
    group = re.sub("(_test)?(_val)?(_train)?$", "", found.name)
    return _frames(found.find(root), group), SceneLabelReader(found.rule, found.classes), split


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
