"""Propose a dataset card for photographs and masks, with what was guessed in its comments.

Nothing is asked: what the values in the masks mean is guessed from which of them occur.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from anoseg_d2.data.contact_sheet import evenly_spread
from anoseg_d2.data.dataset_card import MAX_CLASSES
from anoseg_d2.data.dataset_files import match_files
from anoseg_d2.data.image_io import IMAGE_EXTENSIONS, read_label
from anoseg_d2.data.path_pattern import PathPattern, placeholders
from anoseg_d2.utils.constants import PASTED_ID, VOID
from anoseg_d2.utils.folders import walk_files

__all__ = ["KINDS", "FoundSplit", "ValueCount", "card_text", "count_values", "find_splits"]

KINDS = ("closed_set", "anomaly")
# Words in a folder's name that stand for masks. Without any, masks have a single channel.
_MASK_WORDS = re.compile(r"label|mask|annot|(?<![a-z])(gt|seg)|ground.?truth", re.IGNORECASE)
_SPLIT_WORDS = re.compile(r"(train|val|test)", re.IGNORECASE)
_OFFICIAL_CITYSCAPES = {7, 11, 21, 23, 26}  # road, building, vegetation, sky, car
_EXAMPLE = "--images 'photos/{id}.jpg' --masks 'masks/{id}_mask.png'"


@dataclass(frozen=True)
class FoundSplit:
    """Photographs and masks that one pair of patterns describes.

    Args:
        name: "train", "val", "test", the name of a folder, or "" where there is only one split.
        images, labels: patterns below the folder, as a card has them.
        pairs: (photograph, mask).
        unmatched: files that only one of the patterns finds.
    """

    name: str
    images: str
    labels: str
    pairs: list[tuple[Path, Path]]
    unmatched: list[Path]


def find_splits(folder, images: str | None = None, masks: str | None = None) -> list[FoundSplit]:
    """Pair photographs with masks.

    Args:
        folder: where they are.
        images, masks: patterns below it. `{split}` in both makes a split of everything that it
            stands for. None for both: a folder of masks is named like that of its photographs but
            for one part (train/photos, train/masks), and so are their files but for the extension.
    Raises:
        FileNotFoundError: no such folder.
        ValueError: a pattern does not fit the other one, or no photograph has a mask.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    if (images is None) != (masks is None):
        raise ValueError("--images and --masks belong together; give both or none")
    if images is None:
        patterns = _by_folders(folder)
    else:
        if not placeholders(images) or set(placeholders(images)) != set(placeholders(masks)):
            raise ValueError(
                f"--images {images!r} and --masks {masks!r} need the same placeholders in braces, "
                f"as in {_EXAMPLE}"
            )
        patterns = [("", images, masks)]
        if "split" in placeholders(images):
            found = match_files(folder, images)
            captured = (
                PathPattern(images).match(path.relative_to(folder).as_posix())
                for path in found.values()
            )
            names = sorted({parts["split"] for parts in captured if parts})
            patterns = [
                (name, *(pattern.replace("{split}", name) for pattern in (images, masks)))
                for name in names
            ]
    splits = []
    for name, image_pattern, mask_pattern in patterns:
        photos, labels = (match_files(folder, p) for p in (image_pattern, mask_pattern))
        pairs = [(photos[key], labels[key]) for key in sorted(photos.keys() & labels.keys())]
        # They are named and left out: a card states how many pairs there are.
        paired = {path for pair in pairs for path in pair}
        unmatched = sorted({*photos.values(), *labels.values()} - paired)
        if pairs:
            splits.append(FoundSplit(name, image_pattern, mask_pattern, pairs, unmatched))
    if not splits:
        raise ValueError(
            f"{folder}: no photograph has a mask of the same name. A mask is a png with one value "
            "per pixel, in a folder of its own: photos/street_01.jpg and masks/street_01.png. For "
            f"other names give patterns: {_EXAMPLE}"
        )
    return splits


