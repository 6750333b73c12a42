"""Count how often each score occurred, for known and anomaly pixels, in bounded memory.

Three representations exist. Each depends only on the **multiset of (score, label) pairs**, not on
the order of updates or on how they were split over objects and merged.

`PixelKeys` keeps the score of every pixel, up to `Budget.kept_pixels`. It is exact, and by far the
fastest: one sort when figures are asked for.

`KeyRuns` holds every distinct score with its counts. Beyond `kept_pixels` it serves while there
are at most `Budget.runs` distinct scores, as in maps of 8 or 16 bits. Pixels and distinct scores
only become more, so whether a limit was passed does not depend on order.

`PagedSketch` takes over beyond that, with two tables of counters:

- *cells* of `2 ** shift` neighbouring keys, counted exactly, stored in pages that exist where
  scores fell. `shift` is the least one for which the touched pages fit. Pages touched at a given
  shift only become more as pixels arrive, hence the final shift is that of the whole multiset,
  whatever came first.
- a *fold*: the lowest `fold_bits` bits of every key, scrambled by the bits above, so that all keys
  share one table of full resolution. Where much mass sits on few neighbouring keys (a saturated
  score), the fold shows how it is spread inside a cell, up to the few pixels of other cells that
  share its counters. Their number is known, since cells are exact: it becomes a certified bound.

Scores that float32 cannot hold are counted by keys of 64 bits, and in the sketch by the nearest
float32: which of its keys are ties is then unknown, so only cells are used, and bounds are wider.

Adaptive refinement by mass would need to take back an earlier coarsening once a range turns out
to matter, which no order-free summary can; the fold keeps the low bits of all keys instead.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from anoseg_d2.evaluation.streaming.bounds import CHUNK, Cells, Segment, exact_segment
from anoseg_d2.evaluation.streaming.keys import narrow_keys, sorted_runs, wide_keys

__all__ = [
    "Budget",
    "KeyRuns",
    "PagedSketch",
    "PixelKeys",
    "counts_from_state",
    "sorted_segments",
    "touched_pages",
]

_MIN_SHIFT = 4  # a page directory over finer cells would cost more than the cells
_FOLD_RUN = 12  # low key bits that scrambling leaves in place: cells stay contiguous in the fold


@dataclass(frozen=True)
class Budget:
    """Sizes of the tables; the defaults stay under 128 MB, working memory included.

    Args:
        runs: distinct scores up to which every one is kept.
        pages: pages of exact cells, each of `2 ** page_bits` cells.
        page_bits: see `pages`.
        fold_bits: low key bits of full resolution.
        kept_pixels: labelled pixels up to which the score of each is kept, 4 bytes per pixel; half
            as many where scores need 8. The default is as high as memory allows: at the limit,
            pixels and sketch exist together.
    """

    runs: int = 1 << 18
    pages: int = 5 << 11
    page_bits: int = 9
    fold_bits: int = 22
    kept_pixels: int = 10_000_000


class PixelKeys:
    """The keys of all pixels, stored separately for known (0) and anomaly (1)."""

    exact = True

    def __init__(self, budget: Budget):
        self.budget = budget
        self.key_type = np.uint32
        self.parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        self.pixels = 0

    def add(self, keys: np.ndarray, labels: np.ndarray) -> None:
        """Keep pixels: keys (N,) and labels (N,) uint8, 0 known, 1 anomaly."""
        anomalous = labels.view(bool)
        self.pixels += keys.size
        for parts, chosen in zip(self.parts, (keys[~anomalous], keys[anomalous]), strict=True):
            parts.append(chosen)
            if len(parts) > 64:  # many small images: an array costs more than its pixels
                parts[:] = [np.concatenate(parts)]

    def has_room(self, pixels: int) -> bool:
        """Return whether `kept_pixels` allows this many more pixels."""
        limit = self.budget.kept_pixels * 4 // np.dtype(self.key_type).itemsize
        return self.pixels + pixels <= limit

    def widen(self) -> None:
        """Switch to keys of 64 bits."""
        self.key_type = np.uint64
        for parts in self.parts:
            parts[:] = [wide_keys(part) for part in parts]

    def chunks(self, release: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield all pixels as arguments of `add`.

        Args:
            release: forget them on the way, so that two representations fit into memory.
        """
        size = CHUNK >> 4  # little working memory is left next to two representations
        if release:
            # One large array would stay whole until its last pixel has been counted.
            for parts in self.parts:
                parts[:] = [block.copy() for part in parts for block in _blocks(part, CHUNK)]
        for label, parts in enumerate(self.parts):
            left, labels = parts if release else list(parts), np.full(size, label, np.uint8)
            while left:
                for keys in _blocks(left.pop(), size):
                    yield keys, labels[: keys.size]

    def _sorted(self, label: int) -> np.ndarray:
        parts = self.parts[label]
        if len(parts) != 1:
            parts[:] = [np.concatenate(parts) if parts else np.zeros(0, self.key_type)]
        parts[0].sort()
        return parts[0]

    def segments(self, plan=None) -> Iterator[Segment]:
        """Yield the curves from the highest score down."""
        yield from sorted_segments(self._sorted(0), self._sorted(1))

    def state(self) -> dict:
        return {"kind": "pixels", "known": self._sorted(0), "anomaly": self._sorted(1)}


