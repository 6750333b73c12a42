"""Parts of the exported graph."""

import pytest
import torch

from anoseg_d2.export.graph import WindowMerger
from anoseg_d2.modeling.windows import plan_windows


def merged(maps, plan):
    merger = WindowMerger(plan)
    for index, window_maps in enumerate(maps):
        merger.add(window_maps, index)
    return merger.mean()


@pytest.mark.parametrize("image", [(1024 // 8, 2048 // 8), (135, 240), (240, 135), (50, 333)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_a_constant_merges_to_that_constant(image, overlap):
    plan = plan_windows(image, (128, 128), overlap)
    maps = torch.full((len(plan.origins), 2, 128, 128), 0.7)
    found = merged(maps, plan)
    assert found.shape == (2, *plan.resized)
    torch.testing.assert_close(found, torch.full_like(found, 0.7), rtol=0, atol=1e-6)


def test_overlaps_take_the_mean():
    plan = plan_windows((4, 6), (4, 4))
    assert plan.origins == [(0, 0), (0, 2)]
    found = merged(torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)]), plan)
    assert found[0, 0].tolist() == [0, 0, 0.5, 0.5, 1, 1]
