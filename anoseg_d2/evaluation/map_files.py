"""Score maps: written, and those of any method found, checked and read one at a time."""

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from anoseg_d2.data.image_io import write_image
from anoseg_d2.data.label_rules import load_label
from anoseg_d2.utils.files import write_atomic

__all__ = ["MAP_EXTENSIONS", "MapFolder", "MapReader", "StoredMaps", "read_map", "write_map"]


_HDF5 = (".hdf5", ".h5")
MAP_EXTENSIONS = (".npy", ".npz", ".png", ".tif", ".tiff", *_HDF5)
_SHOWN = 10  # names of one kind in an error
_LEVELS = 65535
# Text chunks of our 16-bit png: score = offset + scale * value.
_OFFSET, _SCALE = "score_offset", "score_scale"


@dataclass(frozen=True)
class MapReader:
    """How a map file is read.

    Args:
        key: array inside npz and hdf5 files; None takes the only one.
        negate: the method's scores are low where the scene is anomalous.
    """

    key: str | None = None
    negate: bool = False

    def __call__(self, path) -> np.ndarray:
        """Read (H, W) float32, higher = more anomalous; see `read_map`."""
        score = read_map(path, self.key)
        return -score if self.negate else score


def read_map(path, key: str | None = None) -> np.ndarray:
    """Read one score map.

    Integer images (16-bit png, tiff) keep their values: metrics depend on the order alone. A png
    of `write_map` states its scale and gives the scores themselves.

    Args:
        path: file with an extension of `MAP_EXTENSIONS`.
        key: array inside npz and hdf5 files; None takes the only one.
    Returns:
        (H, W) float32; a leading or trailing axis of length 1 is dropped.
    Raises:
        ValueError: unreadable, not a single map of numbers, has NaN; the message names the file.
        ImportError: hdf5 without h5py.
    """
    path = Path(path)
    readers = {".npy": _read_npy, ".npz": _read_npz, **dict.fromkeys(_HDF5, _read_hdf5)}
    values = np.asarray(readers.get(path.suffix.lower(), _read_image)(path, key))
    if values.dtype == bool or not np.issubdtype(values.dtype, np.number):
        raise ValueError(f"{path}: holds {values.dtype}, not numbers")
    if np.iscomplexobj(values):
        raise ValueError(f"{path}: holds complex numbers")
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2:
        raise ValueError(f"{path}: holds an array of shape {values.shape}, not one map (H, W)")
    missing = int(np.isnan(values).sum())
    if missing:
        raise ValueError(f"{path}: {missing} of {values.size} scores are NaN")
    with np.errstate(over="ignore"):  # beyond float32's range is infinite, and orders as such
        return values.astype(np.float32)


def write_map(path, score: np.ndarray) -> None:
    """Write a score map so that `read_map` gives it back.

    A png has 16 bits from the least to the greatest score of this map; its text chunks
    `score_offset` and `score_scale` tell the scores: score = offset + scale * value, to half of
    scale. A reader that ignores them may compare values within one file alone.

    Args:
        path: .npy (float32, exact) or .png.
        score: (H, W) floats; in a png infinities take the ends.
    Raises:
        ValueError: another extension, or NaN.
    """
    path, score = Path(path), np.asarray(score, dtype=np.float32)
    if np.isnan(score).any():
        raise ValueError(f"{path}: a score map with NaN cannot be read back")
    if path.suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, score)
        write_atomic(path, buffer.getvalue())
        return
    if path.suffix != ".png":
        raise ValueError(f"{path}: score maps are written as .npy or .png")
    finite = score[np.isfinite(score)]
    lowest, highest = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    scale = (highest - lowest) / _LEVELS
    values = (np.clip(score, lowest, highest) - np.float64(lowest)) / (scale or 1.0)
    text = PngImagePlugin.PngInfo()
    text.add_text(_OFFSET, repr(lowest))
    text.add_text(_SCALE, repr(scale))
    write_image(path, np.rint(values).astype(np.uint16), pnginfo=text)


def _read_npy(path: Path, key) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read as npy: {error}") from error


def _read_npz(path: Path, key) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return stored[_one_key(path, list(stored.files), key)]
    except (OSError, EOFError, AttributeError, KeyError) as error:
        raise ValueError(f"{path}: cannot be read as npz: {error}") from error


def _read_hdf5(path: Path, key) -> np.ndarray:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            f"{path}: hdf5 maps need the package h5py, which is optional: pip install h5py; or "
            "convert the maps to npy"
        ) from error
    try:
        with h5py.File(path, "r") as stored:
            names = [name for name, value in stored.items() if isinstance(value, h5py.Dataset)]
            return stored[_one_key(path, names, key)][()]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as hdf5: {error}") from error