def sorted_segments(known, anomaly, tp: int = 0, fp: int = 0) -> Iterator[Segment]:
    """Yield the curves over pixels with sorted keys, from the highest score down.

    A score that no anomaly pixel has is no point of its own: between two scores of anomaly pixels
    only the false positives grow, and one step holds them all.

    Args:
        known, anomaly: (N,) ascending keys; may be on disk.
        tp, fp: pixels above all of these.
    """
    last = fp + known.size
    for thresholds, counts in _runs_from_the_top(anomaly):
        keys = np.repeat(thresholds, 2)
        tps, fps = np.empty(keys.size, np.int64), np.empty(keys.size, np.int64)
        # Even places: the known pixels above a threshold; odd ones: all pixels that have it.
        tps[1::2] = tp + np.cumsum(counts)
        tps[0::2] = np.concatenate(([tp], tps[1:-1:2]))
        fps[0::2] = last - np.searchsorted(known, thresholds, side="right")
        fps[1::2] = last - np.searchsorted(known, thresholds, side="left")
        between = fps[0::2] > np.concatenate(([fp], fps[1:-1:2]))
        keys[0::2][between] = known[last - fps[0::2][between]]
        held = np.ones(keys.size, bool)
        held[0::2] = between
        tps, fps = tps[held], fps[held]
        yield Segment((tp, fp), keys[held], tps, tps, fps, fps, np.ones(tps.size, bool))
        tp, fp = int(tps[-1]), int(fps[-1])
    if fp < last:
        tps, fps, lowest = np.array([tp]), np.array([last]), np.array(known[:1])
        yield Segment((tp, fp), lowest, tps, tps, fps, fps, np.ones(1, bool))


