"""Fishyscapes Static from overlays: the sum, clipped, and nothing silently left out."""

import numpy as np
import prepare_fishyscapes_static
import pytest
from PIL import Image

from anoseg_d2.data.builtin import DATASETS
from anoseg_d2.data.image_io import read_image, read_label

main = prepare_fishyscapes_static.main
FRAMES = ("frankfurt_000000_000294", "munster_000001_000019")
SHAPE = (12, 20)


@pytest.fixture
def inputs(tmp_path):
    """Two frames of different splits, their labels and overlays; (overlays, cityscapes)."""
    overlays, cityscapes = tmp_path / "in/fs_val_v3", tmp_path / "cityscapes"
    overlays.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number, (frame, split) in enumerate(zip(FRAMES, ("val", "train"), strict=True)):
        photo = cityscapes / f"leftImg8bit/{split}/{frame.split('_')[0]}/{frame}_leftImg8bit.png"
        photo.parent.mkdir(parents=True)
        Image.fromarray(generator.integers(0, 256, (*SHAPE, 3), dtype=np.uint8)).save(photo)
        label = np.zeros(SHAPE, np.uint8)
        label[:2], label[4:8, 4:9] = 255, 1
        Image.fromarray(label).save(overlays / f"{number:04d}_{frame}_labels.png")
        difference = generator.integers(-255, 256, (*SHAPE, 3)).astype(np.int16)
        difference[label == 0] = 0
        np.savez_compressed(overlays / f"{number:04d}_{frame}_rgb.npz", rgb=difference)
    return overlays, cityscapes


def run(inputs, output, *more):
    arguments = ["--overlays", inputs[0], "--cityscapes", inputs[1], "--output", output, *more]
    return main(list(map(str, arguments)))


def test_images_are_photograph_plus_difference_and_the_benchmark_finds_them(inputs, tmp_path):
    assert run(inputs, tmp_path / "out") == 0
    found = DATASETS["fishyscapes_static"].find(tmp_path / "out")
    assert len(found.pairs) == 2 and found.layout == "Fishyscapes release v3"
    for frame, (_, image_path, label_path) in zip(FRAMES, found.pairs, strict=True):
        photo = read_image(next(inputs[1].rglob(f"{frame}_*.png"))).astype(int)
        difference = np.load(next(inputs[0].glob(f"*{frame}_rgb.npz")))["rgb"]
        image, label = read_image(image_path), read_label(label_path)
        assert (image == np.clip(photo + difference, 0, 255)).all()
        assert (image[label == 0] == photo[label == 0]).all()


def test_labels_that_are_already_in_place_are_left(inputs, tmp_path):
    assert run(inputs, inputs[0].parent) == 0
    assert len(DATASETS["fishyscapes_static"].find(inputs[0].parent).pairs) == 2


@pytest.mark.parametrize("damage", ["text", "shape", "pickle", "missing", "no photograph"])
def test_a_frame_that_cannot_be_built_is_named_and_the_rest_is_built(
    inputs, tmp_path, capsys, damage
):
    overlay = inputs[0] / f"0000_{FRAMES[0]}_rgb.npz"
    if damage == "text":
        overlay.write_text("no overlay")
    elif damage == "shape":
        np.savez(overlay, rgb=np.zeros((5, 5, 3), np.int16))
    elif damage == "pickle":
        np.savez(overlay, rgb=np.array([{"a": 1}], dtype=object))
    elif damage == "missing":
        overlay.unlink()
    else:
        next(inputs[1].rglob(f"{FRAMES[0]}*")).unlink()
    assert run(inputs, tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert f"skipped 0000_{FRAMES[0]}_labels.png" in printed.err
    assert "1 of 2 images built" in printed.out
    assert len(list((tmp_path / "out").rglob("*_rgb.png"))) == 1


def test_wrong_folders_end_with_2(inputs, tmp_path, capsys):
    assert run((tmp_path / "nowhere", inputs[1]), tmp_path, "--version", "2") == 2
    assert "is not a folder" in capsys.readouterr().err
    assert run((inputs[1], inputs[1]), tmp_path) == 2
    assert "give the version with --version" in capsys.readouterr().err
    assert run((inputs[0], tmp_path), tmp_path / "out") == 2
    assert "has no leftImg8bit" in capsys.readouterr().err
