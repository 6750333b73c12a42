"""Count how often each score occurred, for known and anomaly pixels, in bounded memory.

`Counts` keeps the score of every pixel while there are few: one sort gives exact figures. Beyond
`Budget.kept_pixels` it counts *cells*: aligned ranges of `2 ** shift` neighbouring keys of 64 bits.
A cell begins as a single score. When there are too many, neighbours with few pixels are joined, so
that the pixels of a cell are a tiny fraction of all, or else have the same score: a saturated score
keeps its resolution where its mass is. Figures are exact while no cell was joined, as for maps of 8
or 16 bits; after that they are bounds.

Kept pixels, and cells that were never joined, do not depend on the order of updates or on how they
were split over objects and merged. Which neighbours are joined does, within the bounds.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from anoseg_d2.evaluation.streaming.bounds import CHUNK, Segment
from anoseg_d2.evaluation.streaming.keys import sorted_runs, wide_keys


@dataclass(frozen=True)
class Budget:
    """Sizes of what is held; the defaults stay under 128 MB, working memory included.

    Args:
        kept_pixels: labelled pixels up to which the score of each is kept, 4 bytes per pixel; half
            as many where scores need 8.
        cells: ranges of scores with exact counts.
    """

    kept_pixels: int = 10_000_000
    cells: int = 1 << 18


class Counts:
    """Kept pixels, or counted cells; see the top of the module."""

    def __init__(self, budget: Budget):
        self.budget = budget
        self.pixels = 0
        self.wide = False  # a score needed a key of 64 bits
        self.parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])  # known, anomaly
        # Lowest key of every cell, ascending; None while all pixels are kept.
        self.cells: np.ndarray | None = None
        self.shifts = np.zeros(0, np.uint8)
        self.cell_pixels = np.zeros((2, 0), np.int64)  # known, anomaly

    def add(self, keys: np.ndarray, labels: np.ndarray) -> None:
        """Count pixels: keys (N,) uint32 or uint64 and labels (N,) uint8, 0 known, 1 anomaly."""
        anomalous = labels.view(bool)
        self._add(keys[~anomalous], keys[anomalous])

    def _add(self, *halves: np.ndarray) -> None:
        """Count pixels: keys of the known and of the anomaly ones."""
        self.pixels += sum(keys.size for keys in halves)
        self.wide |= any(keys.dtype == np.uint64 and keys.size > 0 for keys in halves)
        if self.cells is not None:
            self._count(*halves)
            return
        for parts, keys in zip(self.parts, halves, strict=True):
            parts.append(keys)
            if len(parts) > 64:  # many small images: an array costs more than its pixels
                parts[:] = [_joined(parts)]
        if self.pixels > self.budget.kept_pixels // (2 if self.wide else 1):
            self._leave_pixels()

    def _leave_pixels(self) -> None:
        """Switch from kept pixels to cells."""
        self.cells, none = np.zeros(0, np.uint64), np.zeros(0, np.uint32)
        known, anomaly = self.parts
        while known:
            self._count(known.pop(), none)
        while anomaly:
            self._count(none, anomaly.pop())

    def _count(self, *halves: np.ndarray) -> None:
        for start in range(0, max(keys.size for keys in halves), CHUNK):
            runs = [sorted_runs(np.sort(keys[start : start + CHUNK])) for keys in halves]
            cells = np.concatenate([wide_keys(keys) for keys, _ in runs])
            pixels = np.zeros((2, cells.size), np.int64)
            pixels[0, : runs[0][0].size], pixels[1, runs[0][0].size :] = runs[0][1], runs[1][1]
            self._add_cells(cells, np.zeros(cells.size, np.uint8), pixels)

    def _add_cells(self, cells: np.ndarray, shifts: np.ndarray, pixels: np.ndarray) -> None:
        """Add cells: lowest keys (N,) uint64, shifts (N,) uint8, pixels (2, N) int64."""
        cells = np.concatenate((self.cells, cells))
        order = np.argsort(cells, kind="stable")  # a few ascending runs: it merges them
        cells, shifts = cells[order], np.concatenate((self.shifts, shifts))[order]
        # Aligned ranges are disjoint or nested, and inner ones follow the one around them.
        ends = np.maximum.accumulate(cells | ~_mask(shifts))
        starts = np.flatnonzero(np.concatenate(([True], cells[1:] > ends[:-1])))
        self.cells, self.shifts = cells[starts], np.maximum.reduceat(shifts, starts)
        pixels = np.concatenate((self.cell_pixels, pixels), axis=1)[:, order]
        self.cell_pixels = np.add.reduceat(pixels, starts, axis=1)
        if self.cells.size > self.budget.cells:
            self._join()

    def _join(self) -> None:
        """Join neighbours with few pixels until half of the cells are left."""
        total = np.maximum(self.cell_pixels.sum(axis=1, keepdims=True), 1)
        limit = 8 / self.budget.cells  # of a cell's fraction of the known and of the anomaly pixels
        while self.cells.size > self.budget.cells // 2:
            # Neighbouring float32 are 2 ** 29 keys of 64 bits apart.
            for shift in range(1 if self.wide else 30, 64):
                parents = self.cells & _mask(np.uint8(shift))
                starts = np.flatnonzero(np.concatenate(([True], parents[1:] != parents[:-1])))
                sizes = np.diff(starts, append=parents.size)
                pixels = np.add.reduceat(self.cell_pixels, starts, axis=1)
                joined = (sizes > 1) & ((pixels / total).sum(axis=0) <= limit)
                inside = np.repeat(joined, sizes)
                kept = ~inside
                first = starts[joined]
                kept[first] = True
                self.cell_pixels[:, first] = pixels[:, joined]
                self.cells[first], self.shifts[first] = parents[first], shift
                self.cells, self.shifts = self.cells[kept], self.shifts[kept]
                self.cell_pixels = self.cell_pixels[:, kept]
                if self.cells.size <= self.budget.cells // 2:
                    break
            limit *= 2

    def merge(self, other: "Counts") -> None:
        """Add another object's pixels; it stays as it is."""
        if other.cells is None:
            # Copies of the lists, because `other` may be this object.
            known, anomaly = (list(parts) for parts in other.parts)
            for part in known:
                self._add(part, part[:0])
            for part in anomaly:
                self._add(part[:0], part)
            return
        if self.cells is None:
            self._leave_pixels()
        self.pixels += other.pixels
        self.wide |= other.wide
        self._add_cells(other.cells, other.shifts, other.cell_pixels)

    @property
    def key_type(self) -> type:
        """The type of keys in segments."""
        return np.uint32 if self.cells is None and not self.wide else np.uint64

    def segments(self) -> Iterator[Segment]:
        """Yield the curves from the highest score down."""
        if self.cells is None:
            yield from sorted_segments(self._sorted(0), self._sorted(1))
            return
        tp = fp = 0
        for end in range(self.cells.size, 0, -CHUNK):
            part = slice(max(0, end - CHUNK), end)
            known, anomalous = self.cell_pixels[:, part][:, ::-1].cumsum(axis=1)
            keys, tied = self.cells[part][::-1], self.shifts[part][::-1] == 0
            segment = Segment((tp, fp), keys, tp + anomalous, fp + known, tied)
            tp, fp = segment.end
            yield segment

    def _sorted(self, label: int) -> np.ndarray:
        parts = self.parts[label]
        if self.wide:
            parts[:] = [wide_keys(part) for part in parts]
        if len(parts) != 1:
            parts[:] = [_joined(parts) if parts else np.zeros(0, self.key_type)]
        parts[0].sort()
        return parts[0]