def _by_folders(folder: Path) -> list[tuple[str, str, str]]:
    """Return (split, pattern of photographs, pattern of masks) of folders that belong together."""
    files = defaultdict(dict)
    for path in walk_files(folder, IMAGE_EXTENSIONS):
        files[path.parent.relative_to(folder).parts][path.stem] = path
    named = {parts for parts in files if any(map(_MASK_WORDS.search, parts))}
    masks = named
    if not named or len(named) == len(files):
        masks = {parts for parts in files if _has_one_channel(next(iter(files[parts].values())))}
    found = []
    for parts in files.keys() - masks:
        partners = [
            other
            for other in masks
            if files[parts].keys() & files[other].keys() and _differ_in_one(parts, other)
        ]
        # Pictures of labels often lie next to the labels; which ones count is the user's to say.
        if len(partners) > 1:
            names = ", ".join(sorted("/".join(other) for other in partners))
            raise ValueError(
                f"{folder}: the masks of {'/'.join(parts) or '.'} could be in {names}; say in "
                f"which, as in {_EXAMPLE}"
            )
        if partners:
            found.append((parts, *(str(PurePosixPath(*p, "{id}.*")) for p in (parts, *partners))))
    # "trainannot" and "validation" name splits too.
    words = [[m[1].lower() for m in map(_SPLIT_WORDS.match, parts) if m] for parts, *_ in found]
    names = [w[-1] if w else "" for w in words]
    if len(set(names)) < len(names):
        names = [re.sub(r"[^A-Za-z0-9]+", "_", "_".join(parts)) or "main" for parts, *_ in found]
    return sorted((name, *patterns) for name, (_, *patterns) in zip(names, found, strict=True))