def _one_key(path: Path, found: list[str], key: str | None) -> str:
    if key is None and len(found) == 1:
        return found[0]
    if key in found:
        return key
    asked = "no array was chosen" if key is None else f"there is no {key!r}"
    raise ValueError(f"{path}: {asked}; it holds {', '.join(found) or 'nothing'} (--key)")


def _read_image(path: Path, key) -> np.ndarray:
    try:
        with Image.open(path) as image:
            image.load()
            if len(image.getbands()) > 1 or image.mode == "P":
                raise ValueError(
                    f"{path}: is a colour image ({image.mode}); a score map has one channel"
                )
            values = np.asarray(image)
            if _OFFSET not in image.info or _SCALE not in image.info:
                return values
            return float(image.info[_OFFSET]) + float(image.info[_SCALE]) * values
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path}: cannot be read as an image: {error}") from error


@dataclass
class MapFolder:
    """The map file of every image of a dataset.

    Args:
        pairs: (dataset dict, map file), in the dataset's order.
        missing: images without a map.
        extra: map files that belong to no image.
    """

    pairs: list[tuple[dict, Path]]
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)

    @classmethod
    def find(cls, folder, images: list[dict], pattern: str = "{id}") -> "MapFolder":
        """Match files to images by name.

        Args:
            folder: searched with all its subfolders.
            images: dataset dicts.
            pattern: a map's name without extension, in which {id} stands for the image's id or the
                photograph's name without extension.
        Raises:
            FileNotFoundError: no folder. ValueError: a pattern without {id}, or two files for one
            image.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"no such folder of score maps: {folder}")
        if "{id}" not in pattern:
            raise ValueError(f"the name pattern {pattern!r} needs {{id}}, as in '{{id}}_score'")
        files: dict[str, list[Path]] = {}
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in MAP_EXTENSIONS and path.is_file():
                files.setdefault(path.stem, []).append(path)
        result = cls([])
        for image in images:
            ids = dict.fromkeys((str(image["image_id"]), Path(image["file_name"]).stem))
            names = [pattern.replace("{id}", i) for i in ids]
            found = [path for name in names for path in files.get(name, [])]
            if len(found) > 1:
                raise ValueError(f"several maps for {names[0]}: {', '.join(map(str, found))}")
            if found:
                result.pairs.append((image, found[0]))
            else:
                result.missing.append(names[0])
        used = {path for _, path in result.pairs}
        result.extra = [str(p) for paths in files.values() for p in paths if p not in used]
        return result

    def check(self, reader: MapReader, known: dict, progress=lambda done, total: None) -> dict:
        """Read every map once and name all that is wrong, before anything is computed.

        Args:
            reader: how maps are read.
            known: {file: signature} of maps found right before; they are not read again.
            progress: called with (done, total).
        Returns:
            `known` of all maps.
        Raises:
            ValueError: lists missing, extra, unreadable, wrong-sized and NaN maps.
        """
        wrong, right = [], {}
        for done, (image, path) in enumerate(self.pairs):
            signature = file_signature(path)
            if known.get(str(path)) != signature:
                wrong += _problem(image, path, reader)
            right[str(path)] = signature
            progress(done + 1, len(self.pairs))
        problems = [
            *_listed("images have no map", self.missing),
            *_listed("maps belong to no image", self.extra),
            *_listed("maps cannot be used", wrong),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return right


def file_signature(path: Path) -> list[int]:
    """Size and modification time: what changes when a file is written anew."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _problem(image: dict, path: Path, reader: MapReader) -> list[str]:
    try:
        shape = reader(path).shape
    except ValueError as error:
        return [str(error)]
    with Image.open(image["sem_seg_file_name"]) as label:
        expected = label.size[::-1]
    if shape == expected:
        return []
    return [f"{path}: is {shape[0]}x{shape[1]}, the label is {expected[0]}x{expected[1]} (HxW)"]


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = [f"  ... and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return [f"{len(names)} {what}:", *(f"  {name}" for name in names[:_SHOWN]), *more]


class StoredMaps:
    """Stands for a `ScoreSpill` where the maps lie on disk already: they are read again.

    Args:
        pairs: of `MapFolder`.
        reader: how maps are read.
        rule: the dataset's label rule.
        name: of the score.
    """

    error = None

    def __init__(self, pairs, reader: MapReader, rule, name: str):
        self._pairs, self._reader, self._rule, self._name = pairs, reader, rule, name

    def add(self, scores: dict, label: np.ndarray) -> None:
        """Nothing to keep."""

    def __iter__(self):
        """Yield (label, name, score) for every image."""
        for image, path in self._pairs:
            yield load_label(image["sem_seg_file_name"], self._rule), self._name, self._reader(path)

    def close(self) -> None:
        """Nothing to remove."""
