"""Folders of cut-outs and textures: every file is used, or named."""

import numpy as np
import pytest
from PIL import Image

from anoseg_d2.data.cut_paste.sources import CutOutFolder, TextureFolder


def test_cut_outs_take_their_alpha(tmp_path):
    (tmp_path / "duck").mkdir()
    pixels = np.zeros((50, 60, 4), np.uint8)
    pixels[10:40, 5:50] = (250, 220, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "duck" / "a.png")
    pixels[..., 3] = 0
    Image.fromarray(pixels).save(tmp_path / "b.png")
    Image.new("RGB", (50, 60)).save(tmp_path / "c.jpg")
    source = CutOutFolder(tmp_path)
    assert source.names == ["b.png", "c.jpg", "duck/a.png"]
    item = source.load(2)
    assert item.mask.sum() == 30 * 45 and item.source["category"] == "duck"
    for index, message in ((0, "all transparent"), (1, "all opaque")):
        with pytest.raises(ValueError, match=message):
            source.load(index)


def test_textures_are_blobs_filled_from_the_photograph(tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (100, 140, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "t.png")
    source = TextureFolder(tmp_path)
    items = [source.load(0, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    x0, y0, x1, y1 = items[0].source["source_box"]
    assert (items[0].image == photo[y0:y1, x0:x1]).all()
    assert (items[0].mask == items[1].mask).all()
    assert items[0].mask.shape != items[2].mask.shape or (items[0].mask != items[2].mask).any()
    for item in items:
        assert 0.1 < item.mask.mean() < 0.95 and 25 <= len(item.mask) <= 75
        assert item.mask[len(item.mask) // 2, len(item.mask) // 2]


@pytest.mark.parametrize("kind", [CutOutFolder, TextureFolder])
def test_empty_and_missing_folders_are_refused(tmp_path, kind):
    with pytest.raises(ValueError, match="it is empty"):
        kind(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder of objects"):
        kind(tmp_path / "nowhere")
