"""docs/own_data.md, command by command, on a folder of a few small images."""

import json
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
# What makes a run of the page's commands, and its model, small enough for a test.
SHORT = [
    *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SOLVER.AMP.ENABLED", "False"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2"),
]
TINY = [
    *("MODEL.WEIGHTS", "", "MODEL.EOMT.SIZE", "S", "MODEL.EOMT.DEPTH", "2"),
    *("MODEL.EOMT.WIDTH", "32", "MODEL.EOMT.HEADS", "2", "MODEL.EOMT.NUM_QUERIES", "5"),
    *("MODEL.EOMT.NUM_BLOCKS", "1", "INPUT.CROP_SIZE", "(32,32)", *SHORT),
]


def commands():
    """The commands of the page, as lists of arguments, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def hints(said):
    """The commands that a command has printed as the next steps, as lists of arguments."""
    found = [re.search(r"(?:^|: |  )(anoseg [a-z-]+ .*)", line) for line in said.splitlines()]
    return [shlex.split(match[1]) for match in found if match]


def run(command, *more):
    """Run a command of the page or of a hint, with `more` arguments."""
    assert command[0] == "anoseg"
    assert cli.main([*command[1:], *more]) == 0, " ".join(command)


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
    for seed, (split, count) in enumerate((("train", 4), ("val", 9))):
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
    for name, dataset in list(DATASETS.items()):
        if str(dataset.origin).startswith((str(tmp_path), "street", "unknown", "pasted", "runs")):
            unregister_dataset(name)


@pytest.mark.slow
def test_the_page_leads_from_photographs_to_a_report(folder, capsys):
    for command in commands():
        if command[1] != "cut-paste":
            run(command, *TINY * (command[1] == "train"))
    content = yaml.safe_load((folder / "street/street.yaml").read_text())
    assert content["label_values"] == {1: "class_1", 2: "class_2", 3: "class_3"}
    assert content["void"] == [255] and content["anomaly"] == 254
    proposed = yaml.safe_load((folder / "runs/train/train.yaml").read_text())
    assert proposed["label_values"] == content["label_values"] and proposed["anomaly"] == 254
    assert sorted(path.name for path in (folder / "previews").iterdir()) == [
        *("street_train.jpg", "street_val.jpg", "unknown.jpg")
    ]
    run_folder = folder / "runs/street"
    figures = read_json(run_folder / "report/results.json")
    assert set(figures["datasets"]) == {"unknown"} and set(figures["closed_set"]) == {"street_val"}
    assert 'alt="Training"' in (run_folder / "report/index.html").read_text()
    assert (run_folder / "model_best.pth").is_file()
    scores = figures["datasets"]["unknown"]["scores"]
    assert {"rba", "anomaly"} <= set(scores) and scores["anomaly"]["auprc"] is not None
    pictures = sorted(path.name for path in (folder / "output/pictures/anomaly/heatmap").iterdir())
    assert pictures == ["a.png", "b.png"]
    assert re.search(r"\d+ of \d+ objects of unknown raise an alarm", capsys.readouterr().out)
    assert (folder / "output/alarms/rba/components.json").is_file()
    assert (run_folder / "model.onnx").is_file()


@pytest.mark.slow
def test_every_next_step_that_is_printed_runs(folder, capsys):
    """From a card to a training, pasted objects, and a stage and an evaluation with them."""
    for mask in (folder / "street/train/masks").iterdir():
        label = read_label(mask)
        write_image(mask, np.where(label == 254, 255, label).astype(np.uint8))
    cutout = np.full((12, 12, 4), 200, np.uint8)
    cutout[:2, :, 3] = 0
    (folder / "cutouts").mkdir()
    Image.fromarray(cutout).save(folder / "cutouts/thing.png")
    write_coco(folder)
    card, *_, from_cutouts, from_coco = commands()
    run(card)
    look, train = hints(capsys.readouterr().out)
    run(look)
    run(train, *TINY)
    # "continue with the same command and --resume", as a run that is stopped says
    run(train, *TINY, "--resume", "SOLVER.MAX_ITER", "3")
    small = ["--min-area", "20", "--min-side", "4"]
    for paste, output in ((from_cutouts, "street_pasted"), (from_coco, "street_coco")):
        capsys.readouterr()
        run(paste, *small)
        look, train = hints(capsys.readouterr().out)
        run(look)
        run([word.replace("RUN", "runs/street") for word in train], *SHORT)
        masks = list((folder / output).rglob("*labelTrainIds.png"))
        assert len(masks) == 4 and any((read_label(mask) == 254).any() for mask in masks)
    benchmark = ["--split", "val", "--as-benchmark", "--output", "street_benchmark"]
    capsys.readouterr()
    run(from_cutouts, *small, *benchmark)
    look, evaluate = hints(capsys.readouterr().out)
    run(look)
    run([word.replace("RUN", "runs/street") for word in evaluate])
    results = read_json("runs/street/report/results.json")
    assert set(results["datasets"]) == {"pasted_street_benchmark"}


def write_coco(folder):
    """Write the page's COCO files: photographs with a cat each."""
    images = [{"id": i, "file_name": f"{i}.png", "height": 24, "width": 24} for i in range(3)]
    square = [[6, 6, 16, 6, 16, 16, 6, 16]]
    annotations = [
        {"id": i, "image_id": i, "category_id": 17, "segmentation": square, "area": 100}
        for i in range(3)
    ]
    categories = [{"id": 1, "name": "person"}, {"id": 17, "name": "cat"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances_train2017.json").write_text(json.dumps(content))
    for image in images:
        write_image(folder / "train2017" / image["file_name"], np.full((24, 24, 3), 90, np.uint8))


def test_every_option_of_the_page_is_known():
    for command in commands():
        assert command[0] == "anoseg" and command[1] in cli.COMMANDS
