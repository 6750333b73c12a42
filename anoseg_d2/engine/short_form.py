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

from anoseg_d2.data.card_proposal import find_splits, plain_name, write_card
from anoseg_d2.data.dataset import Dataset
from anoseg_d2.data.dataset_card import find_card, read_card, shipped_cards
from anoseg_d2.utils.config_files import load_yaml

_EPOCHS, _BATCH, _SIZE, _STAGE = 20, 4, "S", "eomt_baseline"
_AUTO_BATCH = 16  # of the paper
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
        args: of `anoseg train`, see `commands.train`.
        places: cards to train on (with `masks` the first is a folder of images instead), or the
            folder of a run and more cards to evaluate on.
    Returns:
        what was inferred, without the keys that the user gave.
    Raises:
        FileNotFoundError, ValueError: there is no such card or run, or nothing to train on.
    """
    names = ("stage", "size", "epochs", "steps", "batch", "weights", "masks", "patience")
    given = [f"--{name}" for name in names if getattr(args, name) is not None]
    of_run = bool(places) and Path(places[0]).is_dir() and not args.masks
    if given and (of_run or not places):
        raise ValueError(f"{', '.join(given)} must go with a card to train on")
    if args.resume and not (places or args.config_file or args.opts):
        raise ValueError("name the folder of a run, or a --config-file")
    if args.device:
        args.opts = ["MODEL.DEVICE", args.device, *args.opts]
    if not places:
        return []
    found = _of_run(args, places[0], places[1:]) if of_run else _of_cards(args, places)
    typed = set(args.opts[::2])
    found = [entry for entry in found if entry.key not in typed]
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

    typed = dict(zip(args.opts[::2], args.opts[1::2], strict=False))
    folder, reason = typed.get("OUTPUT_DIR"), "given"
    if args.masks:
        card, reason = _propose_card(args, cards[0], folder)
        cards, folder = [str(card), *cards[1:]], str(card.parent)
    datasets = _datasets(cards)
    closed = [dataset for dataset in datasets if dataset.evaluator_type == "closed_set"]
    if not closed:
        raise ValueError(f"{', '.join(cards)}: no card has classes to train on")
    train = next((dataset for dataset in closed if dataset.split == "train"), closed[0])
    images = train.load(datasets_root())
    batch = _AUTO_BATCH if args.batch == "auto" else args.batch or _BATCH
    if args.epochs and args.steps:
        raise ValueError("--epochs and --steps both say how long to train; leave one out")
    epochs = args.epochs or _EPOCHS
    steps = args.steps or math.ceil(epochs * len(images) / batch)
    quarter = max(1, steps // 4)
    args.config_file = args.config_file or args.stage or _STAGE
    name = train.name.removesuffix("_train") + (f"_{args.stage}" if args.stage else "")
    found = [
        Inferred("DATASETS.CARDS", cards, reason),
        Inferred("DATASETS.TRAIN", [train.name], f"{len(images)} images"),
        Inferred("DATASETS.TEST", [d.name for d in datasets if d is not train], "the cards"),
        Inferred("MODEL.EOMT.NUM_CLASSES", len(train.classes), "names in the card"),
        Inferred("SOLVER.IMS_PER_BATCH", batch, "--batch"),
        Inferred("SOLVER.MAX_ITER", steps, "--steps" if args.steps else f"--epochs {epochs:g}"),
        Inferred("SOLVER.CHECKPOINT_PERIOD", quarter, "a quarter of the run"),
        Inferred("DATALOADER.NUM_WORKERS", min(_MOST_WORKERS, os.cpu_count() or 1), "cores"),
        Inferred("OUTPUT_DIR", folder or f"runs/{name}", "card and --stage"),
    ]
    if train.anomaly_id is not None:
        marked = "the card marks unknown objects"
        found.append(Inferred("MODEL.EOMT.ANOMALY_CLASS", True, marked))
        found.append(Inferred("MODEL.CRITERION.VOID", "exclude", marked))
    of_vit = _bare_vit(args.weights) if args.weights else {"MODEL.EOMT.SIZE": _SIZE}
    if args.weights:  # of a whole network, they say size, registers, head and crop themselves
        found.append(Inferred("MODEL.WEIGHTS", args.weights, "--weights"))
    for key, value in (of_vit | ({"MODEL.EOMT.SIZE": args.size} if args.size else {})).items():
        chosen = key == "MODEL.EOMT.SIZE" and (args.size or not args.weights)
        found.append(Inferred(key, value, "--size" if chosen else "--weights"))
    if of_vit:
        with Image.open(images[0]["file_name"]) as photo:
            short = min(photo.size)
        crop = max(min(short, _LARGEST_CROP) // _PATCH, 1) * _PATCH
        why = f"short side of the first image, at most {_LARGEST_CROP}"
        found.append(Inferred("INPUT.CROP_SIZE", (crop, crop), why))
    validation = next((dataset.name for dataset in closed if dataset is not train), None)
    if validation and "DATASETS.TEST" not in typed and typed.get("TEST.EVAL_PERIOD") != "0":
        figure, epoch = f"{validation}/closed_set/mIoU", math.ceil(len(images) / batch)
        found.append(Inferred("SOLVER.BEST_FIGURE", figure, "the validation set; model_best.pth"))
        period, why = (epoch, "an epoch") if args.patience else (quarter, "a quarter of the run")
        found.append(Inferred("TEST.EVAL_PERIOD", period, why))
    if args.patience:
        if not validation:
            raise ValueError("--patience needs a validation set: a card with a further split")
        found.append(Inferred("SOLVER.PATIENCE", args.patience, "--patience"))
    if args.batch == "auto":
        found.append(_divide_batch(args, found))
    return found


def _bare_vit(weights: str) -> dict[str, Any]:
    """Return the keys that describe weights that are only a ViT; of a whole network none."""
    from anoseg_d2.checkpoint import build_config_overrides, read_checkpoint
    from anoseg_d2.checkpoint.fetch_backbone import backbone_file
    from anoseg_d2.modeling.vit import BACKBONES

    if weights in BACKBONES:
        return {"MODEL.EOMT.BACKBONE": weights, "MODEL.EOMT.SIZE": _SIZE}
    checkpoint = read_checkpoint(backbone_file(weights))
    if checkpoint.spec.num_queries is not None:
        return {}
    values = build_config_overrides(checkpoint)
    pairs = zip(values[::2], values[1::2], strict=True)
    # Patch and crop are resized to those of the network.
    return {k: v for k, v in pairs if k not in ("MODEL.EOMT.PATCH_SIZE", "INPUT.CROP_SIZE")}


def _propose_card(args, images: str, folder: str | None) -> tuple[Path, str]:
    """Write a card for a folder of images and one of masks into the run's folder.

    Returns:
        the card, and where it is from. One that is there already is taken as it is: it may have
        been corrected.
    """
    places = [os.path.abspath(os.path.expanduser(place)) for place in (images, args.masks)]
    for place in places:
        if not os.path.isdir(place):
            raise FileNotFoundError(f"{place} is not a folder; --masks goes with one of images")
    root = Path(os.path.commonpath(places))
    name = plain_name(root)
    if name in shipped_cards():  # whose datasets have this name
        name = f"my_{name}"
    folder = folder or f"runs/{name}" + (f"_{args.stage}" if args.stage else "")
    card = Path(folder, f"{name}.yaml")
    if card.exists():
        return card, "proposed before; correct it there"
    splits = find_splits(root, *(Path(p).relative_to(root).as_posix() for p in places))
    write_card(card, name, root, splits, "closed_set")
    pairs = sum(len(split.pairs) for split in splits)
    return card, f"proposed from {pairs} pairs; correct it there"


def _divide_batch(args: argparse.Namespace, found: list[Inferred]) -> Inferred:
    """Divide the batch into the fewest equal parts that fit into the memory.

    An image needs 32 values per token, channel and block of the ViT (benchmarks/README.md), the
    12 C^2 weights of a block 16 bytes each: weight, gradient and two moments. 70 % of the free
    memory of a GPU, or half of that of the machine, may be used.
    """
    import torch

    from anoseg_d2.config import load_config, options_of
    from anoseg_d2.engine.preflight import follow_weights
    from anoseg_d2.modeling.vit import VitOptions

    pairs = [*(part for entry in found for part in entry[:2]), *args.opts]
    cfg = load_config(args.config_file, pairs, args.imports)
    follow_weights(cfg, pairs[::2], training=True)
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    if on_gpu:
        memory = int(0.7 * torch.cuda.mem_get_info(cfg.MODEL.DEVICE)[0])
    shape = options_of(cfg, "MODEL.EOMT", VitOptions).shape
    tokens = math.prod(cfg.INPUT.CROP_SIZE) / cfg.MODEL.EOMT.PATCH_SIZE**2
    image = (
        32 * tokens * shape.width * shape.depth * (2 if on_gpu and cfg.SOLVER.AMP.ENABLED else 4)
    )
    fit = (memory - 16 * 12 * shape.width**2 * shape.depth) / image
    each = cfg.SOLVER.IMS_PER_BATCH // args.num_gpus
    parts = next((n for n in range(1, each) if each % n == 0 and each / n <= fit), each)
    why = f"--batch auto: {each // parts} images at once in {memory / 2**30:.1f} GiB"
    return Inferred("SOLVER.ACCUMULATION", parts, why)


def _datasets(cards: list[str]) -> list[Dataset]:
    return [dataset for card in cards for dataset in read_card(find_card(card))]
