"""docs/own_data.md, command by command, on a folder of a few small images."""

import logging
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import yaml
from PIL import Image

from anoseg_d2 import cli
from anoseg_d2.data.builtin import DATASETS, unregister_dataset
from anoseg_d2.data.image_io import read_label, write_image
from anoseg_d2.utils.files import read_json

PAGE = Path(__file__).parents[1] / "docs" / "own_data.md"
# What makes a model of the page's commands small enough for a test.
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.EOMT.SIZE", "S", "MODEL.EOMT.DEPTH", "2"),
    *("MODEL.EOMT.WIDTH", "32", "MODEL.EOMT.HEADS", "2", "MODEL.EOMT.NUM_QUERIES", "5"),
    *("MODEL.EOMT.NUM_BLOCKS", "1", "INPUT.CROP_SIZE", "(32,32)", "DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.AMP.ENABLED", "False"),
]


def commands():
    """The commands of the page, as lists of arguments, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def write_pair(photo, mask, sample, values):
    """Write a photograph, and its mask with `values` for train ids 0, 1, 2 and 255 as it is."""
    write_image(photo, sample["image"].permute(1, 2, 0).numpy())
    ids = sample["sem_seg"].numpy()
    label = np.select([ids == i for i in range(3)], values, 255).astype(np.uint8)
    write_image(mask, label)


@pytest.fixture(autouse=True)
def loggers_as_before():
    """A training sets the loggers of the process."""
    names = ("anoseg_d2", "detectron2", "fvcore")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagate, handlers


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The page's two folders, in the current folder."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for seed, (split, count) in enumerate((("train", 4), ("val", 2))):
        for index, sample in enumerate(tiny_models.tiny_batch(count, seed=seed)):
            sample["sem_seg"][:4, :4] = {0: 0, 1: 1}.get(index, 2)  # every class occurs
            place = tmp_path / "street" / split
            photo, mask = place / f"photos/{index}.jpg", place / f"masks/{index}.png"
            write_pair(photo, mask, sample, (1, 2, 3))
            if split == "train":  # an object of no class
                stored = np.select(
                    [sample["sem_seg"].numpy() == i for i in range(3)], (1, 2, 3), 255
                )
                stored[10:20, 10:20] = 254
                write_image(mask, stored.astype(np.uint8))
    for index, sample in enumerate(tiny_models.tiny_batch(2, seed=7)):
        sample["sem_seg"][:8, :8] = 1
        name = "ab"[index]
        place = tmp_path / "unknown"
        write_pair(place / f"images/{name}.jpg", place / f"masks/{name}.png", sample, (0, 1, 0))
    yield tmp_path
    for name in ("street_train", "street_val", "unknown"):
        if name in DATASETS:
            unregister_dataset(name)


@pytest.mark.slow
def test_the_page_leads_from_photographs_to_a_report(folder, capsys):
    card_street, card_unknown, check, train, evaluate, predict, *paste = commands()
    assert len(paste) == 2
    assert cli.main(card_street[1:]) == 0 and cli.main(card_unknown[1:]) == 0
    content = yaml.safe_load((folder / "street/street.yaml").read_text())
    assert content["label_values"] == {1: "class_1", 2: "class_2", 3: "class_3"}
    assert content["void"] == [255] and content["anomaly"] == 254
    assert cli.main(check[1:]) == 0
    assert sorted(path.name for path in (folder / "previews").iterdir()) == [
        *("street_train.jpg", "street_val.jpg", "unknown.jpg")
    ]
    assert cli.main([*train[1:], *TINY]) == 0
    figures = read_json("runs/street/report/results.json")
    assert set(figures["datasets"]) == {"unknown"} and set(figures["closed_set"]) == {"street_val"}
    assert (folder / "runs/street/report/index.html").is_file()
    assert cli.main(evaluate[1:]) == 0
    scores = read_json("runs/street/report/results.json")["datasets"]["unknown"]["scores"]
    assert {"rba", "anomaly"} <= set(scores) and scores["anomaly"]["auprc"] is not None
    assert cli.main([*predict[1:], "--opts", "MODEL.DEVICE", "cpu"]) == 0
    pictures = sorted(path.name for path in (folder / "output/pictures/anomaly/heatmap").iterdir())
    assert pictures == ["a.png", "b.png"]


@pytest.mark.slow
def test_cut_outs_stand_in_for_annotated_unknown_objects(folder, capsys):
    for mask in (folder / "street/train/masks").iterdir():
        label = read_label(mask)
        write_image(mask, np.where(label == 254, 255, label).astype(np.uint8))
    cutout = np.full((12, 12, 4), 200, np.uint8)
    cutout[:2, :, 3] = 0
    (folder / "cutouts").mkdir()
    Image.fromarray(cutout).save(folder / "cutouts/thing.png")
    card, *_, paste, _ = commands()
    assert cli.main(card[1:]) == 0
    assert cli.main([*paste[1:], "--min-area", "20", "--min-side", "4"]) == 0
    said = capsys.readouterr().out
    assert "anoseg train" in said and "MODEL.EOMT.ANOMALY_CLASS True" in said
    masks = list((folder / "street_pasted").rglob("*labelTrainIds.png"))
    assert len(masks) == 4 and any((read_label(mask) == 254).any() for mask in masks)


def test_every_option_of_the_page_is_known():
    for command in commands():
        assert command[0] == "anoseg" and command[1] in cli.COMMANDS
