"""Contact sheets stay of a bounded size, whatever shape the images have."""

import numpy as np
import pytest

from anoseg_d2.data.contact_sheet import GAP, contact_sheet


@pytest.mark.parametrize(
    "shape,tile", [((60, 90), (320, 480)), ((300, 1), (960, 480)), ((1, 300), (2, 480))]
)
def test_a_tile_has_one_width_and_at_most_four_times_it_in_height(shape, tile):
    image, label = np.full((*shape, 3), 9, np.uint8), np.zeros(shape, np.uint8)
    sheet = contact_sheet([(image, label)], {1: (255, 0, 0)}, width=480)
    height = 2 * tile[0] + 2 * GAP
    assert sheet.shape[1] == tile[1] + 2 * GAP
    assert abs(sheet.shape[0] - height) <= 2
