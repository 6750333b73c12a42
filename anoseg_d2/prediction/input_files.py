"""Find the images and videos that a user names: files, folders, patterns."""

import glob
import logging
from pathlib import Path
from typing import NamedTuple

from anoseg_d2.data.image_io import IMAGE_EXTENSIONS
from anoseg_d2.prediction.video import VIDEO_EXTENSIONS

__all__ = ["InputFile", "find_inputs"]

logger = logging.getLogger(__name__)


class InputFile(NamedTuple):
    """One image or video.

    path: of the file.
    name: base name of its outputs, unique among the inputs: the file's name without extension,
        followed by a number where two would be equal.
    is_video: decided by its extension.
    """

    path: Path
    name: str
    is_video: bool


def find_inputs(arguments) -> tuple[list[InputFile], list[str]]:
    """Find the files that the arguments stand for.

    Args:
        arguments: files of any extension; folders, from which images and videos are taken but
            not those of subfolders; patterns with *, ? or ** (any depth of folders).
    Returns:
        the files in the order of the arguments, sorted within each, every file once; and for each
        argument that matches nothing, a sentence that says what was looked for.
    """
    paths: dict[Path, Path] = {}
    missing = []
    for argument in arguments:
        found = _expand(str(argument))
        if not found:
            missing.append(_what_is_missing(str(argument)))
        for path in found:
            paths.setdefault(path.resolve(), path)
    return _named(list(paths.values())), missing


def _expand(argument: str) -> list[Path]:
    path = Path(argument)
    if path.is_dir():
        return sorted(entry for entry in path.iterdir() if _is_readable(entry))
    if path.is_file():
        return [path]
    if glob.has_magic(argument):
        found = map(Path, glob.glob(argument, recursive=True))
        return sorted(entry for entry in found if _is_readable(entry))
    return []


def _is_readable(path: Path) -> bool:
    known = path.suffix.lower() in (*IMAGE_EXTENSIONS, *VIDEO_EXTENSIONS)
    return known and path.is_file() and not path.name.startswith(".")


def _what_is_missing(argument: str) -> str:
    kinds = f"images ({' '.join(IMAGE_EXTENSIONS)}) or videos ({' '.join(VIDEO_EXTENSIONS)})"
    if Path(argument).is_dir():
        return f"{argument}: the folder contains no {kinds}; for subfolders give '{argument}/**/*'"
    if glob.has_magic(argument):
        return f"{argument}: the pattern matches no {kinds}"
    return f"{argument}: no such file or folder"


def _named(paths: list[Path]) -> list[InputFile]:
    taken: dict[str, Path] = {}
    files = []
    for path in paths:
        name, number = path.stem, 1
        while name.lower() in taken:  # some file systems ignore case
            number += 1
            name = f"{path.stem}-{number}"
        if number > 1:
            first = taken[path.stem.lower()]
            logger.warning(
                "outputs of %s are named %s, because %s has the same name", path, name, first
            )
        taken[name.lower()] = path
        files.append(InputFile(path, name, path.suffix.lower() in VIDEO_EXTENSIONS))
    return files