def _blocks(keys: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield views of an array, `size` entries each."""
    return (keys[start : start + size] for start in range(0, keys.size, size))


def _runs_from_the_top(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield distinct keys of an ascending array and their counts, descending, in pieces."""
    end = keys.size
    while end:
        first = max(0, end - CHUNK)
        thresholds, counts = sorted_runs(np.array(keys[first:end]))
        # Equal keys are never torn apart: the lowest of a piece may have more below it.
        start = int(np.searchsorted(keys, thresholds[0], side="left"))
        counts[0] += first - start
        yield thresholds[::-1], counts[::-1]
        end = start


class KeyRuns:
    """Every distinct key with its counts, ascending."""

    exact = True

    def __init__(self, budget: Budget):
        self.budget = budget
        self.keys = np.zeros(0, np.uint32)
        self.counts = np.zeros((2, 0), np.int64)  # known, anomaly

    @property
    def key_type(self):
        """The type of the keys: uint32, or uint64 after `widen`."""
        return self.keys.dtype.type

    def widen(self) -> None:
        """Switch to keys of 64 bits."""
        self.keys = wide_keys(self.keys)

    def add(self, keys: np.ndarray, labels: np.ndarray) -> None:
        """Count pixels: keys (N,) and labels (N,) uint8, 0 known, 1 anomaly."""
        anomalous = labels.astype(bool)
        known, known_counts = sorted_runs(np.sort(keys[~anomalous]))
        anomaly, anomaly_counts = sorted_runs(np.sort(keys[anomalous]))
        counts = np.zeros((2, known.size + anomaly.size), np.int64)
        counts[0, : known.size] = known_counts
        counts[1, known.size :] = anomaly_counts
        self.add_runs(np.concatenate((known, anomaly)), counts)

    def add_runs(self, keys: np.ndarray, counts: np.ndarray) -> None:
        """Add counts (2, N) int64 of keys (N,)."""
        keys = np.concatenate((self.keys, keys))
        counts = np.concatenate((self.counts, counts), axis=1)
        order = np.argsort(keys, kind="stable")  # a few ascending runs: it merges them
        self.keys, known, anomalous = sorted_runs(keys[order], *counts[:, order])
        self.counts = np.stack((known, anomalous))

    @property
    def full(self) -> bool:
        return self.keys.size > self.budget.runs

    def segments(self, plan=None) -> Iterator[Segment]:
        """Certified points of the curves, from the highest score down."""
        tp = fp = 0
        for end in range(self.keys.size, 0, -CHUNK):
            part = slice(max(0, end - CHUNK), end)
            segment = exact_segment(
                self.keys[part][::-1],
                self.counts[1, part][::-1],
                self.counts[0, part][::-1],
                tp,
                fp,
            )
            tp, fp = segment.end
            yield segment

    def state(self) -> dict:
        return {"kind": "runs", "keys": self.keys, "counts": self.counts}


class PagedSketch:
    """Counts in exact cells and in a fold of full resolution; see the top of the module."""

    exact = False
    key_type = np.uint32
    narrow_pixels = (1 << 32) - 1  # counters have 32 bits; beyond, 64 bits and half as many

    def __init__(self, budget: Budget):
        self.budget = budget
        self.rounded = False  # float64 scores may have been merged
        self.shift = _MIN_SHIFT
        self.pixels = 0
        self.wide = False
        self.capacity, self.fold_bits = budget.pages, budget.fold_bits
        self.page_ids = np.zeros(0, np.int64)  # by place in the table, in order of arrival
        self.directory = self._empty_directory()
        self.cells = np.zeros(2 * budget.pages << budget.page_bits, np.uint32)
        self.fold = np.zeros(2 << budget.fold_bits, np.uint32)

    @classmethod
    def from_runs(cls, runs: KeyRuns, pages: np.ndarray | None = None) -> "PagedSketch":
        """Return the sketch of the same multiset.

        Args:
            runs: its pixels.
            pages: `touched_pages` of pixels to come: the sketch takes the resolution at which all
                of them fit at once, since to lose resolution later takes memory for a moment.
        """
        sketch = cls(runs.budget)
        touched = touched_pages([runs.keys], runs.budget)
        touched = touched if pages is None else touched | pages
        while np.count_nonzero(touched) > sketch.capacity:
            touched = touched[0::2] | touched[1::2]
            sketch._coarsen()
        sketch.add_runs(runs.keys, runs.counts)
        sketch.rounded = runs.key_type is np.uint64
        return sketch

    def widen(self) -> None:
        """Record that keys of 64 bits are rounded from now on."""
        self.rounded = True

    def add(self, keys: np.ndarray, labels: np.ndarray, counts: np.ndarray | None = None) -> None:
        """Count pixels: keys (N,), labels (N,) uint8 0 or 1, optional counts (N,) int64."""
        if keys.size == 0:
            return
        keys = narrow_keys(keys)
        self._make_room(keys.size if counts is None else int(counts.sum()))
        dtype = self.cells.dtype
        counts = np.ones(keys.size, dtype) if counts is None else counts.astype(dtype)
        places = self._cell_places(keys) << 1 | labels
        np.add.at(self.cells, places, counts)  # unlike +=, counts a key that occurs twice
        places = self._fold_places(keys).astype(np.intp) << 1 | labels
        np.add.at(self.fold, places, counts)

    def add_runs(self, keys: np.ndarray, counts: np.ndarray) -> None:
        """Add counts (2, N) int64 of distinct keys (N,)."""
        size = CHUNK >> 4
        for start in range(0, keys.size, size):
            for label in (0, 1):
                part = counts[label, start : start + size]
                held = np.flatnonzero(part)
                labels = np.full(held.size, label, np.uint8)
                self.add(keys[start + held], labels, part[held])

    def add_sketch(self, other: "PagedSketch") -> None:
        """Add the counts of another sketch of the same budget, which stays as it is."""
        self._make_room(other.pixels)
        while self.shift < other.shift:
            self._coarsen()
        width = 2 << self.budget.page_bits
        for place, page in enumerate(other.page_ids):
            first = int(page) << (other.shift + self.budget.page_bits)
            values = other.cells[place * width : (place + 1) * width]
            held = np.flatnonzero(values)
            keys = (first + ((held >> 1) << other.shift)).astype(np.uint32)
            places = self._cell_places(keys) << 1 | (held & 1)
            np.add.at(self.cells, places, values[held].astype(self.cells.dtype))
        for start in range(0, other.fold.size, self.fold.size):
            self.fold += other.fold[start : start + self.fold.size].astype(self.fold.dtype)

    def _empty_directory(self) -> np.ndarray:
        return np.full(1 << (32 - self.shift - self.budget.page_bits), -1, np.int32)

    def _cell_places(self, keys: np.ndarray) -> np.ndarray:
        """Return each key's cell in the table, (N,) intp; adds missing pages."""
        bits = self.budget.page_bits
        page = keys >> np.uint32(self.shift + bits)
        place = self.directory[page]
        if place.size and place.min() < 0:
            new = np.unique(page[place < 0])
            if self.page_ids.size + new.size > self.capacity:
                self._coarsen()
                return self._cell_places(keys)
            self.directory[new] = np.arange(new.size) + self.page_ids.size
            self.page_ids = np.concatenate((self.page_ids, new.astype(np.int64)))
            place = self.directory[page]
        within = (keys >> np.uint32(self.shift)) & np.uint32((1 << bits) - 1)
        return place.astype(np.intp) << bits | within

    def _fold_places(self, keys: np.ndarray) -> np.ndarray:
        """Return each key's counters in the fold, (N,) uint32."""
        bits = self.budget.fold_bits
        salt = ((keys >> np.uint32(bits)) * np.uint32(0x9E3779B1)) >> np.uint32(32 - bits)
        salt &= np.uint32(~((1 << min(_FOLD_RUN, bits)) - 1) & 0xFFFFFFFF)
        return (keys ^ salt) & np.uint32((1 << self.fold_bits) - 1)

    def _make_room(self, pixels: int) -> None:
        """Account for pixels to come; before a 32-bit counter could overflow, widen them all."""
        self.pixels += pixels
        if self.wide or self.pixels <= self.narrow_pixels:
            return
        self.wide = True
        self.capacity = self.budget.pages // 2
        self.fold_bits -= 1  # counters twice as wide, half as many
        while self.page_ids.size > self.capacity:
            self._coarsen()
        half = self.fold.size // 2
        self.fold = self.fold[:half].astype(np.uint64) + self.fold[half:]
        self.cells = self.cells[: 2 * self.capacity << self.budget.page_bits].astype(np.uint64)

    def _coarsen(self) -> None:
        """Merge neighbouring cells and pages, which halves the resolution and frees room."""
        half, used = 1 << (self.budget.page_bits - 1), self.page_ids.size
        self.shift += 1
        if not used:
            self.directory = self._empty_directory()
            return
        table = self.cells.reshape(-1, half, 2, 2)[:used]
        joined = table[:, :, 0] + table[:, :, 1]
        self.cells[:] = 0
        old = self.page_ids
        self.page_ids = np.unique(old >> 1)
        self.directory = self._empty_directory()
        self.directory[self.page_ids] = np.arange(self.page_ids.size)
        place = 2 * self.directory[old >> 1].astype(np.intp) + (old & 1)
        self.cells.reshape(-1, half, 2)[place] = joined

    def cell_groups(self, slots: np.ndarray | None, pages: int = 64) -> Iterator[Cells]:
        """Yield non-empty cells with exact counts, from the highest score down.

        Args:
            slots: of `slot_totals`.
            pages: that one group is made of.
        """
        size = 1 << self.budget.page_bits
        table = self.cells.reshape(-1, size, 2)
        order = np.argsort(self.page_ids)[::-1]
        tp = fp = 0
        for start in range(0, order.size, pages):
            chosen = order[start : start + pages][::-1]
            counts = table[chosen].reshape(-1, 2)
            held = np.flatnonzero(counts[:, 0] | counts[:, 1])[::-1]
            counts = counts[held].astype(np.int64)
            cell = (self.page_ids[chosen[held // size]] << self.budget.page_bits) + held % size
            keys = (cell << self.shift).astype(np.uint32)
            cells = Cells.from_counts(keys, counts[:, 1], counts[:, 0], tp, fp)
            cells.foreign = self._foreign(slots, keys, counts)
            tp, fp = cells.end
            yield cells

    def slot_totals(self) -> np.ndarray | None:
        """Sum the fold over the counters that one cell uses, (slots, 2) int64."""
        if self.shift > min(_FOLD_RUN, self.fold_bits):
            return None
        # Neighbours are added in halves, far faster than a sum over an axis. Two 32-bit counters
        # are added as one 64-bit integer: no total overflows, so none carries into its neighbour.
        totals = self.fold if self.wide else self.fold.view(np.uint64)
        totals = totals.reshape(-1, 2 if self.wide else 1)
        for _ in range(self.shift):
            totals = totals[0::2] + totals[1::2]
        return totals.view(self.fold.dtype).astype(np.int64)

    def _foreign(self, slots, keys, counts) -> np.ndarray:
        """Return other cells' pixels in each cell's counters, (N, 2) int64 as known, anomaly."""
        if slots is None:
            return np.full((keys.size, 2), np.iinfo(np.int64).max)  # nothing can be resolved
        return slots[self._fold_places(keys) >> np.uint32(self.shift)] - counts

    def segments(self, plan: Callable) -> Iterator[Segment]:
        """Certified points of the curves, from the highest score down.

        Args:
            plan: called with all groups of cells first; returns which cells of a group to resolve
                further, as a function of the group that gives (N,) bool.
        """
        if self.rounded:
            for cells in self.cell_groups(None):
                segment = cells.coarse_segment()
                # A score that was rounded up to the lowest key of its cell is just below it.
                segment.keys = np.maximum(segment.keys, 1) - np.uint32(1)
                yield segment
            return
        limit = max(1, CHUNK >> self.shift)
        slots = self.slot_totals()
        wanted = plan(self.cell_groups(slots))
        for cells in self.cell_groups(slots):
            chosen = wanted(cells)
            if not chosen.any():
                yield cells.coarse_segment()
                continue
            ends = [0, *np.flatnonzero(chosen)[limit::limit], cells.size]
            for start, end in zip(ends[:-1], ends[1:], strict=True):
                yield self._resolved(cells.part(start, end), chosen[start:end])

    def _resolved(self, cells: Cells, chosen: np.ndarray) -> Segment:
        """Replace the chosen cells by one point per key, bounded through the fold."""
        first = self._fold_places(cells.keys[chosen]).astype(np.intp)
        offsets = np.arange((1 << self.shift) - 1, -1, -1)
        held = self.fold.reshape(-1, 2)[first[:, None] + offsets].astype(np.int64)
        return cells.resolved_segment(chosen, offsets, held)

    def state(self) -> dict:
        order = np.argsort(self.page_ids)  # equal sketches have equal states
        table = self.cells.reshape(-1, 2 << self.budget.page_bits)
        return {
            "kind": "sketch",
            "shift": self.shift,
            "pixels": self.pixels,
            "wide": self.wide,
            "rounded": self.rounded,
            "page_ids": self.page_ids[order],
            "cells": _packed(table[order].reshape(-1)),
            "fold": _packed(self.fold),
        }


def touched_pages(parts: Iterable[np.ndarray], budget: Budget) -> np.ndarray:
    """Return which pages of the finest cells hold any of the keys, (pages,) bool."""
    bits = _MIN_SHIFT + budget.page_bits
    touched = np.zeros(1 << (32 - bits), bool)
    for keys in parts:
        for start in range(0, keys.size, CHUNK):
            touched[narrow_keys(keys[start : start + CHUNK]) >> np.uint32(bits)] = True
    return touched


def _packed(values: np.ndarray) -> dict:
    """Return only non-zero entries, if that is smaller."""
    held = np.flatnonzero(values)
    if held.size * (values.itemsize + 4) >= values.nbytes:
        return {"size": values.size, "values": values.copy()}
    return {"size": values.size, "places": held.astype(np.uint32), "values": values[held]}


def _unpack(packed: dict, out: np.ndarray) -> None:
    if "places" in packed:
        out[packed["places"]] = packed["values"]
    else:
        out[: packed["size"]] = packed["values"]


def counts_from_state(state: dict, budget: Budget) -> PixelKeys | KeyRuns | PagedSketch:
    """Rebuild a representation from its `state()`."""
    if state["kind"] == "pixels":
        pixels = PixelKeys(budget)
        for parts, name in zip(pixels.parts, ("known", "anomaly"), strict=True):
            parts.append(state[name])
            pixels.pixels += state[name].size
            pixels.key_type = state[name].dtype.type
        return pixels
    if state["kind"] == "runs":
        runs = KeyRuns(budget)
        runs.keys, runs.counts = state["keys"], state["counts"]
        return runs
    sketch = PagedSketch(budget)
    sketch.shift, sketch.rounded = state["shift"], state["rounded"]
    sketch._make_room(state["pixels"])  # widens the counters if the source's were wide
    sketch.page_ids = state["page_ids"]
    sketch.directory = sketch._empty_directory()
    sketch.directory[sketch.page_ids] = np.arange(sketch.page_ids.size)
    _unpack(state["cells"], sketch.cells)
    _unpack(state["fold"], sketch.fold)
    return sketch
