"""Every score of a dataset on disk, sorted into files by key range: exact figures, little memory.

A file holds the keys of one label whose highest 12 bits agree, 4 bytes per pixel in order of
arrival. Reading a range back counts its 2 ** 20 possible keys, so that memory does not depend on
how the scores are distributed.
"""

import logging
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from anoseg_d2.evaluation.streaming.bounds import CHUNK, Segment, exact_segment
from anoseg_d2.evaluation.streaming.counts import Budget, KeyRuns
from anoseg_d2.utils.files import name_failed_write

__all__ = ["EXACT_PREFIX", "ExactCounts", "estimate_exact_bytes"]

logger = logging.getLogger(__name__)

# Folders with this prefix are temporary; what a killed run left is removed by the next one.
EXACT_PREFIX = "exact_scores_"
_LOW_BITS = 20
_KEY_BYTES = 4
_LABELS = ("known", "anomaly")


def estimate_exact_bytes(labelled_pixels: int) -> int:
    """Disk space that exact figures of so many labelled pixels take, in bytes."""
    return _KEY_BYTES * labelled_pixels


class ExactCounts:
    """Scores on disk, in a temporary directory that goes with the object.

    Args:
        parent: where to make the directory; default the system's place for temporary files.
        expected_pixels: labelled pixels to come: the space for all is checked at once.
    Raises:
        OSError: the disk has less space than needed, here or when pixels are added.
    """

    exact = True

    def __init__(self, parent: str | None = None, expected_pixels: int | None = None):
        self._folder = Path(tempfile.mkdtemp(prefix=EXACT_PREFIX, dir=parent))
        self._finalizer = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        if expected_pixels is None:
            logger.info("exact metrics take %d bytes per pixel in %s", _KEY_BYTES, self._folder)
            return
        logger.info(
            "exact metrics of %d pixels take %.1f MB in %s",
            expected_pixels,
            estimate_exact_bytes(expected_pixels) / 1e6,
            self._folder,
        )
        self._check_space(expected_pixels)

    def _check_space(self, pixels: int) -> None:
        free, wanted = shutil.disk_usage(self._folder).free, estimate_exact_bytes(pixels)
        if wanted > free:
            raise OSError(
                f"exact metrics of {pixels} more pixels take {wanted / 1e6:.1f} MB, but "
                f"{self._folder} has {free / 1e6:.1f} MB left; name another spill_dir, or use "
                "exact=False, which takes none"
            )

    def add(self, keys: np.ndarray, labels: np.ndarray) -> None:
        """Store pixels: keys (N,) uint32 and labels (N,) uint8, 0 known, 1 anomaly."""
        self._check_space(keys.size)
        for label, name in enumerate(_LABELS):
            chosen = np.sort(keys[labels == label])
            ranges = chosen >> np.uint32(_LOW_BITS)
            starts = np.flatnonzero(np.diff(ranges, prepend=np.uint32(0xFFFFFFFF)))
            for start, end in zip(starts, np.append(starts, chosen.size)[1:], strict=True):
                path = self._folder / f"{ranges[start]:03x}.{name}"
                with name_failed_write(path), open(path, "ab") as file:
                    chosen[start:end].tofile(file)

    def merge(self, other: "ExactCounts") -> None:
        """Append all pixels of another store, which stays as it is."""
        self.merge_state(other.state())

    def state(self) -> dict:
        return {"kind": "spilled", "folder": str(self._folder)}

    def merge_state(self, state: dict) -> None:
        """Append all pixels of the store that `state()` describes."""
        folder = Path(state["folder"])
        if not folder.is_dir():
            raise FileNotFoundError(
                f"exact scores are gone or out of reach: {folder}. Keep their metrics alive until "
                "they are merged, and name a spill_dir that all processes can read"
            )
        files = sorted(folder.iterdir())
        self._check_space(sum(file.stat().st_size for file in files) // _KEY_BYTES)
        for file in files:
            path = self._folder / file.name
            with name_failed_write(path), open(file, "rb") as source, open(path, "ab") as target:
                left = file.stat().st_size  # its size before, should source and target be one
                while left:
                    block = source.read(min(left, 4 * CHUNK))
                    target.write(block)
                    left -= len(block)

    def _counted(self, prefix: str) -> tuple[np.ndarray, np.ndarray]:
        """Keys of a range that occur, (N,) uint32 ascending, and their counts (2, N) int64."""
        paths = [self._folder / f"{prefix}.{name}" for name in _LABELS]
        sizes = [path.stat().st_size // _KEY_BYTES if path.exists() else 0 for path in paths]
        if sum(sizes) <= CHUNK:
            runs = KeyRuns(Budget())
            parts = [
                np.fromfile(p, np.uint32) for p, size in zip(paths, sizes, strict=True) if size
            ]
            runs.add(np.concatenate(parts), np.repeat(np.arange(2, dtype=np.uint8), sizes))
            return runs.keys, runs.counts
        counts = np.zeros((2, 1 << _LOW_BITS), np.int64)
        for label, path in enumerate(paths):
            for start in range(0, sizes[label], CHUNK):
                keys = np.fromfile(path, np.uint32, CHUNK, offset=start * _KEY_BYTES)
                low = keys & np.uint32((1 << _LOW_BITS) - 1)
                np.add.at(counts[label], low, np.ones(low.size, np.int64))
        low = np.flatnonzero(counts[0] | counts[1])
        return ((int(prefix, 16) << _LOW_BITS) + low).astype(np.uint32), counts[:, low]

    def segments(self, plan=None) -> Iterator[Segment]:
        """The curves point by point, from the highest score down."""
        tp = fp = 0
        for prefix in sorted({file.stem for file in self._folder.iterdir()}, reverse=True):
            keys, counts = self._counted(prefix)
            for end in range(keys.size, 0, -CHUNK):
                part = slice(max(0, end - CHUNK), end)
                known, anomalous = counts[:, part][:, ::-1]
                segment = exact_segment(keys[part][::-1], anomalous, known, tp, fp)
                tp, fp = segment.end
                yield segment
