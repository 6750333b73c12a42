"""Convert scores to unsigned integers that sort the same way.

Flipping the sign bit of a non-negative IEEE-754 number, and every bit of a negative one, gives an
unsigned integer with the order of the reals: 32 bits of a float32, 64 bits of a float64. Counting
integers instead of floats assumes nothing about the range of a score.
"""

import numpy as np


def to_numpy(array) -> np.ndarray:
    """Return an array, or a torch tensor of any device and dtype, as a numpy array."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        # numpy knows no bfloat16; float32 holds every one of its values
        array = array.float() if "bfloat16" in str(array.dtype) else array
        array = array.numpy()
    return np.asarray(array)


def as_floats(scores: np.ndarray, where: str) -> np.ndarray:
    """Return scores as float32 if it holds every one of them exactly, else as float64.

    Rounding to float32 would merge saturated probabilities and integers above 2 ** 24, and with
    them the order that every figure depends on.

    Args:
        scores: real numbers of any shape and type, without NaN.
        where: for the message.
    Raises:
        ValueError: not even float64 holds them; says how many distinct scores would be left.
    """
    if scores.dtype in (np.float16, np.float32):
        return scores.astype(np.float32, copy=False)
    wide = scores.astype(np.float64, copy=False)
    if scores.dtype.kind in "iu" and scores.dtype.itemsize == 8:
        # Comparing the two would round the integers as well, so ask whether a float64 is there.
        step = np.maximum(np.spacing(np.abs(wide)), 1).astype(scores.dtype)
        exact = bool((scores % step == 0).all())
    else:
        exact = scores.dtype == np.float64 or bool((wide == scores).all())
    if not exact:
        before, after = np.unique(scores).size, np.unique(wide).size
        raise ValueError(
            f"{where}: {scores.dtype} scores that float64 cannot hold: of {before} distinct ones "
            f"{after} would be left, or their order would change; subtract an offset or scale them"
        )
    with np.errstate(over="ignore"):  # beyond float32 it is infinite, which differs
        narrow = wide.astype(np.float32)
    return narrow if (narrow == wide).all() else wide


def scores_to_keys(scores: np.ndarray) -> np.ndarray:
    """Map scores to integers of the same order.

    Args:
        scores: (N,) float32 or float64 without NaN; -0.0 counts as +0.0, infinities are allowed.
    Returns:
        (N,) uint32 or uint64; `a < b` holds for the keys exactly when it holds for the scores.
    """
    unsigned, signed = (np.uint32, np.int32) if scores.itemsize == 4 else (np.uint64, np.int64)
    bits = (scores + scores.dtype.type(0)).view(unsigned)  # -0.0 + 0.0 is +0.0
    flip = (bits.view(signed) >> (8 * scores.itemsize - 1)).view(unsigned)
    flip |= _sign(unsigned)
    bits ^= flip
    return bits


def keys_to_scores(keys) -> np.ndarray:
    """Undo `scores_to_keys`: (N,) keys -> (N,) scores; keys below every score give -inf."""
    keys = np.atleast_1d(np.asarray(keys))
    keys = keys if keys.dtype == np.uint64 else keys.astype(np.uint32)
    floats = np.float64 if keys.itemsize == 8 else np.float32
    lowest = scores_to_keys(np.array([-np.inf], floats))  # below it the bits are NaN
    keys = np.maximum(keys, lowest)
    sign = _sign(keys.dtype.type)
    return np.where(keys & sign, keys ^ sign, ~keys).view(floats)


def _sign(unsigned):
    return unsigned(1 << (8 * np.dtype(unsigned).itemsize - 1))


def wide_keys(keys: np.ndarray) -> np.ndarray:
    """Turn keys of float32 scores into keys of the same scores as float64."""
    if keys.dtype == np.uint64:
        return keys
    return scores_to_keys(keys_to_scores(keys).astype(np.float64))


def sorted_runs(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the M distinct keys of an ascending array (N,), and how often each occurs, (M,)."""
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1]))[: keys.size])
    return keys[starts], np.diff(starts, append=keys.size)
