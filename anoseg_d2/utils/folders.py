"""Find files below a folder, for datasets, objects, score maps and predictions alike."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

# Folders that systems put next to a user's files: copies and thumbnails, never data.
_SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found"}


def walk_files(folder, extensions: tuple[str, ...], depth: int | None = None) -> Iterator[Path]:
    """Yield the files below a folder, sorted by name, those of a folder before its subfolders.

    Links are followed, each real folder once, so that circles end. Hidden files and folders are
    skipped, such as macOS' `._x.png` and `.ipynb_checkpoints`. A broken link is kept, so that it is
    named when it is read.

    Args:
        folder: where to start.
        extensions: in lower case, with the dot.
        depth: how many folders to go down; None for all.
    Raises:
        OSError: a folder cannot be read.
    """
    seen = set()

    def stop(error: OSError):
        raise error

    for place, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        current = Path(place)
        level = len(current.relative_to(folder).parts)
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        # `os.walk` goes on with what is left in its own list.
        visible = [name for name in sorted(folders) if name not in _SYSTEM_FOLDERS]
        folders[:] = [name for name in visible if not name.startswith(".")]
        if depth is not None and level >= depth:
            folders.clear()
        for name in sorted(names):
            if name.lower().endswith(extensions) and not name.startswith("."):
                yield current / name


def same_name(name: str) -> str:
    """Normalise a name, so that equal names are equal text.

    macOS stores `é` as a letter and an accent (NFD), others as one character (NFC). Bytes that are
    not UTF-8 become escapes, so that the name can be written anywhere.
    """
    return unicodedata.normalize("NFC", name).encode("utf-8", "backslashreplace").decode("utf-8")
