"""Write files atomically, read and write JSON, and check names used as file names."""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

_PREFIX = ".anoseg-"  # of temporary names
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def check_name(name: str, kind: str) -> str:
    """Return `name` if it is safe as part of a path and cannot leave its folder.

    Args:
        name: name of a dataset, score, method or run, from a user's file or command line.
        kind: what it names, for the message.
    Raises:
        ValueError: it is empty, too long, or contains anything but letters, digits, `.`, `_`, `+`
            and `-`.
    """
    if not isinstance(name, str) or not _SAFE_NAME.fullmatch(name) or len(name) > 100:
        raise ValueError(
            f"{kind} name {name!r} cannot be used as a file name: use at most 100 letters, digits, "
            "'.', '_', '+' and '-', and start with a letter or digit"
        )
    return name


def file_hash(path) -> str:
    """Return the SHA-256 of a file's bytes, as hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def temporary_path(folder, suffix: str = ".tmp") -> Path:
    """Return a new name in `folder`, hidden, so that no listing of data takes it for a file."""
    return Path(folder, f"{_PREFIX}{secrets.token_hex(8)}{suffix}")


@contextlib.contextmanager
def atomic_path(path, suffix: str = ".tmp") -> Iterator[Path]:
    """Yield a temporary path next to `path` that replaces it when the block succeeds.

    A reader never sees a half-written file, and a killed run leaves the old file unchanged.

    Args:
        path: where the file belongs; its folder is created.
        suffix: suffix of the temporary name, for writers that choose a format by it.
    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    # Renaming onto a device such as /dev/null would delete it.
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "cannot be written: it is not a regular file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path.parent, suffix)
    try:
        yield temporary
        # Else a crash of the machine could leave the new name with nothing behind it.
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # it is gone once it is published


def write_atomic(path, data: bytes) -> None:
    """Write `data` to `path` atomically; its folder is created."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _without_nan(value):
    """Copy nested dicts and lists with plain numbers; NaN and infinities become None."""
    if isinstance(value, dict):
        return {str(key): _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    if hasattr(value, "tolist"):
        return _without_nan(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path, value) -> None:
    """Write nested plain values atomically as strict JSON."""
    text = json.dumps(_without_nan(value), indent=1, allow_nan=False, ensure_ascii=False)
    # Bytes of file names that are not UTF-8 become the escapes that JSON has for them.
    write_atomic(path, (text + "\n").encode(errors="backslashreplace"))


def read_json(path):
    """Read a JSON file; errors name the file.

    Raises:
        OSError: it does not exist or cannot be read.
        ValueError: it is not valid JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
