"""Parts of objects are connected pieces of them, whatever the blob."""

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anoseg_d2.data.cut_paste.paste import PasteObject
from anoseg_d2.data.cut_paste.shapes import part_of


@settings(max_examples=60, deadline=None)
@example(seed=321, height=20, width=20)  # the blob misses its own middle
@given(seed=st.integers(0, 10**6), height=st.integers(1, 60), width=st.integers(1, 60))
def test_a_part_is_a_connected_piece_of_its_object(seed, height, width):
    generator = np.random.default_rng(seed)
    mask = generator.random((height, width)) < 0.6
    mask[generator.integers(height), generator.integers(width)] = True
    item = PasteObject(np.zeros((height, width, 3), np.uint8), mask, 7, {"category": "cow"})
    part = part_of(item, generator)
    assert part.mask.any() and not (part.mask & ~mask).any()
    assert cv2.connectedComponents(part.mask.astype(np.uint8), connectivity=8)[0] == 2
    assert part.label == 7 and part.source == {"category": "cow", "part": True}


def test_parts_of_a_large_object_are_smaller_and_differ():
    item = PasteObject(np.zeros((90, 120, 3), np.uint8), np.ones((90, 120), bool))
    areas = [part_of(item, np.random.default_rng(seed)).mask.mean() for seed in range(20)]
    assert max(areas) < 0.7 and len(set(areas)) == 20
    with pytest.raises(ValueError, match="mask is empty"):
        part_of(PasteObject(item.image, np.zeros((90, 120), bool)), np.random.default_rng(0))