def _differ_in_one(parts: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether two paths differ in one folder, or the second one is a folder in the first."""
    if len(parts) != len(other):
        return parts == other[:-1]
    return sum(a != b for a, b in zip(parts, other, strict=True)) == 1


def _has_one_channel(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return path.suffix.lower() not in (".jpg", ".jpeg") and len(image.getbands()) == 1
    except OSError:
        return False  # `anoseg check` names unreadable files


@dataclass
class ValueCount:
    """How often a value occurs in the masks.

    Args:
        pixels: fraction of all pixels, 0..1.
        masks: number of masks that hold it.
    """

    pixels: float
    masks: int

    def __str__(self) -> str:
        return f"{self.pixels:.2%} of the pixels, in {self.masks} masks"


def count_values(
    masks: list[Path], sample: int = 0, progress: Callable[[], object] = lambda: None
) -> dict[int, ValueCount]:
    """Count the values in masks.

    Args:
        masks: their files.
        sample: read at most this many, evenly spread; 0 reads all.
        progress: called after each mask.
    Returns:
        value -> how often it occurs, sorted by value.
    Raises:
        ValueError: a mask cannot be read, or is a colour picture or a JPEG.
    """
    if 0 < sample < len(masks):
        masks = [masks[index] for index in evenly_spread(len(masks), sample)]
    pixels, holders = Counter(), Counter()
    for path in masks:
        if path.suffix.lower() in (".jpg", ".jpeg"):
            raise ValueError(
                f"{path} is a JPEG, whose compression changes values. A mask has one number per "
                "pixel: save it as png"
            )
        values, counts = np.unique(read_label(path), return_counts=True)
        pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        holders.update(values.tolist())
        progress()
    total = sum(pixels.values())
    return {value: ValueCount(pixels[value] / total, holders[value]) for value in sorted(pixels)}


def card_text(
    name: str,
    root: str,
    splits: list[FoundSplit],
    values: dict[int, ValueCount],
    kind: str | None = None,
) -> str:
    """Write the card, with what was guessed in comments.

    Args:
        name: of the dataset.
        root: the folder of the images, as the card states it.
        splits: what `find_splits` found.
        values: what `count_values` found.
        kind: one of `KINDS`; None takes masks of two values besides void for an anomaly set.
    Returns:
        yaml.
    Raises:
        ValueError: the masks hold a single value, or more than there can be classes.
    """
    # 255 is void, unless only two values occur.
    meaningful = [value for value in values if value != VOID or len(values) <= 2]
    if len(meaningful) < 2:
        raise ValueError(
            f"the masks hold only the value {', '.join(map(str, values))}: nothing can be learned "
            "or evaluated with them"
        )
    guessed = "" if kind else "  # guessed from the values; --kind proposes the other one"
    kind = kind or KINDS[len(meaningful) == 2]
    count = sum(len(split.pairs) for split in splits)
    lines = [
        f"# Proposed by `anoseg card` from {count} photographs and their masks. Correct what is",
        "# wrong, then look at the data: `anoseg check --card` with this file.",
        f"name: {json.dumps(name)}",
        f"kind: {kind}{guessed}",
        f"root: {json.dumps(root)}" + ("  # the folder of this file" if root == "." else ""),
    ]
    indent = "    " if splits[0].name else ""
    lines += ["splits:"] if indent else []
    for split in splits:
        lines += [f"  {split.name}:"] if indent else []
        lines += [
            f"{indent}images: {json.dumps(split.images)}",
            f"{indent}labels: {json.dumps(split.labels)}",
            f"{indent}expected_images: {len(split.pairs)}  # delete this line if more will come",
        ]
    build = _anomaly_lines if kind == "anomaly" else _class_lines
    return "\n".join([*lines, *build(values, meaningful), ""])


def _anomaly_lines(values: dict[int, ValueCount], meaningful: list[int]) -> list[str]:
    # Anomalies are rare; 254 and 1 are what releases use for them.
    rarest = min(meaningful, key=lambda value: values[value].pixels)
    candidates = (value for value in (PASTED_ID, 1, VOID) if value in meaningful)
    anomaly = meaningful[1] if len(meaningful) == 2 else next(candidates, rarest)
    known = [value for value in meaningful if value != anomaly]
    void = _void_line(values)
    if anomaly == VOID:
        void = "void: []  # 255 often means `not labelled`, but here it is the only other value"
    return [
        f"known: {known}  # " + "; ".join(f"{value}: {values[value]}" for value in known),
        f"anomaly: {anomaly}  # {values[anomaly]}",
        void,
        "component_track: anomaly  # or obstacle, for small things on the road",
    ]


def _class_lines(values: dict[int, ValueCount], meaningful: list[int]) -> list[str]:
    classes = [value for value in meaningful if value != PASTED_ID]
    if len(classes) > MAX_CLASSES:
        raise ValueError(
            f"the masks hold {len(classes)} different values, and a card at most {MAX_CLASSES} "
            "classes: are these numbers of instances? A mask holds the number of a class in every "
            "pixel"
        )
    lines = []
    if set(classes) >= _OFFICIAL_CITYSCAPES and max(classes) <= 33:
        lines = [
            "# The values look like the official ids of Cityscapes. If they are, replace all that",
            "# follows by these two lines (cityscapes_outlier if 254 marks unknown objects):",
            "#   classes: cityscapes",
            "#   label_values: cityscapes",
        ]
    anomaly = [
        "# If a value marks unknown objects, move it from label_values and classes to this key;",
        "# the anomaly class (MODEL.EOMT.ANOMALY_CLASS True) learns from them:",
        f"# anomaly: {PASTED_ID}",
    ]
    if PASTED_ID in values:
        anomaly = [f"anomaly: {PASTED_ID}  # unknown objects: {values[PASTED_ID]}"]
    return [
        *lines,
        "classes:  # in the order of their train ids; use your own names, here and below",
        *(f"  - class_{value}" for value in classes),
        "label_values:  # value in the masks -> class",
        *(f"  {value}: class_{value}  # {values[value]}" for value in classes),
        _void_line(values),
        *anomaly,
    ]


def _void_line(values: dict[int, ValueCount]) -> str:
    if VOID not in values:
        return "void: []  # values of pixels that nobody labelled; they count nowhere"
    return f"void: [{VOID}]  # guessed: {values[VOID]}; these pixels count nowhere"
