"""Return names and colours of the classes that a model knows."""

import numpy as np

from anoseg_d2.utils.constants import CITYSCAPES_CLASSES
from anoseg_d2.utils.visualization import class_palette


def class_colors(num_known: int, names=None, colors=None) -> tuple[list[str], np.ndarray]:
    """Return the names of the classes and a palette for them.

    Args:
        num_known: K.
        names: K names that a checkpoint holds; None where it holds none. Nineteen classes without
            names are those of Cityscapes, for which most public checkpoints were trained.
        colors: K RGB triples of a dataset, if it states them.
    Returns:
        K names, and a (256, 3) uint8 RGB palette: the given colours, Cityscapes' colours for its
        classes, distinct hues for any others, as dataset cards have them.
    """
    if not names and num_known == len(CITYSCAPES_CLASSES):
        names = CITYSCAPES_CLASSES
    names = list(names or (f"class {index}" for index in range(num_known)))
    if colors is None:
        colors = None if tuple(names) == CITYSCAPES_CLASSES else ()
    return names, class_palette(255, colors)
