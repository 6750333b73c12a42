"""One line trains on a card, continues a run or evaluates it, and says the keys it stands for."""

import sys

import numpy as np
import pytest
import small_sets
import yaml
from PIL import Image
from runs import small_run

import anoseg_d2
from anoseg_d2 import cli
from anoseg_d2.commands import train
from anoseg_d2.config import load_config
from anoseg_d2.data.builtin import DATASETS, unregister_dataset
from anoseg_d2.engine.short_form import expand, split_places
from anoseg_d2.utils.files import read_json


@pytest.fixture
def cards(tmp_path, monkeypatch):
    """A card with two splits and unknown objects, and a card of an anomaly set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2)):
        for index in range(count):
            folder = tmp_path / "street" / split
            for name in ("photos", "masks"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"photos/{index}.png")
            mask = rng.choice(np.uint8([1, 2, 254]), (70, 90))
            Image.fromarray(mask).save(folder / f"masks/{index}.png")
    splits = {
        split: {"images": f"{split}/photos/{{id}}.png", "labels": f"{split}/masks/{{id}}.png"}
        for split in ("train", "val")
    }
    street = {"name": "street", "root": "./", "splits": splits, "classes": ["road", "car"]}
    street |= {"label_values": {1: "road", 2: "car"}, "void": [255], "anomaly": 254}
    (tmp_path / "street/street.yaml").write_text(yaml.safe_dump(street))
    odd = {"name": "odd", "kind": "anomaly", "root": "./", "images": "val/photos/{id}.png"}
    odd |= {"labels": "val/masks/{id}.png", "known": [1, 2], "anomaly": [254], "void": []}
    (tmp_path / "street/odd.yaml").write_text(yaml.safe_dump(odd))
    yield ["street/street.yaml", "street/odd.yaml"]
    for name in ("street_train", "street_val", "odd"):
        if name in DATASETS:
            unregister_dataset(name)


def parsed(*words):
    args = train.build_parser().parse_intermixed_args(list(words))
    places, args.opts = split_places(args.opts)
    return args, places


def test_places_end_where_keys_begin():
    assert split_places(["a.yaml", "runs/b", "SEED", "1"]) == (["a.yaml", "runs/b"], ["SEED", "1"])
    assert split_places(["MODEL.EOMT.SIZE", "B"]) == ([], ["MODEL.EOMT.SIZE", "B"])


def test_everything_is_inferred_from_cards_and_images(cards):
    args, places = parsed(*cards, "--epochs", "10", "SEED", "3", "--batch", "2", "OUTPUT_DIR", "x")
    found = {entry.key: entry.value for entry in expand(args, places)}
    assert found["DATASETS.TRAIN"] == ["street_train"]
    assert found["DATASETS.TEST"] == ["street_val", "odd"]
    assert (found["MODEL.EOMT.NUM_CLASSES"], found["MODEL.EOMT.ANOMALY_CLASS"]) == (2, True)
    assert found["SOLVER.MAX_ITER"] == 25 and found["INPUT.CROP_SIZE"] == (64, 64)
    assert found["MODEL.EOMT.SIZE"] == "S" and "OUTPUT_DIR" not in found
    cfg = load_config(args.config_file, args.opts)
    assert (cfg.SEED, cfg.OUTPUT_DIR, cfg.SOLVER.IMS_PER_BATCH) == (3, "x", 2)


def test_weights_say_size_and_crop_themselves_and_a_stage_names_config_and_folder(cards):
    args, places = parsed(cards[0], "--stage", "arcface", "--weights", "runs/street")
    found = {entry.key: entry.value for entry in expand(args, places)}
    assert args.config_file == "arcface" and found["OUTPUT_DIR"] == "runs/street_arcface"
    assert found["MODEL.WEIGHTS"] == "runs/street"
    assert not {"MODEL.EOMT.SIZE", "INPUT.CROP_SIZE"} & set(found)


def test_a_run_is_continued_and_evaluated_by_its_folder(tmp_path, cards, capsys):
    cfg = small_run(tmp_path, "run", "SOLVER.MAX_ITER", 2, tested=True)
    (tmp_path / "tiny.yaml").write_text(cfg.dump())
    assert cli.main(["train", "--config-file", "tiny.yaml"]) == 0
    assert cli.main(["resume", cfg.OUTPUT_DIR, "SOLVER.MAX_ITER", "3"]) == 0
    small_sets.anomaly_set(tmp_path, "short_form_anomaly", 2)
    assert cli.main(["eval", cfg.OUTPUT_DIR, "DATASETS.TEST", "short_form_anomaly"]) == 0
    results = read_json(f"{cfg.OUTPUT_DIR}/report/results.json")
    assert set(results["datasets"]) == {"short_form_anomaly"}
    assert results["model"]["weights"].endswith("model_final.pth")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--epochs", "3"], "go with a card"),
        (["train", "gone.yaml"], "gone.yaml"),
        (["train", "street/odd.yaml"], "no card has classes"),
        (["eval", "street/street.yaml"], "not the folder of a run"),
        (["resume"], "name the folder of a run"),
        (["resume", "street"], "no config.yaml"),
        (["train", "street/street.yaml", "--batch", "0"], "--batch is 0"),
    ],
    ids=" ".join,
)
def test_mistakes_are_named(cards, words, message, capsys):
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err


def test_the_call_in_python_is_the_command(cards, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "main", lambda words: seen.extend(words) or 0)
    anoseg_d2.train("street.yaml", size="S", epochs=20, opts=["SEED", 1])
    assert seen == ["street.yaml", "--size", "S", "--epochs", "20", "SEED", "1"]
    monkeypatch.setattr(train, "main", lambda words: 2)
    with pytest.raises(RuntimeError, match="status 2"):
        anoseg_d2.train("street.yaml")