def _mask(shifts: np.ndarray) -> np.ndarray:
    """Return the bits of a key that name its cell."""
    return ~((np.uint64(1) << shifts.astype(np.uint64)) - np.uint64(1))


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    if any(part.dtype == np.uint64 for part in parts):  # numpy would turn keys to other numbers
        parts = [wide_keys(part) for part in parts]
    return np.concatenate(parts)


def sorted_segments(known: np.ndarray, anomaly: np.ndarray) -> Iterator[Segment]:
    """Yield the curves over pixels with sorted keys, from the highest score down.

    A score that no anomaly pixel has is no point of its own: between two scores of anomaly pixels
    only the false positives grow, and one step holds them all.

    Args:
        known, anomaly: (N,) ascending keys.
    """
    tp, fp = 0, 0
    for thresholds, counts in _runs_from_the_top(anomaly):
        keys = np.repeat(thresholds, 2)
        tps, fps = np.empty(keys.size, np.int64), np.empty(keys.size, np.int64)
        # Even places: the known pixels above a threshold; odd ones: all pixels that have it.
        tps[1::2] = tp + np.cumsum(counts)
        tps[0::2] = np.concatenate(([tp], tps[1:-1:2]))
        fps[0::2] = known.size - np.searchsorted(known, thresholds, side="right")
        fps[1::2] = known.size - np.searchsorted(known, thresholds, side="left")
        between = fps[0::2] > np.concatenate(([fp], fps[1:-1:2]))
        keys[0::2][between] = known[known.size - fps[0::2][between]]
        held = np.ones(keys.size, bool)
        held[0::2] = between
        segment = Segment((tp, fp), keys[held], tps[held], fps[held])
        yield segment
        tp, fp = segment.end
    if fp < known.size:
        yield Segment((tp, fp), known[:1], np.array([tp]), np.array([known.size]))


def _runs_from_the_top(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield distinct keys of an ascending array and their counts, descending, in pieces."""
    end = keys.size
    while end:
        first = max(0, end - CHUNK)
        thresholds, counts = sorted_runs(keys[first:end])
        # Equal keys are never torn apart: the lowest of a piece may have more below it.
        start = int(np.searchsorted(keys, thresholds[0], side="left"))
        counts[0] += first - start
        yield thresholds[::-1], counts[::-1]
        end = start
