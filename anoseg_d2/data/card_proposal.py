"""Propose a dataset card for photographs and masks, with what was guessed in its comments.

Nothing is asked: what the values in the masks mean is guessed from which of them occur.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from anoseg_d2.data.contact_sheet import evenly_spread
from anoseg_d2.data.dataset_card import MAX_CLASSES
from anoseg_d2.data.image_io import read_label
from anoseg_d2.data.mask_pairs import FoundSplit, Pairing
from anoseg_d2.utils.constants import PASTED_ID, VOID

__all__ = ["KINDS", "ValueCount", "card_text", "count_values", "guess_kind"]

KINDS = ("closed_set", "anomaly")
_OFFICIAL_CITYSCAPES = {7, 11, 21, 23, 26}  # road, building, vegetation, sky, car


@dataclass
class ValueCount:
    """How often a value occurs in the masks.

    Args:
        pixels: fraction of all pixels, 0..1.
        masks: number of masks that hold it.
    """

    pixels: float
    masks: int


def count_values(
    pairs: list[tuple[Path, Path]], sample: int = 0, progress: Callable[[], object] = lambda: None
) -> dict[int, ValueCount]:
    """Count the values in masks.

    Args:
        pairs: (photograph, mask).
        sample: read at most this many masks, evenly spread; 0 reads all.
        progress: called after each mask.
    Returns:
        value -> how often it occurs, sorted by value.
    Raises:
        ValueError: a mask cannot be read, or is a colour picture.
    """
    masks = [mask for _, mask in pairs]
    if 0 < sample < len(masks):
        masks = [masks[index] for index in evenly_spread(len(masks), sample)]
    pixels, holders = Counter(), Counter()
    for path in masks:
        _refuse_pictures(path)
        values, counts = np.unique(read_label(path), return_counts=True)
        pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        holders.update(values.tolist())
        progress()
    total = sum(pixels.values())
    return {value: ValueCount(pixels[value] / total, holders[value]) for value in sorted(pixels)}


def _refuse_pictures(path: Path) -> None:
    """Refuse masks that are pictures: lossy ones, and those whose channels differ."""
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise ValueError(
            f"{path} is a JPEG, whose compression changes values. A mask has one number per pixel: "
            "save it as png"
        )
    try:
        with Image.open(path) as image:
            channels = np.array(image) if image.mode in ("RGB", "RGBA") else None
    except OSError as error:
        raise ValueError(f"cannot read mask {path}: {error}") from error
    if channels is not None and (channels[..., :3] != channels[..., :1]).any():
        raise ValueError(
            f"{path} is a colour picture. A mask has one number per pixel: replace every colour "
            "by a number, and save a png with one channel"
        )


def guess_kind(values: dict[int, ValueCount]) -> str:
    """Return "anomaly" for masks of two values besides void, else "closed_set"."""
    return "anomaly" if len(_meaningful(values)) == 2 else "closed_set"


def _meaningful(values: dict[int, ValueCount]) -> list[int]:
    """Return the values that are not void: 255 is, unless only two values occur."""
    return [value for value in values if value != VOID or len(values) <= 2]


def card_text(
    name: str, root: str, pairing: Pairing, values: dict[int, ValueCount], kind: str | None = None
) -> str:
    """Write the card, with what was guessed in comments.

    Args:
        name: of the dataset.
        root: the folder of the images, as the card states it.
        pairing: what `find_pairs` found.
        values: what `count_values` found.
        kind: one of `KINDS`; None guesses it from the values.
    Returns:
        yaml.
    Raises:
        ValueError: the masks hold a single value, so they tell nothing apart.
    """
    meaningful = _meaningful(values)
    if len(meaningful) < 2:
        raise ValueError(
            f"the masks hold only the value {', '.join(map(str, values))}: nothing can be learned "
            "or evaluated with them"
        )
    guessed = kind is None
    kind = kind or guess_kind(values)
    count = sum(len(split.pairs) for split in pairing.splits)
    lines = [
        f"# Proposed by `anoseg card` from {count} photographs and their masks. Correct what is",
        "# wrong, then look at the data: `anoseg check --card` with this file.",
        f"name: {json.dumps(name)}",
        f"kind: {kind}" + _kind_comment(kind, guessed),
        f"root: {json.dumps(root)}" + ("  # the folder of this file" if root == "." else ""),
        *_file_lines(pairing.splits),
    ]
    build = _anomaly_lines if kind == "anomaly" else _class_lines
    lines += build(values, meaningful)
    return "\n".join([*lines, ""])


def _kind_comment(kind: str, guessed: bool) -> str:
    if not guessed:
        return ""
    other = KINDS[1 - KINDS.index(kind)]
    return f"  # guessed from the values; `--kind {other}` proposes the other one"


def _file_lines(splits: tuple[FoundSplit, ...]) -> list[str]:
    def entries(split: FoundSplit, indent: str) -> list[str]:
        return [
            f"{indent}images: {json.dumps(split.images)}",
            f"{indent}labels: {json.dumps(split.labels)}",
            f"{indent}expected_images: {len(split.pairs)}  # delete this line if more will come",
        ]

    if len(splits) == 1 and not splits[0].name:
        return entries(splits[0], "")
    lines = ["splits:"]
    for split in splits:
        lines += [f"  {split.name}:", *entries(split, "    ")]
    return lines


def _share(values: dict[int, ValueCount], value: int) -> str:
    found = values[value]
    return f"{found.pixels:.2%} of the pixels, in {found.masks} masks"


def _anomaly_lines(values: dict[int, ValueCount], meaningful: list[int]) -> list[str]:
    rarest = min(meaningful, key=lambda value: values[value].pixels)
    candidates = (value for value in (PASTED_ID, 1, VOID) if value in meaningful)
    anomaly = meaningful[1] if len(meaningful) == 2 else next(candidates, rarest)
    known = [value for value in meaningful if value != anomaly]
    lines = [
        f"known: {known}  # " + "; ".join(f"{v}: {_share(values, v)}" for v in known),
        f"anomaly: {anomaly}  # {_share(values, anomaly)}",
    ]
    if anomaly == VOID:
        lines += ["void: []  # 255 often means `not labelled`, but here it is the only other value"]
    else:
        lines += _void_lines(values)
    return [*lines, "component_track: anomaly  # or obstacle, for small things on the road"]


def _class_lines(values: dict[int, ValueCount], meaningful: list[int]) -> list[str]:
    classes = [value for value in meaningful if value != PASTED_ID]
    if len(classes) > MAX_CLASSES:
        raise ValueError(
            f"the masks hold {len(classes)} different values, and a card at most {MAX_CLASSES} "
            "classes: are these numbers of instances? A mask holds "
            "the number of a class in every pixel"
        )
    lines = []
    if set(classes) >= _OFFICIAL_CITYSCAPES and max(classes) <= 33:
        lines += [
            "# The values look like the official ids of Cityscapes. If they are, replace all that",
            "# follows by these two lines (cityscapes_outlier if 254 marks unknown objects):",
            "#   classes: cityscapes",
            "#   label_values: cityscapes",
        ]
    lines += ["classes:  # in the order of their train ids; use your own names, here and below"]
    lines += [f"  - class_{value}" for value in classes]
    lines += ["label_values:  # value in the masks -> class"]
    lines += [f"  {value}: class_{value}  # {_share(values, value)}" for value in classes]
    lines += _void_lines(values)
    if PASTED_ID in values:
        return [*lines, f"anomaly: {PASTED_ID}  # unknown objects: {_share(values, PASTED_ID)}"]
    return [
        *lines,
        "# If a value marks unknown objects, move it from label_values and classes to this key;",
        "# the anomaly class (MODEL.EOMT.ANOMALY_CLASS True) learns from them:",
        f"# anomaly: {PASTED_ID}",
    ]


def _void_lines(values: dict[int, ValueCount]) -> list[str]:
    if VOID not in values:
        return ["void: []  # values of pixels that nobody labelled; they count nowhere"]
    return [f"void: [{VOID}]  # guessed: {_share(values, VOID)}; these pixels count nowhere"]
