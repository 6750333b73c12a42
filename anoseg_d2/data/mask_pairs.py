"""Find photographs and their masks in a folder, by the names of files and folders."""

import os
import re
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from pathlib import Path, PurePosixPath

from PIL import Image

from anoseg_d2.data.image_io import IMAGE_EXTENSIONS

__all__ = ["FoundSplit", "Pairing", "find_pairs"]

# Words in a path that stand for masks. Without any, masks are the files with a single channel.
_MASK_WORDS = re.compile(r"label|mask|annot|(?<![a-z])(gt|seg)|ground.?truth", re.IGNORECASE)
# Pictures of labels, and labels of something else, that some releases keep next to them.
_OTHER_MASKS = re.compile(r"colou?r|instance|vis|overlay|preview|polygon", re.IGNORECASE)
_SPLIT_WORDS = re.compile(r"(train|val|test)", re.IGNORECASE)
_SEPARATORS = "_-. "


@dataclass(frozen=True)
class FoundSplit:
    """Photographs and masks that one pair of patterns describes.

    Args:
        name: "train", "val", "test", the name of a folder, or "" where there is only one split.
        images, labels: patterns below the folder, as a card has them.
        pairs: (photograph, mask).
    """

    name: str
    images: str
    labels: str
    pairs: tuple[tuple[Path, Path], ...]


@dataclass(frozen=True)
class Pairing:
    """What was found in a folder.

    Args:
        splits: at least one.
        unmatched: images that belong to no pair.
    """

    splits: tuple[FoundSplit, ...]
    unmatched: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Affixes:
    """What surrounds the id in the names of photographs and of masks."""

    image: tuple[str, str]
    label: tuple[str, str]

    def ids(self, stems: Iterable[str], which: str) -> dict[str, str]:
        """Return {id: stem} of the stems that have these affixes."""
        before, after = getattr(self, which)
        length = len(before) + len(after)
        return {
            stem[len(before) : len(stem) - len(after)]: stem
            for stem in stems
            if len(stem) > length and stem.startswith(before) and stem.endswith(after)
        }


@dataclass
class _Folder:
    """Files of one kind in one folder: {stem: path}."""

    parts: tuple[str, ...]
    files: dict[str, Path] = field(default_factory=dict)


def find_pairs(folder) -> Pairing:
    """Find photographs and their masks, with all subfolders.

    Args:
        folder: where they are.
    Raises:
        FileNotFoundError: no such folder, or it contains no images.
        ValueError: no photograph has a mask, or their names cannot be told apart in a card.
    """
    folder = Path(folder)
    files = _image_files(folder)
    if not files:
        raise FileNotFoundError(f"{folder} contains no images ({' '.join(IMAGE_EXTENSIONS)})")
    photos, masks = _sort_out(folder, files)
    found, used = [], set()
    for photo_folder in photos:
        match = _best_match(photo_folder, masks)
        if match is None:
            continue
        split = _split_of(photo_folder, *match)
        found.append((photo_folder.parts, match[0].parts, split))
        used.update(path for pair in split.pairs for path in pair)
    if not found:
        raise ValueError(
            f"{folder}: no photograph has a mask with a similar name. A mask is a png with one "
            "value per pixel, named like its photograph: street_01.jpg and street_01.png in two "
            f"folders, or street_01_mask.png. Found {len(files)} images, such as "
            f"{', '.join(str(path.relative_to(folder)) for path in files[:3])}"
        )
    splits = _named(_merged(found))
    unmatched = tuple(path for path in files if path not in used and not _is_other(path, folder))
    return Pairing(tuple(splits), unmatched)


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    paths = []
    for current, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [
            Path(current, name)
            for name in sorted(names)
            if name.lower().endswith(IMAGE_EXTENSIONS) and not name.startswith(".")
        ]
    return paths


def _is_other(path: Path, folder: Path) -> bool:
    """Whether it is a picture of labels, or a mask of something else than classes."""
    name = str(path.relative_to(folder))
    return bool(_MASK_WORDS.search(name) and _OTHER_MASKS.search(name))


def _sort_out(folder: Path, files: list[Path]) -> tuple[list[_Folder], list[_Folder]]:
    """Sort files into photographs and masks, by folder."""
    by_name = [bool(_MASK_WORDS.search(str(path.relative_to(folder)))) for path in files]
    told_by_name = any(by_name) and not all(by_name)
    sides: tuple[dict, dict] = ({}, {})
    for path, named in zip(files, by_name, strict=True):
        if _is_other(path, folder):
            continue
        is_mask = named if told_by_name else _one_channel(path)
        parts = path.parent.relative_to(folder).parts
        entry = sides[is_mask].setdefault(parts, _Folder(parts))
        entry.files[path.stem] = path
    return list(sides[0].values()), list(sides[1].values())


