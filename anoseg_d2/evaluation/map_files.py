"""Read and write one score map, of this project or of any other method.

A file from somebody else may declare any size and hold anything. Every format is therefore opened
in two steps: its header is read and compared with what is expected, and only then are the values
unpacked. Nothing here runs code from a file: npy and npz are read without pickle.
"""

import io
import logging
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from PIL.ImageMode import getmode

from anoseg_d2.data.image_io import write_image
from anoseg_d2.evaluation.streaming.keys import as_floats
from anoseg_d2.utils.files import write_atomic

__all__ = [
    "MAP_EXTENSIONS",
    "MapReader",
    "open_npy",
    "read_map",
    "write_map",
]

logger = logging.getLogger(__name__)

_HDF5 = (".hdf5", ".h5")
MAP_EXTENSIONS = (".npy", ".npz", ".png", ".tif", ".tiff", *_HDF5)
# No camera of the benchmarks comes near it; a file that declares more is damaged or hostile.
MAX_PIXELS = 1 << 28
_LEVELS = 65535
# Text chunks of our 16-bit png: score = offset + scale * value.
_OFFSET, _SCALE = "score_offset", "score_scale"
# What the libraries raise on files that are damaged, or whose format is not what the name says.
_UNREADABLE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(OverflowError, NotImplementedError, RuntimeError, MemoryError, struct.error, zlib.error),
    *(UnidentifiedImageError, Image.DecompressionBombError, zipfile.BadZipFile),
    tokenize.TokenError,  # numpy reads the header of an npy file as a Python literal
)


class _NotAMap(ValueError):
    """The file can be read but does not hold a score map."""


@dataclass(frozen=True)
class Stored:
    """An open file: its header, and a function that reads the values, (H, W) or (1, H, W)."""

    shape: tuple[int, ...]
    dtype: np.dtype
    values: Callable[[], np.ndarray]


@dataclass(frozen=True)
class MapReader:
    """How to read the map files of one method.

    Args:
        key: array inside npz and hdf5 files; None takes the only one.
        negate: the method's scores are low where the scene is anomalous.
    """

    key: str | None = None
    negate: bool = False

    def __call__(self, path, expected: tuple[int, int] | None = None) -> np.ndarray:
        """Read (H, W) floats, higher = more anomalous; see `read_map`."""
        score = read_map(path, self.key, expected)
        return -score if self.negate else score

    def dtype(self, path) -> np.dtype:
        """Return the type that the file stores, without reading its values."""
        with _opened(path, self.key, None) as stored:
            return stored.dtype


def read_map(path, key: str | None = None, expected: tuple[int, int] | None = None) -> np.ndarray:
    """Read one score map.

    Integer images (16-bit png, tiff) keep their values, since metrics depend only on the order. A
    png of `write_map` stores its scale, so that the scores themselves come back.

    Args:
        path: file with an extension of `MAP_EXTENSIONS`.
        key: array inside npz and hdf5 files; None takes the only one.
        expected: (H, W) that the map must have, compared before any value is unpacked; None
            accepts up to `MAX_PIXELS`.
    Returns:
        (H, W) float32, or float64 where float32 does not hold every value; a leading or trailing
        axis of length 1 is dropped.
    Raises:
        FileNotFoundError: `path` is not a regular file.
        ValueError: unreadable, not a single map of real numbers, another size, or NaN; the message
            names the file.
        ImportError: an hdf5 file, and h5py is not installed.
    """
    with _opened(path, key, expected) as stored:
        shape = _map_shape(stored.shape)
        values = stored.values().reshape(shape)
        missing = int(np.isnan(values).sum()) if values.dtype.kind == "f" else 0
        if missing:
            raise _NotAMap(f"{missing} of {values.size} scores are NaN")
        return as_floats(values, "values")


