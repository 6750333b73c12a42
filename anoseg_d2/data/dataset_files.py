"""Find images on disk and pair them with their labels, by patterns with placeholders.

A pattern is a path with `/` in which `{name}` captures part of a file or folder name, `*` matches
any part, and `**` any number of folders: `leftImg8bit/train/*/{id}_leftImg8bit.*`. An image and a
label belong together when all captured parts are equal.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from anoseg_d2.data.image_io import IMAGE_EXTENSIONS

__all__ = ["FoundFiles", "Layout", "find_files", "match_files", "placeholders"]

_TOKEN = re.compile(r"\{(\w+)\}|(\*\*/)|(\*)|(\?)|([^{*?]+|[{])")


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
    """The files of a dataset.

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


def match_files(folder, pattern: str) -> dict[str, Path]:
    """List the image files below `folder` that fit a pattern.

    Hidden files are ignored, such as the `._x.png` in archives made on macOS.

    Args:
        folder: where to start.
        pattern: as described at the top of this module.
    Returns:
        id -> path; the id joins the captured parts, sorted by placeholder, with `__`.
    Raises:
        ValueError: two files have the same id, such as `1.jpg` and `1.png`.
    """
    regex = re.compile(_to_regex(pattern))
    start = _static_prefix(pattern)
    depth = None if "**" in pattern else pattern.count("/") - (start.count("/") + 1 if start else 0)
    found: dict[str, Path] = {}
    for path in _walk(Path(folder, start), depth):
        match = regex.fullmatch(path.relative_to(folder).as_posix())
        if match is None:
            continue
        key = "__".join(match[name] for name in sorted(placeholders(pattern)))
        if key in found:
            raise ValueError(
                f"two files for {key!r}: {found[key]} and {path}; keep one (pattern {pattern!r})"
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
    hits = [hit for layout in layouts for hit in _present(Path(root), layout)]
    if not hits:
        raise FileNotFoundError(_nothing_found(name, Path(root), layouts))
    if len(hits) > 1:
        places = "; ".join(f"{hit.layout} in {hit.folder}" for hit in hits)
        raise ValueError(
            f"{name}: {len(hits)} copies or layouts were found, but only one can be used: "
            f"{places}. Move all but one out of {root}."
        )
    return hits[0]


def _present(root: Path, layout: Layout) -> Iterator[FoundFiles]:
    """Yield what is found in each folder of a layout, each real folder once."""
    seen = set()
    for folder in (folder for place in layout.folders for folder in _places(root, place)):
        real = os.path.realpath(folder)
        if not folder.is_dir() or _inode(real) in seen:
            continue
        seen.add(_inode(real))
        found = _in_folder(folder, layout)
        if found is not None:
            yield found


def _places(root: Path, place: str) -> list[Path]:
    return sorted(root.glob(place)) if "*" in place else [root / place]


def _inode(path: str) -> tuple[int, int]:
    """Return a folder's identity, which also works on case-insensitive file systems."""
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino


def _in_folder(folder: Path, layout: Layout) -> FoundFiles | None:
    for labels in (match_files(folder, pattern) for pattern in layout.labels):
        for images in (match_files(folder, pattern) for pattern in layout.images):
            labels, images = _kept(labels, layout), _kept(images, layout)
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


def _kept(files: dict[str, Path], layout: Layout) -> dict[str, Path]:
    return {key: path for key, path in files.items() if re.fullmatch(layout.frames, key)}


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
        lines.append(f"  {folder} is there and holds: {_listing(folder)}")
    lines.append(
        "Set DETECTRON2_DATASETS to the folder that holds the datasets; datasets/README.md has "
        "the tree of each and where to get it."
    )
    return "\n".join(lines)


def _listing(folder: Path, limit: int = 8) -> str:
    names = sorted(os.listdir(folder))
    return ", ".join(names[:limit] + (["..."] if len(names) > limit else [])) or "nothing"


def _static_prefix(pattern: str) -> str:
    parts = pattern.split("/")[:-1]
    fixed = [part for part in parts if not re.search(r"[{*?]", part)]
    while fixed and parts[: len(fixed)] != fixed:
        fixed.pop()
    return "/".join(fixed)


def _to_regex(pattern: str) -> str:
    """Translate a pattern; a repeated placeholder must capture the same text each time."""
    stem, any_extension = (pattern[:-2], r"\.[^./]+") if pattern.endswith(".*") else (pattern, "")
    regex, seen = "", set()
    for token in _TOKEN.finditer(stem):
        name, folders, star, mark, literal = token.groups()
        if name:
            regex += f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+)"
            seen.add(name)
        elif folders:
            regex += "(?:.*/)?"
        elif star or mark:
            regex += "[^/]*" if star else "[^/]"
        else:
            regex += re.escape(literal)
    # Some tools write extensions in capitals.
    stem, dot, extension = regex.rpartition(r"\.")
    if not any_extension and dot and extension.isalnum():
        return rf"{stem}\.(?i:{extension})"
    return regex + any_extension


def _walk(folder: Path, depth: int | None) -> Iterator[Path]:
    """Yield image files sorted by name, following links, at most `depth` folders down."""
    seen: set[str] = set()
    base = len(folder.parts)
    for current, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(current)
        deep_enough = depth is not None and len(Path(current).parts) - base >= depth
        if real in seen or deep_enough:
            folders.clear()
        if real in seen:
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(IMAGE_EXTENSIONS):
                yield Path(current, name)
