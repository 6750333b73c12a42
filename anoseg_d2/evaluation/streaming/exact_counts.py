"""Store every score on disk: exact figures in little memory.

A file holds the keys of one label in order of arrival: 4 bytes per pixel, or 8 for scores that
float32 cannot hold. To be read, it is sorted where it is, so that memory does not depend on how
many there are.
"""

import logging
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from anoseg_d2.evaluation.streaming.bounds import CHUNK, Segment
from anoseg_d2.evaluation.streaming.counts import sorted_segments
from anoseg_d2.evaluation.streaming.keys import wide_keys
from anoseg_d2.utils.files import name_failed_write

__all__ = ["EXACT_PREFIX", "ExactCounts"]

logger = logging.getLogger(__name__)

# Folders with this prefix are temporary; what a killed run left is removed by the next one.
EXACT_PREFIX = "exact_scores_"
_LABELS = ("known", "anomaly")
_WIDE = ".wide"  # ending of files of 8 bytes per pixel


class ExactCounts:
    """Scores on disk, in a temporary directory that is deleted with the object.

    Args:
        parent: where to make the directory; default the system's place for temporary files.
    Raises:
        OSError: the disk has less space than needed when pixels are added.
    """

    exact = True

    def __init__(self, parent: str | None = None):
        self._parent = parent
        self._folder = Path(tempfile.mkdtemp(prefix=EXACT_PREFIX, dir=parent))
        self._finalizer = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        logger.info("exact metrics take 4 or 8 bytes per pixel in %s", self._folder)

    def __reduce__(self):
        # A copy takes the files along: keep this object until the copy has been made.
        return _copied, (str(self._folder), self._parent)

    @property
    def wide(self) -> bool:
        """Whether any score needs keys of 64 bits."""
        return any(self._folder.glob(f"*{_WIDE}"))

    @property
    def key_type(self) -> type:
        """The type of keys in segments."""
        return np.uint64 if self.wide else np.uint32

    def _check_space(self, wanted: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if wanted > free:
            raise OSError(
                f"exact metrics take {wanted / 1e6:.1f} MB more, but {self._folder} has "
                f"{free / 1e6:.1f} MB left; name another spill_dir, or use exact=False, which "
                "takes none"
            )

    def add(self, keys: np.ndarray, labels: np.ndarray) -> None:
        """Store pixels: keys (N,) and labels (N,) uint8, 0 known, 1 anomaly."""
        self._check_space(keys.nbytes)
        ending = _WIDE if keys.dtype == np.uint64 else ""
        for label, name in enumerate(_LABELS):
            path = self._folder / f"{name}{ending}"
            with name_failed_write(path), open(path, "ab") as file:
                keys[labels == label].tofile(file)

    def merge(self, other: "ExactCounts") -> None:
        """Append all pixels of another store, which stays as it is."""
        self.merge_folder(other._folder)

    def merge_folder(self, folder: Path) -> None:
        """Append all pixels of the store in a folder; files of both widths stay side by side."""
        if not folder.is_dir():
            raise FileNotFoundError(
                f"the folder of exact scores is missing or cannot be read: {folder}. Keep their "
                "metrics alive until they are merged; use a spill_dir that all processes can read"
            )
        files = sorted(folder.iterdir())
        self._check_space(sum(file.stat().st_size for file in files))
        for file in files:
            path = self._folder / file.name
            with name_failed_write(path), open(file, "rb") as source, open(path, "ab") as target:
                left = file.stat().st_size  # its size before, should source and target be one
                while left:
                    block = source.read(min(left, 4 * CHUNK))
                    target.write(block)
                    left -= len(block)

    def segments(self) -> Iterator[Segment]:
        """Yield the curves point by point, from the highest score down."""
        yield from sorted_segments(*(self._sorted_on_disk(name) for name in _LABELS))

    def _sorted_on_disk(self, name: str) -> np.ndarray:
        """Sort all keys of a label into one array in a file, (N,)."""
        path, key_type = self._folder / name, self.key_type
        if key_type is np.uint64:
            narrow, path = path, self._folder / f"{name}{_WIDE}"
            if narrow.exists():
                with name_failed_write(path), open(path, "ab") as file:
                    for start in range(0, narrow.stat().st_size, 4 * CHUNK):
                        keys = np.fromfile(narrow, np.uint32, CHUNK, offset=start)
                        wide_keys(keys).tofile(file)
                narrow.unlink()
        if not path.exists() or not path.stat().st_size:
            return np.zeros(0, key_type)
        keys = np.memmap(path, key_type, mode="r+")
        keys.sort()
        return keys


def _copied(folder: str, parent: str | None) -> ExactCounts:
    counts = ExactCounts(parent)
    counts.merge_folder(Path(folder))
    return counts
