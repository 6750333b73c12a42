"""Read, find and write score maps, of this project or of any other method.

Nothing here runs code from a file: npy and npz are read without pickle.
"""

import io
import logging
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from anoseg_d2.data.image_io import write_image
from anoseg_d2.evaluation.streaming.keys import as_floats
from anoseg_d2.utils.files import write_atomic
from anoseg_d2.utils.folders import same_name, walk_files

logger = logging.getLogger(__name__)

_HDF5 = (".hdf5", ".h5")
_EXTENSIONS = (".npy", ".npz", ".png", ".tif", ".tiff", *_HDF5)
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


def read_map(path, key: str | None = None, negate: bool = False) -> np.ndarray:
    """Read one score map.

    Integer images (16-bit png, tiff) keep their values, since metrics depend only on the order. A
    png of `write_map` stores its scale, so that the scores themselves come back.

    Args:
        path: npy, npz, png, tiff or hdf5 file.
        key: array inside npz and hdf5 files; None takes the only one.
        negate: the method's scores are low where the scene is anomalous.
    Returns:
        (H, W) float32, or float64 where float32 does not hold every value, higher = more
        anomalous; a leading or trailing axis of length 1 is dropped.
    Raises:
        FileNotFoundError: `path` is not a regular file.
        ValueError: unreadable, not a single map of real numbers, or NaN; the message names the
            file.
        ImportError: an hdf5 file, and h5py is not installed.
    """
    path = Path(path)
    if not path.is_file():  # a device such as /dev/zero would never end
        raise FileNotFoundError(f"{path}: is not a regular file")
    try:
        values = _stored(path, key)
    except _UNREADABLE as error:
        form = path.suffix.lower()[1:] or "an image"
        raise ValueError(f"{path}: cannot be read as {form}: {error}") from error
    if values.dtype.kind not in "iuf":
        raise ValueError(f"{path}: holds {values.dtype}, not real numbers")
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2:
        raise ValueError(f"{path}: holds an array of shape {values.shape}, not one map (H, W)")
    missing = int(np.isnan(values).sum()) if values.dtype.kind == "f" else 0
    if missing:
        raise ValueError(f"{path}: {missing} of {values.size} scores are NaN")
    score = as_floats(values, f"{path}: values")
    return -score if negate else score


def _stored(path: Path, key: str | None) -> np.ndarray:
    """Return the array in a file, as its ending says."""
    form = path.suffix.lower()
    if form == ".npy":
        return np.load(path, allow_pickle=False)
    if form == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return archive[_one_key(archive.files, key)]
    if form in _HDF5:
        h5py = _import_h5py(path)
        with h5py.File(path, "r") as stored:
            names = [name for name in stored if isinstance(stored[name], h5py.Dataset)]
            return np.asarray(stored[_one_key(names, key)])
    with Image.open(path) as image:
        if len(image.getbands()) > 1 or image.mode == "P":  # palette indices have no order
            raise ValueError(f"a score map has one channel, this is a colour image ({image.mode})")
        values = np.asarray(image)
        if _OFFSET not in image.info or _SCALE not in image.info:
            return values
        offset, scale = (float(image.info[name]) for name in (_OFFSET, _SCALE))
    if not math.isfinite(offset) or not math.isfinite(scale):
        raise ValueError(f"it declares the scale {scale} and offset {offset}")
    return (offset + scale * values).astype(np.float32)  # as they were when they were written


def find_maps(folder, images: list[dict], pattern: str = "{id}") -> tuple[list[Path], list[str]]:
    """Find the map of every image of a dataset by name.

    Args:
        folder: searched with all its subfolders.
        images: dataset dicts.
        pattern: a map's name without extension, in which {id} stands for the image's id or for
            the photograph's name without extension.
    Returns:
        a map file per image, and the map files that belong to none.
    Raises:
        FileNotFoundError: no such folder.
        ValueError: a pattern without {id}, and images with no map or several.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder of score maps: {folder}")
    if "{id}" not in pattern:
        raise ValueError(f"the name pattern {pattern!r} needs {{id}}, as in '{{id}}_score'")
    files: dict[str, list[Path]] = {}
    for path in walk_files(folder, _EXTENSIONS):
        files.setdefault(same_name(path.stem), []).append(path)
    found, missing = [], []
    for image in images:
        ids = dict.fromkeys((str(image["image_id"]), Path(image["file_name"]).stem))
        names = [same_name(pattern.replace("{id}", i)) for i in ids]
        paths = [path for name in names for path in files.get(name, [])]
        if len(paths) > 1:
            raise ValueError(f"several maps for {names[0]}: {', '.join(map(str, paths))}")
        found += paths
        missing += [] if paths else names[:1]
    if missing:
        shown = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        raise ValueError(f"{len(missing)} of {len(images)} images have no map in {folder}: {shown}")
    used = set(found)
    return found, [str(p) for paths in files.values() for p in paths if p not in used]


def _one_key(found: list[str], key: str | None) -> str:
    if key is None and len(found) == 1:
        return found[0]
    if key in found:
        return key
    asked = "no array was chosen" if key is None else f"there is no {key!r}"
    raise ValueError(f"{asked}; it holds {', '.join(found) or 'nothing'} (--key)")


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


def _write_hdf5(path: Path, score: np.ndarray) -> None:
    h5py = _import_h5py(path)
    largest = float(np.finfo(np.float16).max)
    if not (np.abs(score) <= largest).all():
        worst = float(score.flat[np.abs(score).argmax()])
        raise ValueError(
            f"{path}: scores reach {worst:g}, but float16 ends at {largest:g}: scale them"
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
