"""Write files whole or not at all, read and write JSON, and check names used as file names."""

import contextlib
import errno
import glob
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None

__all__ = [
    "atomic_path",
    "check_name",
    "file_hash",
    "name_failed_write",
    "publish",
    "read_bytes",
    "read_json",
    "remove_abandoned",
    "without_nan",
    "write_atomic",
    "write_json",
]

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


@contextlib.contextmanager
def atomic_path(path, suffix: str = ".tmp") -> Iterator[Path]:
    """Yield a temporary path next to `path` that replaces it when the block succeeds.

    A reader never sees a half-written file, and a killed run leaves the old file unchanged.

    Args:
        path: where the file belongs; its folder is created.
        suffix: suffix of the temporary name, for writers that choose a format by it.
    Raises:
        OSError: the file cannot be written; the message names `path` and the free space.
    """
    path, temporary = Path(path), ""
    # Renaming onto a device such as /dev/null would delete it.
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "cannot be written: it is not a regular file", str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=suffix
        )
        with _locked(handle):
            yield Path(temporary)
            publish(temporary, path)
    except BaseException as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        # The error of a failed write names neither the file nor the free space.
        unnamed = not temporary or getattr(error, "filename", None) in (None, temporary)
        if isinstance(error, OSError) and unnamed:
            raise OSError(
                error.errno, f"{error.strerror or error} ({_free_space(path)})", str(path)
            ) from error
        raise


@contextlib.contextmanager
def _locked(handle: int) -> Iterator[None]:
    """Hold a lock while a temporary file is written, so that `remove_abandoned` spares it."""
    if fcntl is None:  # Windows cannot rename an open file
        os.close(handle)
        yield
        return
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def name_failed_write(path) -> Iterator[None]:
    """Raise an OSError that names no file, as of a full disk, again with `path` and the space."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        # numpy reports a short write without an errno.
        code, reason = error.errno or errno.EIO, error.strerror or error
        raise OSError(code, f"{reason} ({_free_space(Path(path))})", str(path)) from error


def remove_abandoned(path) -> None:
    """Delete temporary files of `atomic_path(path)` whose writers were killed."""
    path = Path(path)
    if fcntl is None:
        return
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        # Only a living writer holds the lock: another process may be writing the same file now.
        with contextlib.suppress(OSError), open(left, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _free_space(path: Path) -> str:
    try:
        return f"{shutil.disk_usage(path.parent).free / 2**20:,.0f} MiB free in {path.parent}"
    except OSError:
        return f"{path.parent} cannot be read"


def publish(temporary, path) -> None:
    """Flush a temporary file to disk, give it the usual permissions and rename it to `path`."""
    with open(temporary, "rb") as stream:
        os.fsync(stream.fileno())
    umask = os.umask(0)  # the only way to read it is to set it
    os.umask(umask)
    os.chmod(temporary, 0o666 & ~umask)  # mkstemp grants access only to the owner
    os.replace(temporary, path)


def write_atomic(path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all; its folder is created."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def without_nan(value):
    """Copy nested dicts and lists with plain numbers; NaN and infinities become None."""
    if isinstance(value, dict):
        return {str(key): without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(entry) for entry in value]
    if hasattr(value, "tolist"):
        return without_nan(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path, value) -> None:
    """Write nested plain values as strict JSON, whole or not at all."""
    text = json.dumps(without_nan(value), indent=1, allow_nan=False, ensure_ascii=False)
    # Bytes of file names that are not UTF-8 become the escapes that JSON has for them.
    write_atomic(path, (text + "\n").encode(errors="backslashreplace"))


def read_bytes(path, limit: int = -1) -> bytes:
    """Read a file, or its first `limit` bytes; the error of a damaged disk names it as well.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            return stream.read(limit)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error


def read_json(path):
    """Read a JSON file; errors name the file.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: it cannot be read.
        ValueError: it is not valid JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        return json.loads(read_bytes(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
