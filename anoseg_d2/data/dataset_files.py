"""Find images on disk and pair them with their labels, by patterns with placeholders.

A pattern is a path with `/` in which `{name}` captures part of a file or folder name, `*` matches
any part, and `**` any number of folders: `leftImg8bit/train/*/{id}_leftImg8bit.*`. An image and a
label belong together when all captured parts are equal.
"""

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anoseg_d2.data.image_io import IMAGE_EXTENSIONS
from anoseg_d2.utils.cli import printable
from anoseg_d2.utils.folders import same_name, walk_files

# How a name with accents may be stored: as one character, or as a letter and an accent.
_FORMS = ("NFC", "NFD")


@dataclass(frozen=True)
class Layout:
    """One way in which a dataset is stored on disk.

    Args:
        name: for messages.
        folders: paths below the datasets folder where it can be; `*` matches one folder.
        images, labels: patterns relative to a folder; the first that gives pairs is used.
        frames: regular expression that the whole id of an image in the dataset matches.
        spare_images: images without a label are normal (the folder also serves a larger dataset).
    """

    name: str
    folders: tuple[str, ...]
    images: tuple[str, ...]
    labels: tuple[str, ...]
    frames: str = ".*"
    spare_images: bool = False


@dataclass(frozen=True)
class FoundFiles:
    """The files that were found of a dataset.

    Args:
        layout: name of the layout that was found.
        folder: where it was found.
        pairs: (id, image, label), sorted by id.
        images_without_label, labels_without_image: files without a partner.
    """

    layout: str
    folder: Path
    pairs: tuple[tuple[str, Path, Path], ...]
    images_without_label: tuple[Path, ...] = ()
    labels_without_image: tuple[Path, ...] = ()


def placeholders(pattern: str) -> tuple[str, ...]:
    """Return the names in braces, in order of first appearance."""
    return tuple(dict.fromkeys(re.findall(r"\{(\w+)\}", pattern)))


def path_regex(pattern: str) -> re.Pattern:
    """Translate a pattern, as described at the top of this module, into a regular expression.

    A repeated placeholder stands for the same text each time, and `?` for any character. An
    extension `.*` is any extension; others are compared without case, because some tools write
    capitals.
    """
    # Apart from the rest, because `*` is one part of a name there, without any further dot.
    stem, dot, extension = pattern.rpartition(".")
    if not dot or not (extension == "*" or extension.isalnum()):
        stem, extension = pattern, ""
    wild = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    regex, seen = "", set()
    for name, mark, text in re.findall(r"\{(\w+)\}|(\*\*/|[*?])|([^{*?]+|\{)", stem):
        if name:
            regex += f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+)"
            seen.add(name)
        else:
            regex += wild[mark] if mark else re.escape(text)
    if extension:
        regex += r"\.[^./]+" if extension == "*" else rf"\.(?i:{extension})"
    return re.compile(regex, re.DOTALL)


def match_files(folder, pattern: str) -> dict[str, Path]:
    """List the image files below `folder` that fit a pattern.

    Names that differ only in how accents are stored (NFC, NFD) are the same.

    Args:
        folder: where to start; `walk_files` says what is skipped.
        pattern: as described at the top of this module.
    Returns:
        id -> path; the id joins the captured parts, sorted by placeholder, with `__`.
    Raises:
        ValueError: two files have the same id, such as `1.jpg` and `1.png`.
    """
    wanted = path_regex(pattern)
    # Only the folder that the pattern names is searched, not all that is next to it.
    start = Path(folder, re.match(r"[^{*?]*", pattern)[0].rpartition("/")[0])
    if not start.is_dir():
        # Its name may be stored in the other form of its accents.
        start = Path(folder)
    if not start.is_dir():
        return {}
    depth = None
    if "**" not in pattern:
        depth = pattern.count("/") - len(start.relative_to(folder).parts)
    found: dict[str, Path] = {}
    for path in walk_files(start, IMAGE_EXTENSIONS, depth):
        match = wanted.fullmatch(same_name(path.relative_to(folder).as_posix()))
        if match is None:
            continue
        # Sorted, because images and labels may have their placeholders in different orders.
        key = "__".join(text for _, text in sorted(match.groupdict().items()))
        if key in found:
            raise ValueError(
                f"two files for {key!r}: {printable(found[key])} and {printable(path)}; keep one"
            )
        found[key] = path
    return found


