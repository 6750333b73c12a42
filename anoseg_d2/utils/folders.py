"""Find files below a folder, for datasets, objects, score maps and predictions alike."""

import logging
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

__all__ = ["same_name", "walk_files"]

logger = logging.getLogger(__name__)

# Folders that systems put next to a user's files: copies and thumbnails, never data.
_SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found"}


def walk_files(folder, extensions: tuple[str, ...], depth: int | None = None) -> Iterator[Path]:
    """Yield the files below a folder, sorted by name, those of a folder before its subfolders.

    Links are followed, each real folder once, so that circles end. Hidden files and folders are
    skipped, such as macOS' `._x.png` and `.ipynb_checkpoints`. What is not a regular file is
    skipped too, because opening a fifo waits for ever; a broken link is kept, so that it is named
    when it is read.

    Args:
        folder: where to start.
        extensions: in lower case, with the dot.
        depth: how many folders to go down; None for all.
    """
    seen = set()
    waiting = [(Path(folder), 0)]
    while waiting:
        current, level = waiting.pop()
        try:
            status = current.stat()
            with os.scandir(current) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            if not level:
                raise
            logger.warning("%r is left out: %s", str(current), error.strerror)
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        folders = []
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _SYSTEM_FOLDERS:
                continue
            if entry.is_dir():
                if depth is None or level < depth:
                    folders.append((current / entry.name, level + 1))
            elif entry.name.lower().endswith(extensions) and _is_file_or_broken_link(entry):
                yield current / entry.name
        waiting += reversed(folders)


def _is_file_or_broken_link(entry: os.DirEntry) -> bool:
    return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))


def same_name(name: str) -> str:
    """Normalise a name, so that equal names are equal text.

    macOS stores `é` as a letter and an accent (NFD), others as one character (NFC). Bytes that are
    not UTF-8 become escapes, so that the name can be written anywhere.
    """
    return unicodedata.normalize("NFC", name).encode("utf-8", "backslashreplace").decode("utf-8")
