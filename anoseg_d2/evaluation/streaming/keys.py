"""Scores as unsigned integers that sort the same way.

Flipping the sign bit of a non-negative IEEE-754 float32, and every bit of a negative one, gives
an unsigned 32-bit integer with the order of the reals. Counting integers instead of floats
assumes nothing about the range of a score.
"""

import numpy as np

__all__ = ["keys_to_scores", "scores_to_keys", "sorted_runs", "to_numpy"]

_SIGN = np.uint32(1 << 31)
_LOWEST = np.uint32(0x007FFFFF)  # -inf; below it the bits are NaN


def to_numpy(array) -> np.ndarray:
    """A numpy view of an array, or of a torch tensor on any device and of any dtype."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        # numpy knows no bfloat16; float32 holds every one of its values
        array = array.float() if "bfloat16" in str(array.dtype) else array
        array = array.numpy()
    return np.asarray(array)


def scores_to_keys(scores: np.ndarray) -> np.ndarray:
    """Map float32 scores to integers of the same order.

    Args:
        scores: (N,) float32 without NaN; -0.0 counts as +0.0, infinities are allowed.
    Returns:
        (N,) uint32; `a < b` holds for the keys exactly when it holds for the scores.
    """
    bits = (scores + np.float32(0)).view(np.uint32)  # -0.0 + 0.0 is +0.0
    flip = (bits.view(np.int32) >> 31).view(np.uint32)
    flip |= _SIGN
    bits ^= flip
    return bits


def keys_to_scores(keys) -> np.ndarray:
    """Undo `scores_to_keys`: (N,) uint32 -> (N,) float32; keys below every score give -inf."""
    keys = np.maximum(np.atleast_1d(np.asarray(keys, dtype=np.uint32)), _LOWEST)
    return np.where(keys & _SIGN, keys ^ _SIGN, ~keys).view(np.float32)


def sorted_runs(keys: np.ndarray, *counts: np.ndarray):
    """Add up counts of equal neighbours in an ascending array.

    Args:
        keys: (N,) ascending.
        counts: arrays (N,) of integers to add up over each run; none: the length of the run.
    Returns:
        `(distinct, total, ...)`: the M distinct keys and one (M,) int64 array per given count.
    """
    if keys.size == 0:
        return (keys, *(np.zeros(0, np.int64) for _ in counts or (0,)))
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    if not counts:
        return keys[starts], np.diff(starts, append=keys.size)
    return (keys[starts], *(np.add.reduceat(c, starts, dtype=np.int64) for c in counts))