def find_files(name: str, root, layouts: Sequence[Layout]) -> FoundFiles:
    """Find where a dataset is, and in which of its layouts.

    Args:
        name: of the dataset, for messages.
        root: the datasets folder.
        layouts: all layouts in circulation.
    Returns:
        the files of the one layout in which at least one image has a label.
    Raises:
        FileNotFoundError: no layout fits; the message says what was sought and what is there.
        ValueError: several layouts fit; the message names them.
    """
    root, hits = Path(root), []
    for layout in layouts:
        seen = set()
        for folder in (folder for place in layout.folders for folder in _places(root, place)):
            if not folder.is_dir():
                continue
            # Where case is ignored, `RoadAnomaly` and `road_anomaly` are the same folder.
            stat = folder.stat()
            if (stat.st_dev, stat.st_ino) not in seen:
                seen.add((stat.st_dev, stat.st_ino))
                hits += filter(None, [_in_folder(folder, layout)])
    if not hits:
        raise FileNotFoundError(_nothing_found(name, root, layouts))
    if len(hits) > 1:
        places = "; ".join(f"{hit.layout} in {hit.folder}" for hit in hits)
        raise ValueError(
            f"{name}: {len(hits)} copies or layouts were found, keep one in {root}: {places}"
        )
    return hits[0]


def _places(root: Path, place: str) -> list[Path]:
    # A glob gives names as they are stored; what a card spells may be stored in another form.
    if "*" in place:
        return sorted(root.glob(place))
    return [root / form for form in (place, *(unicodedata.normalize(f, place) for f in _FORMS))]


def _in_folder(folder: Path, layout: Layout) -> FoundFiles | None:
    """Pair the files of one folder by the first patterns of a layout that give pairs."""
    frames = re.compile(layout.frames, re.DOTALL)
    for labels in (match_files(folder, pattern) for pattern in layout.labels):
        labels = {key: path for key, path in labels.items() if frames.fullmatch(key)}
        for images in (match_files(folder, pattern) for pattern in layout.images):
            images = {key: path for key, path in images.items() if frames.fullmatch(key)}
            shared = sorted(labels.keys() & images.keys())
            if not shared:
                continue
            spare = () if layout.spare_images else sorted(images.keys() - labels.keys())
            return FoundFiles(
                layout.name,
                folder,
                tuple((key, images[key], labels[key]) for key in shared),
                tuple(images[key] for key in spare),
                tuple(labels[key] for key in sorted(labels.keys() - images.keys())),
            )
    return None


def _nothing_found(name: str, root: Path, layouts: Sequence[Layout]) -> str:
    lines = [f"{name}: no images with labels under {root.absolute()}."]
    if not root.is_dir():
        lines[0] = f"{name}: the datasets folder {root.absolute()} does not exist."
    lines.append("Looked for:")
    for layout in layouts:
        lines.append(
            f"  {layout.name}: images {' or '.join(layout.images)}, "
            f"labels {' or '.join(layout.labels)}, in {', '.join(f or '.' for f in layout.folders)}"
        )
    there = [root / place for layout in layouts for place in layout.folders if place]
    for folder in dict.fromkeys(folder for folder in there if folder.is_dir()):
        names = sorted(map(printable, os.listdir(folder)))
        listing = ", ".join(names[:8] + ["..."] * (len(names) > 8))
        lines.append(f"  {folder} is there and holds: {listing or 'nothing'}")
    lines.append(
        "Set DETECTRON2_DATASETS to the folder that holds the datasets; datasets/README.md has "
        "the tree of each and where to get it."
    )
    return "\n".join(lines)
