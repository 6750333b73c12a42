"""Infer from dataset cards, or from the folder of a run, what would otherwise be typed as keys.

anoseg train street.yaml --size S --epochs 20
anoseg resume runs/street
anoseg eval runs/street unknown.yaml
"""

import argparse
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from anoseg_d2.data.dataset import Dataset
from anoseg_d2.data.dataset_card import find_card, read_card
from anoseg_d2.utils.config_files import load_yaml

__all__ = ["Inferred", "expand", "split_places"]

_EPOCHS, _BATCH, _SIZE, _STAGE = 20, 4, "S", "eomt_baseline"
_LARGEST_CROP = 512  # pixels; larger ones are asked for
_PATCH = 16
_MOST_WORKERS = 4


class Inferred(NamedTuple):
    """A config key that nobody typed, its value, and where that is from."""

    key: str
    value: Any
    reason: str


def split_places(words: list[str]) -> tuple[list[str], list[str]]:
    """Split positional arguments into cards or run folders, and `KEY VALUE` pairs.

    The pairs begin at the first word that looks like a key (capitals, digits, `_` and dots) and
    is not the name of a file or folder.
    """
    for index, word in enumerate(words):
        if re.fullmatch(r"[A-Z][A-Z0-9_.]*", word) and not Path(word).exists():
            return words[:index], words[index:]
    return words, []


def expand(args: argparse.Namespace, places: list[str]) -> list[Inferred]:
    """Complete a command line: `config_file`, `resume` and `opts` are set in place.

    Args:
        args: of `argument_parser`, with `stage`, `size`, `epochs`, `batch` and `weights`.
        places: cards to train on, or the folder of a run and more cards to evaluate on.
    Returns:
        what was inferred, without the keys that the user gave.
    Raises:
        FileNotFoundError, ValueError: there is no such card or run, or nothing to train on.
    """
    short = [args.stage, args.size, args.epochs, args.batch, args.weights]
    if not places:
        if any(value is not None for value in short):
            raise ValueError("--stage, --size, --epochs, --batch and --weights go with a card")
        if args.resume and not args.config_file and not args.opts:
            raise ValueError("name the folder of a run, or a --config-file")
        return []
    if Path(places[0]).is_dir():
        found = _of_run(args, places[0], places[1:])
    else:
        found = _of_cards(args, places)
    given = set(args.opts[::2])
    found = [entry for entry in found if entry.key not in given]
    args.opts = [*(part for entry in found for part in entry[:2]), *args.opts]
    return found


def _of_run(args: argparse.Namespace, folder: str, cards: list[str]) -> list[Inferred]:
    config = Path(folder, "config.yaml")
    if not config.is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a run: it has no config.yaml")
    args.config_file, args.resume = str(config), True
    found = [Inferred("OUTPUT_DIR", folder, "the run")]
    if cards:
        stored = load_yaml(config)["DATASETS"]
        names = [dataset.name for dataset in _datasets(cards)]
        tests = list(dict.fromkeys([*stored["TEST"], *names]))
        found.append(Inferred("DATASETS.CARDS", [*stored["CARDS"], *cards], "run and cards"))
        found.append(Inferred("DATASETS.TEST", tests, "run and cards"))
    return found


def _of_cards(args: argparse.Namespace, cards: list[str]) -> list[Inferred]:
    if args.eval_only:
        raise ValueError(f"{cards[0]} is not the folder of a run: anoseg eval RUN [CARD ...]")
    from anoseg_d2.data.builtin import datasets_root  # needs detectron2

    datasets = _datasets(cards)
    closed = [dataset for dataset in datasets if dataset.evaluator_type == "closed_set"]
    if not closed:
        raise ValueError(f"{', '.join(cards)}: no card has classes to train on")
    train = next((dataset for dataset in closed if dataset.split == "train"), closed[0])
    images = train.load(datasets_root())
    batch = args.batch or _BATCH
    epochs = args.epochs or _EPOCHS
    steps = math.ceil(epochs * len(images) / batch)
    args.config_file = args.config_file or args.stage or _STAGE
    name = train.name.removesuffix("_train") + (f"_{args.stage}" if args.stage else "")
    found = [
        Inferred("DATASETS.CARDS", cards, "given"),
        Inferred("DATASETS.TRAIN", [train.name], f"{len(images)} images"),
        Inferred("DATASETS.TEST", [d.name for d in datasets if d is not train], "the cards"),
        Inferred("MODEL.EOMT.NUM_CLASSES", len(train.classes), "names in the card"),
        Inferred("SOLVER.IMS_PER_BATCH", batch, "--batch"),
        Inferred("SOLVER.MAX_ITER", steps, f"--epochs {epochs:g}"),
        Inferred("SOLVER.CHECKPOINT_PERIOD", max(1, steps // 4), "a quarter of the run"),
        Inferred("DATALOADER.NUM_WORKERS", min(_MOST_WORKERS, os.cpu_count() or 1), "cores"),
        Inferred("OUTPUT_DIR", f"runs/{name}", "card and --stage"),
    ]
    if train.anomaly_id is not None:
        marked = "the card marks unknown objects"
        found.append(Inferred("MODEL.EOMT.ANOMALY_CLASS", True, marked))
        found.append(Inferred("MODEL.CRITERION.VOID", "exclude", marked))
    if args.weights:  # which say size, registers, head and crop themselves
        found.append(Inferred("MODEL.WEIGHTS", args.weights, "--weights"))
    if args.size or not args.weights:
        found.append(Inferred("MODEL.EOMT.SIZE", args.size or _SIZE, "--size"))
    if not args.weights:
        with Image.open(images[0]["file_name"]) as photo:
            short = min(photo.size)
        crop = max(min(short, _LARGEST_CROP) // _PATCH, 1) * _PATCH
        why = f"short side of the first image, at most {_LARGEST_CROP}"
        found.append(Inferred("INPUT.CROP_SIZE", (crop, crop), why))
    return found


def _datasets(cards: list[str]) -> list[Dataset]:
    return [dataset for card in cards for dataset in read_card(find_card(card))]
