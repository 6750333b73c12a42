"""Propose a dataset card for photographs and masks.

Nothing is asked: what the values in the masks mean is guessed from which of them occur.
"""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from anoseg_d2.data.dataset_card import MAX_CLASSES
from anoseg_d2.data.dataset_files import match_files, path_regex, placeholders
from anoseg_d2.data.image_io import read_label
from anoseg_d2.utils.cli import Progress
from anoseg_d2.utils.constants import PASTED_ID, VOID
from anoseg_d2.utils.files import write_atomic
from anoseg_d2.utils.folders import same_name

KINDS = ("closed_set", "anomaly")
# Where the folders of photographs and of masks usually are.
_PLACES = ("{{split}}/{}/{{id}}.*", "{}/{{split}}/{{id}}.*", "{}/{{id}}.*")
_EXAMPLE = "--images 'photos/{id}.jpg' --masks 'masks/{id}_mask.png'"
_HEADER = """\
# Proposed by `anoseg card`: void, anomaly and the kind are guesses from the values in the masks.
# Correct what is wrong and name the classes, then look at the data: `anoseg check --card FILE`.
# If a value marks unknown objects, move it from classes and label_values to `anomaly`.
"""


class FoundSplit(NamedTuple):
    """The photographs and masks that match one pair of patterns.

    Args:
        name: "train", "val", "test", the name of a folder, or "" where there is only one split.
        images, labels: patterns below the folder, as a card has them.
        pairs: (photograph, mask).
        unmatched: files that only one of the patterns finds, of any split.
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
            stands for. Folders mean the files of equal names in them, or in their folders of
            splits. None for both tries the usual folders: images or photos, masks or labels, and
            folders of splits above or below them.
    Raises:
        FileNotFoundError: no such folder.
        ValueError: a pattern does not fit the other one, or no photograph has a mask.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    if images and masks and all((folder / part).is_dir() for part in (images, masks)):
        # A folder that holds the other one, such as ".", is its start too.
        starts = ["" if part == "." else f"{part}/" for part in (images, masks)]
        files = ("{split}/{id}.*", "{id}.*")
        tried = [tuple(start + file for start in starts) for file in files]
    elif images is not None or masks is not None:
        names = [set(placeholders(pattern or "")) for pattern in (images, masks)]
        if not names[0] or names[0] != names[1]:
            raise ValueError(
                f"--images and --masks need the same placeholders in braces, as in {_EXAMPLE}"
            )
        tried = [(images, masks)]
    else:
        kinds = itertools.product(_PLACES, ("images", "photos"), ("masks", "labels"))
        tried = [(place.format(i), place.format(m)) for place, i, m in kinds]
    for patterns in tried:
        found = _split(folder, *patterns)
        if found:
            return found
    raise ValueError(
        f"{folder}: no photograph has a mask of the same name, as photos/street_01.jpg and "
        f"masks/street_01.png have. For other names give patterns: anoseg card {_EXAMPLE}"
    )


def _split(folder: Path, images: str, masks: str) -> list[FoundSplit]:
    """Return the pairs of two patterns, by what `{split}` stands for."""
    photos, labels = match_files(folder, images), match_files(folder, masks)
    regex, splits = path_regex(images), defaultdict(list)
    for key in sorted(photos.keys() & labels.keys()):
        found = regex.fullmatch(same_name(photos[key].relative_to(folder).as_posix()))
        splits[found.groupdict().get("split", "")].append((photos[key], labels[key]))
    # They are named and left out: a card states how many pairs there are.
    unmatched = [path for key, path in photos.items() if key not in labels]
    unmatched += [path for key, path in labels.items() if key not in photos]
    return [
        FoundSplit(name, *(p.replace("{split}", name) for p in (images, masks)), pairs, unmatched)
        for name, pairs in sorted(splits.items())
    ]


def count_values(splits: Sequence[FoundSplit]) -> dict[int, float]:
    """Count the values in the masks of all splits together, as a card describes each value once.

    Returns:
        value -> its fraction of all pixels, sorted by value.
    Raises:
        ValueError: a mask cannot be read, or is a colour picture or a JPEG.
    """
    masks, pixels = [mask for split in splits for _, mask in split.pairs], Counter()
    with Progress("read", len(masks), "masks") as progress:
        for path in masks:
            if path.suffix.lower() in (".jpg", ".jpeg"):
                raise ValueError(
                    f"{path} is a JPEG, whose compression changes values: save masks as png"
                )
            values, counts = np.unique(read_label(path), return_counts=True)
            pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            progress.update()
    return {value: pixels[value] / pixels.total() for value in sorted(pixels)}


def plain_name(folder: Path) -> str:
    """Return the name of a folder without what the name of a dataset may not have."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", folder.resolve().name).strip("_.-") or "my_data"


def write_card(output: Path, name: str, folder: Path, splits, kind=None) -> dict[int, float]:
    """Write the card that `card_text` proposes for the pairs in a folder.

    Returns:
        the values of the masks and their fractions.
    """
    values = count_values(splits)
    # Next to its images a card stays true when the folder is moved.
    inside = output.resolve().parent == folder.resolve()
    text = card_text(name, "." if inside else str(folder.resolve()), splits, values, kind)
    write_atomic(output, text.encode())
    return values


def card_text(
    name: str,
    root: str,
    splits: Sequence[FoundSplit],
    values: dict[int, float],
    kind: str | None = None,
) -> str:
    """Write the card.

    Args:
        name: of the dataset.
        root: the folder of the images, as the card states it.
        splits: what `find_splits` found.
        values: what `count_values` found.
        kind: one of `KINDS`; None treats masks with two values other than void as an anomaly set.
    Returns:
        yaml.
    Raises:
        ValueError: the masks hold a single value, or more than there can be classes.
    """
    # 255 is void, unless only two values occur.
    meaningful = [value for value in values if value != VOID or len(values) <= 2]
    if len(meaningful) < 2:
        raise ValueError(
            f"the masks hold only the value {', '.join(map(str, values))}: nothing to be learned"
        )
    kind = kind or KINDS[len(meaningful) == 2]
    card = {"name": name, "kind": kind, "root": root}
    files = {
        split.name: {
            "images": split.images,
            "labels": split.labels,
            "expected_images": len(split.pairs),
        }
        for split in splits
    }
    card |= files.get("", {"splits": files})
    card["void"] = sorted(set(values) - set(meaningful))
    if kind == "anomaly":
        # Anomalies are rare; 254 and 1 are what releases use for them.
        rarest = min(meaningful, key=values.get)
        usual = (value for value in (PASTED_ID, 1, VOID) if value in meaningful)
        anomaly = meaningful[1] if len(meaningful) == 2 else next(usual, rarest)
        card |= {"known": [value for value in meaningful if value != anomaly], "anomaly": anomaly}
    else:
        classes = {value: f"class_{value}" for value in meaningful if value != PASTED_ID}
        if len(classes) > MAX_CLASSES:
            raise ValueError(
                f"the masks hold {len(classes)} different values, and a card at most {MAX_CLASSES} "
                "classes: are these numbers of instances?"
            )
        card |= {"classes": list(classes.values()), "label_values": classes}
        card |= {"anomaly": PASTED_ID} if PASTED_ID in values else {}
    return _HEADER + yaml.safe_dump(card, sort_keys=False, allow_unicode=True)
