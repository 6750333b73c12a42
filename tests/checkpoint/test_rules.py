"""Rules that change single tensors."""

import torch
from torch.nn import functional as F

from anoseg_d2.checkpoint.rules import resample_position_embedding, transfer_class_rows


def test_equal_grids_keep_positions_bit_by_bit():
    embed = torch.randn(1, 24, 8)
    assert torch.equal(resample_position_embedding(embed, (4, 6), (4, 6)), embed)


def test_positions_resample_by_the_stated_grid_not_by_a_square():
    rows = torch.arange(2.0)[:, None].expand(2, 8).reshape(1, 16, 1)
    resampled = resample_position_embedding(rows, (2, 8), (2, 16))
    assert torch.allclose(resampled.reshape(2, 16), torch.tensor([[0.0], [1.0]]).expand(2, 16))


def test_smaller_grids_are_sampled_without_antialiasing():
    embed = torch.randn(1, 64, 3)
    image = embed.reshape(1, 8, 8, 3).permute(0, 3, 1, 2)
    expected = F.interpolate(image, size=(4, 4), mode="bicubic", antialias=False)
    resampled = resample_position_embedding(embed, (8, 8), (4, 4))
    torch.testing.assert_close(resampled, expected.flatten(2).transpose(1, 2))


def test_the_anomaly_row_comes_before_no_object_with_the_mean_norm():
    rows = torch.randn(6, 24)
    inserted, _ = transfer_class_rows(rows, False, True, seed=3)
    assert torch.equal(inserted[:5], rows[:5]) and torch.equal(inserted[6], rows[5])
    torch.testing.assert_close(inserted[5].norm(), rows[:5].norm(dim=1).mean())
    again, other = (transfer_class_rows(rows, False, True, seed=s)[0] for s in (3, 4))
    assert torch.equal(inserted, again) and not torch.equal(inserted, other)
    assert torch.equal(transfer_class_rows(inserted, True, False)[0], rows)
    bias = torch.randn(6)
    assert transfer_class_rows(bias, False, True)[0][5] == bias[:5].mean()