@contextmanager
def _opened(path, key, expected) -> Iterator[Stored]:
    """Open a map and check its header; every error names the file."""
    path = Path(path)
    if not path.is_file():  # a device such as /dev/zero would never end
        raise FileNotFoundError(f"{path}: is not a regular file")
    form = path.suffix.lower()
    openers = {".npy": _open_npy, ".npz": _open_npz, **dict.fromkeys(_HDF5, _open_hdf5)}
    try:
        with openers.get(form, _open_image)(path, key) as stored:
            _check_header(stored, expected)
            yield stored
    except _NotAMap as error:
        raise ValueError(f"{path}: {error}") from error
    except _UNREADABLE as error:
        message = f"{path}: cannot be read as {form[1:] or 'an image'}: {error}"
        raise ValueError(message) from error


def _check_header(stored: Stored, expected) -> None:
    shape, dtype = stored.shape, stored.dtype
    if dtype.kind == "c":
        raise _NotAMap("holds complex numbers")
    if dtype.kind not in "iuf":
        raise _NotAMap(f"holds {dtype}, not numbers")
    height, width = _map_shape(shape)
    if expected is not None and (height, width) != tuple(expected):
        raise _NotAMap(f"is {height}x{width} (HxW), expected {expected[0]}x{expected[1]}")
    if height * width > MAX_PIXELS:
        raise _NotAMap(f"declares {height}x{width} pixels; at most {MAX_PIXELS} are read")


