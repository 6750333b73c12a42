"""Save nested plain values and numpy arrays to one npz file, and load them back bit for bit.

With such a file, another process continues the counts of a run that was cut off. It holds the
nested values as JSON, with every array replaced by the name of the npz member that has its values.
Nothing in it is executed, and members are stored without compression, so a file cannot unpack to
more than its own size.
"""

import io
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np

from anoseg_d2.evaluation.map_files import open_npy
from anoseg_d2.utils.files import write_atomic

__all__ = ["load_state", "save_state"]

_ARRAY = "array"  # the only key of a dict that stands for an array


def save_state(path, state) -> None:
    """Write `state`, whole or not at all.

    Args:
        path: npz file.
        state: dicts with string keys, lists, strings, numbers, booleans, None and arrays of
            numbers; tuples come back as lists.
    """
    arrays: dict[str, np.ndarray] = {}
    tree = json.dumps(_without_arrays(state, arrays))
    buffer = io.BytesIO()
    np.savez(buffer, tree=np.frombuffer(tree.encode(), np.uint8), **arrays)
    write_atomic(path, buffer.getvalue())


def _without_arrays(value, arrays: dict[str, np.ndarray]):
    if isinstance(value, np.ndarray):
        name = f"array{len(arrays)}"
        arrays[name] = value
        return {_ARRAY: name}
    if isinstance(value, dict):
        return {key: _without_arrays(entry, arrays) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_arrays(entry, arrays) for entry in value]
    return value.item() if isinstance(value, np.generic) else value


def load_state(path):
    """Read what `save_state` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or `save_state` did not write it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError("a member is compressed")
            # Reading a member to its end compares its checksum.
            members = {n.removesuffix(".npy"): archive.read(n) for n in archive.namelist()}
        arrays = {name: _array(data) for name, data in members.items()}
        return _with_arrays(json.loads(arrays.pop("tree").tobytes()), arrays)
    except (
        *(OSError, EOFError, ValueError, KeyError, TypeError, NotImplementedError, RuntimeError),
        *(OverflowError, zlib.error, zipfile.BadZipFile, RecursionError),
    ) as error:
        raise ValueError(f"{path} cannot be used to continue: {error}") from error


def _array(data: bytes) -> np.ndarray:
    # Its header is compared with the size of the data before memory is taken.
    return open_npy(io.BytesIO(data), len(data)).values().copy(order="K")


def _with_arrays(value, arrays: dict[str, np.ndarray]):
    if isinstance(value, dict):
        if set(value) == {_ARRAY}:
            return arrays[value[_ARRAY]]
        return {key: _with_arrays(entry, arrays) for key, entry in value.items()}
    if isinstance(value, list):
        return [_with_arrays(entry, arrays) for entry in value]
    return value