def _one_channel(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            lossless = path.suffix.lower() not in (".jpg", ".jpeg")
            return lossless and len(image.getbands()) == 1
    except OSError:
        return False  # `anoseg check` names unreadable files


def _best_match(photos: _Folder, masks: list[_Folder]) -> tuple[_Folder, _Affixes] | None:
    """Return the folder that has masks of most photographs, and how the names correspond."""
    best, best_rank = None, (0, 0.0)
    for candidate in masks:
        affixes, count = _best_affixes(photos.files, candidate.files)
        similar = SequenceMatcher(None, "/".join(photos.parts), "/".join(candidate.parts)).ratio()
        if affixes is not None and (count, similar) > best_rank:
            best, best_rank = (candidate, affixes), (count, similar)
    return best


def _best_affixes(photos: dict, masks: dict) -> tuple[_Affixes | None, int]:
    votes = Counter(_affix_votes(photos, masks))
    # The same from the other end of the names: photo_1 and mask_1.
    backwards = _affix_votes(*({stem[::-1]: 0 for stem in side} for side in (photos, masks)))
    votes.update(_Affixes(_reversed(found.image), _reversed(found.label)) for found in backwards)
    best, most = None, 0
    for affixes, _ in votes.most_common(12):
        shared = affixes.ids(photos, "image").keys() & affixes.ids(masks, "label").keys()
        if len(shared) > most:
            best, most = affixes, len(shared)
    return best, most


def _reversed(affix: tuple[str, str]) -> tuple[str, str]:
    before, after = affix
    return after[::-1], before[::-1]


def _affix_votes(photos: dict, masks: dict) -> Iterator[_Affixes]:
    """Yield how each mask's name could continue the beginning of a photograph's."""
    stems = sorted(photos)
    for mask in masks:
        whole = next((mask[:n] for n in range(len(mask), 0, -1) if mask[:n] in photos), None)
        if whole is not None:
            yield _Affixes(("", ""), ("", mask[len(whole) :]))
        place = bisect(stems, mask)
        for photo in stems[max(place - 1, 0) : place + 1]:
            shared = os.path.commonprefix([photo, mask])
            for start in filter(None, dict.fromkeys((shared.rstrip(_SEPARATORS), shared))):
                yield _Affixes(("", photo[len(start) :]), ("", mask[len(start) :]))


def _split_of(photos: _Folder, masks: _Folder, affixes: _Affixes) -> FoundSplit:
    images, labels = affixes.ids(photos.files, "image"), affixes.ids(masks.files, "label")
    shared = sorted(images.keys() & labels.keys())
    pairs = tuple((photos.files[images[i]], masks.files[labels[i]]) for i in shared)
    same = photos.parts == masks.parts and affixes.image == affixes.label
    patterns = []
    for side, (parts, affix) in enumerate(
        ((photos.parts, affixes.image), (masks.parts, affixes.label))
    ):
        endings = {pair[side].suffix for pair in pairs}
        if same and len(endings) > 1:
            raise ValueError(
                f"{pairs[0][0].parent} holds photographs and masks of the same names with several "
                f"extensions ({', '.join(sorted(endings))}); move the masks into a folder of their "
                "own"
            )
        ending = endings.pop() if len(endings) == 1 else ".*"
        name = f"{affix[0]}{{id}}{affix[1]}{ending}"
        patterns.append(PurePosixPath(*parts, name).as_posix())
    return FoundSplit("", *patterns, pairs)


def _merged(found: list) -> list[FoundSplit]:
    """Join splits that differ only in the name of one folder, such as the cities of Cityscapes."""
    groups = defaultdict(list)
    for photo_parts, mask_parts, split in found:
        keys = [(split.images, split.labels)]
        for part in photo_parts:
            if part in mask_parts and not _SPLIT_WORDS.match(part):
                keys.append(tuple(_with_folder(p, part) for p in (split.images, split.labels)))
        groups[keys[-1]].append(split)
    splits = []
    for (images, labels), members in groups.items():
        if len(members) == 1:
            splits += members
        else:
            pairs = tuple(pair for member in members for pair in member.pairs)
            splits.append(FoundSplit("", images, labels, pairs))
    return splits


def _with_folder(pattern: str, part: str) -> str:
    return "/".join("{folder}" if piece == part else piece for piece in pattern.split("/"))


def _named(splits: list[FoundSplit]) -> list[FoundSplit]:
    """Name splits after their folders."""
    named, taken = [], Counter()
    for split in splits:
        parts = split.images.split("/")[:-1]
        words = [match[1].lower() for match in map(_SPLIT_WORDS.match, parts) if match]
        plain = [
            re.sub(r"[^A-Za-z0-9]+", "_", part).strip("_") for part in parts if "{" not in part
        ]
        name = words[-1] if words else ""
        if not name and len(splits) > 1:
            name = next((part for part in reversed(plain) if part), "main")
        taken[name] += 1
        named.append(replace(split, name=f"{name}{taken[name]}" if taken[name] > 1 else name))
    return named