def _map_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Drop a leading or trailing axis of length 1."""
    if len(shape) == 3 and 1 in (shape[0], shape[-1]):
        shape = shape[1:] if shape[0] == 1 else shape[:-1]
    if len(shape) != 2:
        raise _NotAMap(f"holds an array of shape {shape}, not one map (H, W)")
    return shape


def open_npy(stream, size: int) -> Stored:
    """Read the header of an npy of `size` bytes; the values are read when they are asked for.

    Raises:
        ValueError: not an npy, or the values it declares do not fill the stream to its end.
    """
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy format version {version} is not supported")
    read = np.lib.format.read_array_header_1_0
    if version == (2, 0):
        read = np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise _NotAMap("holds Python objects, not numbers; they are never unpickled")
    wanted, present = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if min(shape, default=0) < 0 or wanted != present:  # before memory is taken for them
        raise ValueError(
            f"its header declares {wanted} bytes of values {shape}, but the file has {present}"
        )

    def values():
        flat = np.frombuffer(stream.read(wanted), dtype)
        return flat.reshape(shape, order="F" if fortran else "C")

    return Stored(shape, dtype, values)


@contextmanager
def _open_npy(path: Path, key) -> Iterator[Stored]:
    with path.open("rb") as stream:
        yield open_npy(stream, path.stat().st_size)


@contextmanager
def _open_npz(path: Path, key) -> Iterator[Stored]:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        info = members[_one_key(list(members), key)]
        # ZipFile unpacks at most the size that the member declares, which the npy header must fill
        with archive.open(info) as stream:
            yield open_npy(stream, info.file_size)


@contextmanager
def _open_hdf5(path: Path, key) -> Iterator[Stored]:
    h5py = _import_h5py(path)
    with h5py.File(path, "r") as stored:
        # Links to other files are not followed: a map must be in its own file.
        local = [n for n in stored if isinstance(stored.get(n, getlink=True), h5py.HardLink)]
        names = [name for name in local if isinstance(stored[name], h5py.Dataset)]
        array = stored[_one_key(names, key)]
        if array.shape is None:
            raise _NotAMap(f"{array.name} is empty")
        if array.external or array.is_virtual:
            raise _NotAMap("its values are in other files, which are not read")
        pixels = max(math.prod(array.shape), 1 << 20)  # a small map may be one large chunk
        if array.chunks is not None and math.prod(array.chunks) > 4 * pixels:  # unpacked whole
            raise _NotAMap(f"declares chunks of {array.chunks} for {array.shape} values")
        yield Stored(tuple(array.shape), array.dtype, lambda: array[()])


@contextmanager
def _open_image(path: Path, key) -> Iterator[Stored]:
    with Image.open(path) as image:
        if len(image.getbands()) > 1 or image.mode == "P":  # palette indices have no order
            raise _NotAMap(f"is a colour image ({image.mode}); a score map has one channel")
        dtype = np.dtype(getmode(image.mode).typestr)
        yield Stored(image.size[::-1], dtype, lambda: _image_values(image))


def _image_values(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    if _OFFSET not in image.info or _SCALE not in image.info:
        return values
    offset, scale = (float(image.info[name]) for name in (_OFFSET, _SCALE))
    if not math.isfinite(offset) or not math.isfinite(scale):
        raise _NotAMap(f"declares the scale {scale} and offset {offset}")
    return (offset + scale * values).astype(np.float32)  # as they were when they were written


def _write_hdf5(path: Path, score: np.ndarray) -> None:
    h5py = _import_h5py(path)
    largest = float(np.finfo(np.float16).max)
    if not (np.abs(score) <= largest).all():
        worst = float(score.flat[np.abs(score).argmax()])
        raise ValueError(
            f"{path}: scores reach {worst:g}, but float16 ends at {largest:g}. Only their order "
            "counts, so scale them, or choose a score with a fixed range such as rba"
        )
    half = score.astype(np.float16)
    before, after = np.unique(score).size, np.unique(half).size
    if after < before:
        logger.warning(
            "%s: of %d distinct scores %d are left in float16, which the benchmark's tool reads",
            *(path, before, after),
        )
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as stored:
        stored.create_dataset("value", data=half, compression=9)
    write_atomic(path, buffer.getvalue())


def _import_h5py(path):
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            f"{path}: hdf5 maps need the package h5py, which is optional: pip install h5py"
        ) from error
    return h5py


def _one_key(found: list[str], key: str | None) -> str:
    if key is None and len(found) == 1:
        return found[0]
    if key in found:
        return key
    asked = "no array was chosen" if key is None else f"there is no {key!r}"
    raise _NotAMap(f"{asked}; it holds {', '.join(found) or 'nothing'} (--key)")


def write_map(path, score: np.ndarray) -> None:
    """Write a score map so that `read_map` gives it back.

    A png has 16 bits from the lowest to the highest score of this map. Its text chunks
    `score_offset` and `score_scale` give the scores back to half of the scale: score = offset +
    scale * value. A reader that ignores them may compare values only within one file. An hdf5 is
    what SegmentMeIfYouCan's tool reads: one float16 array named `value`, compressed.

    Args:
        path: .npy (exact), .png or .hdf5 (float16; a warning says how many scores it merges).
        score: (H, W) floats; in a png infinities take the ends.
    Raises:
        ValueError: another extension, NaN, or scores that float16 cannot hold in an hdf5.
        ImportError: an hdf5 file, and h5py is not installed.
    """
    path, score = Path(path), as_floats(np.asarray(score), str(path))
    if np.isnan(score).any():
        raise ValueError(f"{path}: a score map with NaN cannot be read back")
    if path.suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, score)
        write_atomic(path, buffer.getvalue())
        return
    if path.suffix in _HDF5:
        _write_hdf5(path, score)
        return
    if path.suffix != ".png":
        raise ValueError(f"{path}: score maps are written as .npy, .png or .hdf5")
    finite = score[np.isfinite(score)]
    lowest, highest = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    scale = (highest - lowest) / _LEVELS
    values = (np.clip(score, lowest, highest) - np.float64(lowest)) / (scale or 1.0)
    text = PngImagePlugin.PngInfo()
    text.add_text(_OFFSET, repr(lowest))  # `repr` keeps every digit
    text.add_text(_SCALE, repr(scale))
    write_image(path, np.rint(values).astype(np.uint16), pnginfo=text)
