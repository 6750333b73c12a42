"""Register the datasets of the shipped cards on import, without looking for their files.

Files are searched for only when a dataset is loaded, under `DETECTRON2_DATASETS` (default
`datasets`), so only the datasets that a run uses need to exist.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from anoseg_d2.data.dataset import Dataset, allow_count_mismatch
from anoseg_d2.data.dataset_card import find_card, read_card, shipped_cards
from anoseg_d2.data.label_rules import LabelRule
from anoseg_d2.utils.constants import VOID

DATASETS: dict[str, Dataset] = {}


def datasets_root() -> Path:
    """Return the folder of all datasets: DETECTRON2_DATASETS, or `datasets`."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def register_all(root=None) -> None:
    """Register Cityscapes, the benchmarks and the other shipped cards; may be called again.

    Args:
        root: datasets folder; None reads DETECTRON2_DATASETS each time a dataset is loaded.
    """
    register_cards(shipped_cards(), root)


def register_cards(cards, root=None) -> list[str]:
    """Register the datasets of cards.

    Args:
        cards: yaml files or names of shipped cards; or a config, whose DATASETS.CARDS are
            registered and whose DATASETS.ALLOW_COUNT_MISMATCH applies from then on.
        root: as in `register_all`.
    Returns:
        the names registered.
    Raises:
        FileNotFoundError, ValueError: there is no such card, or it violates the schema.
    """
    if hasattr(cards, "DATASETS"):  # a config
        allow_count_mismatch(cards.DATASETS.ALLOW_COUNT_MISMATCH)
        for name in (*cards.DATASETS.TRAIN, *cards.DATASETS.TEST):
            complete_dataset(name)
        cards = cards.DATASETS.CARDS
    if isinstance(cards, (str, os.PathLike)) or not isinstance(cards, Iterable):
        cards = [cards]
    names = []
    for card in cards:
        for dataset in read_card(find_card(card)):
            register_dataset(dataset, root)
            names.append(dataset.name)
    return names


def register_dataset(dataset: Dataset, root=None) -> None:
    """Add a dataset to detectron2's catalogs.

    Registering the same dataset again, or rereading its card, replaces the old entry.

    Args:
        dataset: what to register.
        root: as in `register_all`.
    Raises:
        ValueError: the name belongs to something else.
    """
    name = dataset.name
    known = DATASETS.get(name)
    # Only its own card may replace a set: figures of two sets under one name would be mixed up.
    if (known is None and name in DatasetCatalog) or (known and known.origin != dataset.origin):
        owner = known.origin if known else "another project"
        raise ValueError(
            f"dataset name {name!r} ({dataset.origin}) is already taken by {owner}: choose another"
        )
    if known is not None:
        unregister_dataset(name)
    DATASETS[name] = dataset
    # The root is read when the dataset is loaded: tests and commands set the variable after import.
    DatasetCatalog.register(name, lambda: dataset.load(datasets_root() if root is None else root))
    MetadataCatalog.get(name).set(**dataset.metadata())


def complete_dataset(name: str, needed: bool = False) -> None:
    """Give a set that was registered as detectron2's documentation says what this project needs.

    Its labels are class numbers 0 to K - 1 and `ignore_label` (255 by default), for K
    `stuff_classes`. Does nothing for other sets, or if it was done before.

    Args:
        name: registered dataset.
        needed: refuse a set without `stuff_classes`, which a user's own evaluator may not need.
    Raises:
        ValueError: there are none; when the set is listed, also that an image lacks a file.
    """
    metadata = MetadataCatalog.get(name) if name in DatasetCatalog else None
    # Sets of this project say how they are evaluated; a foreign one says nothing, or detectron2's.
    foreign = metadata is not None and metadata.get("evaluator_type") in (None, "sem_seg")
    if not foreign or metadata.get("label_rule") is not None:
        return
    if not metadata.get("stuff_classes"):
        if not needed:
            return
        raise ValueError(
            f"dataset {name!r} has no class names: MetadataCatalog.get({name!r}).set("
            "stuff_classes=[...], ignore_label=255), one name for each label value from 0"
        )
    ignored = {metadata.get("ignore_label", VOID), VOID}
    values = {value: value for value in range(len(metadata.stuff_classes))}
    rule = LabelRule(name, tuple((values | dict.fromkeys(ignored, VOID)).items()))
    load = DatasetCatalog[name]
    # Not `set`, which refuses to change the evaluator's type.
    vars(metadata).update(evaluator_type="closed_set", label_rule=rule, ignore_label=VOID)
    DatasetCatalog[name] = lambda: [_completed(name, entry, rule) for entry in load()]


def _completed(name: str, entry: dict, rule: LabelRule) -> dict:
    for key in ("file_name", "sem_seg_file_name"):
        if key not in entry:
            found = ", ".join(map(str, entry))
            raise ValueError(f"an image of dataset {name!r} has no {key!r}; it has: {found}")
    return {"image_id": Path(entry["file_name"]).stem, **entry, "label_rule": rule}


def unregister_dataset(name: str) -> None:
    """Remove a dataset from the catalogs; KeyError when it is not one of ours."""
    del DATASETS[name]
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


register_all()
