"""Find the images and videos that a user names: files, folders, patterns."""

import glob
import logging
from pathlib import Path
from typing import NamedTuple

from anoseg_d2.data.image_io import IMAGE_EXTENSIONS
from anoseg_d2.prediction.video import VIDEO_EXTENSIONS
from anoseg_d2.utils.cli import printable
from anoseg_d2.utils.folders import same_name, walk_files

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
            not those of subfolders; patterns as `glob` reads them, ** for any depth of folders.
    Returns:
        the files in the order of the arguments, sorted within each, every file once; and for each
        argument that matches nothing, a sentence that says what was looked for.
    """
    kinds = f"images ({' '.join(IMAGE_EXTENSIONS)}) or videos ({' '.join(VIDEO_EXTENSIONS)})"
    known = (*IMAGE_EXTENSIONS, *VIDEO_EXTENSIONS)
    paths: dict[Path, Path] = {}  # by real path, so that links do not make a file count twice
    missing = []
    for argument in map(str, arguments):
        path, found = Path(argument), []
        if path.is_dir():
            found = list(walk_files(path, known, depth=0))
            reason = f"the folder contains no {kinds}; for subfolders give '{argument}/**/*'"
        elif path.is_file():
            found = [path]  # also where its name looks like a pattern: shot[1].png
        elif glob.has_magic(argument):
            matches = map(Path, sorted(glob.glob(argument, recursive=True)))
            found = [match for match in matches if match.suffix.lower() in known]
            reason = f"the pattern matches no {kinds}"
        else:
            reason = "no such file or folder"
        if not found:
            missing.append(f"{printable(argument)}: {reason}")
        for entry in found:
            paths.setdefault(entry.resolve(), entry)
    return _named(list(paths.values())), missing


def _named(paths: list[Path]) -> list[InputFile]:
    taken: dict[str, Path] = {}
    files = []
    for path in paths:
        name, number = path.stem, 1
        # Some file systems ignore case, and how accents are stored.
        while (key := same_name(name).lower()) in taken:
            number += 1
            name = f"{path.stem}-{number}"
        if number > 1:
            first = taken[same_name(path.stem).lower()]
            logger.warning(
                "outputs of %s are named %s, because %s has the same name",
                *map(printable, (path, name, first)),
            )
        taken[key] = path
        files.append(InputFile(path, name, path.suffix.lower() in VIDEO_EXTENSIONS))
    return files
