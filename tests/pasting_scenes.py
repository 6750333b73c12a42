"""Helpers that several test files share."""

import numpy as np

from anoseg_d2.data.cut_paste import CutPasteOptions, PasteObject

FRAME = (200, 300)


PAPER = CutPasteOptions(ratio=1.0)


def disc(side, colour=(200, 30, 30), label=None):
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    mask = np.hypot(y, x) <= side / 2
    image = np.full((side, side, 3), (0, 255, 0), np.uint8)  # the photograph's background
    image[mask] = colour
    return PasteObject(image, mask, label)


def scene(seed=0, shape=FRAME):
    generator = np.random.default_rng(seed)
    return (
        generator.integers(0, 256, (*shape, 3), dtype=np.uint8),
        generator.integers(0, 34, shape).astype(np.uint8),
    )
