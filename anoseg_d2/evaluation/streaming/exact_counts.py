"""Store every score on disk, in one file per key range: exact figures in little memory.

A file holds the keys of one label whose highest 12 bits agree, in order of arrival: 4 bytes per
pixel, or 8 for scores that float32 cannot hold, in the range of the nearest float32. To be read, a
file is sorted where it is, so that memory does not depend on how the scores are distributed.
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
from anoseg_d2.evaluation.streaming.keys import narrow_keys, wide_keys
from anoseg_d2.utils.files import name_failed_write

__all__ = ["EXACT_PREFIX", "ExactCounts"]

logger = logging.getLogger(__name__)

# Folders with this prefix are temporary; what a killed run left is removed by the next one.
EXACT_PREFIX = "exact_scores_"
_LOW_BITS = 20
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
        for label, name in enumerate(_LABELS):
            chosen = np.sort(keys[labels == label])
            ranges = narrow_keys(chosen) >> np.uint32(_LOW_BITS)
            starts = np.flatnonzero(np.diff(ranges, prepend=np.uint32(0xFFFFFFFF)))
            for start, end in zip(starts, np.append(starts, chosen.size)[1:], strict=True):
                ending = _WIDE if keys.dtype == np.uint64 else ""
                path = self._folder / f"{ranges[start]:03x}.{name}{ending}"
                with name_failed_write(path), open(path, "ab") as file:
                    chosen[start:end].tofile(file)

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

    def _sorted_on_disk(self, prefix: str, name: str, key_type) -> np.ndarray:
        """Sort all keys of a range and label into one array in a file, (N,)."""
        path, wide = self._folder / f"{prefix}.{name}", self._folder / f"{prefix}.{name}{_WIDE}"
        if key_type is np.uint64:
            if path.exists():
                with name_failed_write(wide), open(wide, "ab") as file:
                    for start in range(0, path.stat().st_size, 4 * CHUNK):
                        wide_keys(np.fromfile(path, np.uint32, CHUNK, offset=start)).tofile(file)
                path.unlink()
            path = wide
        if not path.exists():
            return np.zeros(0, key_type)
        keys = np.memmap(path, key_type, mode="r+")
        keys.sort()
        return keys

    def segments(self) -> Iterator[Segment]:
        """Yield the curves point by point, from the highest score down."""
        tp = fp = 0
        key_type = self.key_type
        prefixes = {file.name.partition(".")[0] for file in self._folder.iterdir()}
        for prefix in sorted(prefixes, reverse=True):
            keys = [self._sorted_on_disk(prefix, name, key_type) for name in _LABELS]
            for segment in sorted_segments(*keys, tp, fp):
                tp, fp = segment.end
                yield segment


def _copied(folder: str, parent: str | None) -> ExactCounts:
    counts = ExactCounts(parent)
    counts.merge_folder(Path(folder))
    return counts
