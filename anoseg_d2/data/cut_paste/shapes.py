"""Random outlines: blobs, and parts of objects inside of them.

A handful of objects teaches a detector these objects. Their parts, textures and patches of other
surfaces are further kinds of unknown things, for which no annotation has to be drawn.
"""

import dataclasses

import cv2
import numpy as np

from anoseg_d2.data.cut_paste.paste import PasteObject

__all__ = ["LEAST_SIDE", "draw_blob", "part_of"]

LEAST_SIDE = 8  # of a blob, pixels: smaller ones have no outline to speak of
# Longest side of a part, as fractions of the longest side of its object.
PART_SIDES = (0.4, 0.8)


def part_of(item: PasteObject, generator: np.random.Generator) -> PasteObject:
    """Return a random part of an object: what one blob around one of its pixels covers of it.

    Args:
        item: object to cut.
        generator: source of all random numbers.
    Returns:
        the object with a smaller mask, connected and not empty; its record says `part`.
    Raises:
        ValueError: the object's mask is empty.
    """
    rows, columns = np.nonzero(item.mask)
    if len(rows) == 0:
        raise ValueError(f"an object's mask is empty ({item.source})")
    longest = 1 + max(int(np.ptp(rows)), int(np.ptp(columns)))
    sides = tuple(fraction * longest for fraction in PART_SIDES)
    side = max(int(generator.uniform(*sides)), LEAST_SIDE)
    chosen = int(generator.integers(len(rows)))
    y, x = int(rows[chosen]), int(columns[chosen])
    blob = draw_blob(side, generator)
    mask = np.zeros(item.mask.shape, np.uint8)
    top, left = y - side // 2, x - side // 2
    box = np.s_[max(top, 0) : top + side, max(left, 0) : left + side]
    inside = blob[max(-top, 0) :, max(-left, 0) :][: mask[box].shape[0], : mask[box].shape[1]]
    mask[box] = item.mask[box] & inside
    mask[y, x] = True  # a narrow blob may miss the centre of its own middle pixel
    # The blob may touch other arms of the object; only what hangs together is one part.
    _, parts = cv2.connectedComponents(mask, connectivity=8)
    return dataclasses.replace(
        item, mask=parts == parts[y, x], source={**item.source, "part": True}
    )


def draw_blob(side: int, generator: np.random.Generator) -> np.ndarray:
    """Draw a star-shaped outline from a few random waves, (side, side) bool."""
    waves = np.arange(1, 6)
    size, phase = generator.normal(0, 0.35 / waves), generator.uniform(0, 2 * np.pi, 5)
    stretch = generator.uniform(0.5, 1)
    y, x = (np.mgrid[:side, :side] + 0.5) * 2 / side - 1
    angle = np.arctan2(y, x * stretch)
    radius = np.exp((size * np.cos(angle[..., None] * waves + phase)).sum(-1))
    return np.hypot(y, x / stretch) <= 0.9 * radius / radius.max()
