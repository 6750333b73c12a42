"""One line trains on a card, continues a run or evaluates it, and says the keys it stands for."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import small_sets
import torch
import yaml
from checkpoint_models import saved, tiny
from PIL import Image
from runs import small_run

import anoseg_d2
from anoseg_d2 import cli
from anoseg_d2.commands import train
from anoseg_d2.config import load_config
from anoseg_d2.data.builtin import DATASETS, unregister_dataset
from anoseg_d2.engine.short_form import expand, split_places
from anoseg_d2.modeling.vit import build_vit
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


def test_steps_take_the_place_of_epochs(cards):
    args, places = parsed(cards[0], "--steps", "9")
    assert ("SOLVER.MAX_ITER", 9, "--steps") in expand(args, places)


def test_weights_say_size_and_crop_themselves_and_a_stage_names_config_and_folder(cards):
    saved(tiny(), Path("runs/street"))
    args, places = parsed(cards[0], "--stage", "arcface", "--weights", "runs/street")
    found = {entry.key: entry.value for entry in expand(args, places)}
    assert args.config_file == "arcface" and found["OUTPUT_DIR"] == "runs/street_arcface"
    assert found["MODEL.WEIGHTS"] == "runs/street"
    assert not {"MODEL.EOMT.SIZE", "INPUT.CROP_SIZE"} & set(found)


@pytest.mark.slow
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


def test_a_bare_vit_says_its_size_and_nothing_of_the_rest(cards):
    vit = build_vit("S", image_size=(32, 32), patch_size=16, num_registers=0, depth=1)
    torch.save({f"backbone.{name}": t for name, t in vit.state_dict().items()}, "vit.pth")
    found = {entry.key: entry.value for entry in expand(*parsed(cards[0], "--weights", "vit.pth"))}
    assert found["INPUT.CROP_SIZE"] == (64, 64) and "MODEL.EOMT.PATCH_SIZE" not in found
    assert (found["MODEL.EOMT.WIDTH"], found["MODEL.EOMT.DEPTH"]) == (384, 1)
    entries = expand(*parsed(cards[0], "--weights", "dinov3", "--size", "B"))
    assert ("MODEL.EOMT.SIZE", "B", "--size") in entries
    assert ("MODEL.EOMT.BACKBONE", "dinov3", "--weights") in entries


def test_two_folders_get_a_card_which_may_be_corrected(cards):
    for split in ("train", "val"):
        for kind, name in (("photos", "pictures"), ("masks", "labels")):
            shutil.copytree(f"street/{split}/{kind}", f"own/{name}/{split}")
    words = ["own/pictures", "--masks", "own/labels", "--patience", "3", "--stage", "arcface"]
    found = {entry.key: entry.value for entry in expand(*parsed(*words))}
    card = Path("runs/own_arcface/own.yaml")
    assert found["DATASETS.CARDS"] == [str(card)]
    assert found["OUTPUT_DIR"] == str(card.parent)
    assert (found["DATASETS.TRAIN"], found["DATASETS.TEST"]) == (["own_train"], ["own_val"])
    assert (found["MODEL.EOMT.NUM_CLASSES"], found["MODEL.EOMT.ANOMALY_CLASS"]) == (2, True)
    # 5 images, 4 a step.
    assert (found["SOLVER.PATIENCE"], found["TEST.EVAL_PERIOD"]) == (3, 2)
    assert found["SOLVER.BEST_FIGURE"] == "own_val/closed_set/mIoU"
    content = yaml.safe_load(card.read_text())
    assert content["kind"] == "closed_set" and content["classes"] == ["class_1", "class_2"]
    card.write_text(card.read_text().replace("class_1", "road"))
    (again, *_) = expand(*parsed(*words))
    assert "before" in again.reason and "road" in card.read_text()


def test_one_folder_may_hold_the_other_and_have_the_name_of_a_known_set(cards):
    shutil.copytree("street/train/photos", "camvid")
    shutil.copytree("street/train/masks", "camvid/masks")
    found = {entry.key: entry.value for entry in expand(*parsed("camvid", "--masks=camvid/masks"))}
    assert found["DATASETS.CARDS"] == ["runs/my_camvid/my_camvid.yaml"]
    assert found["DATASETS.TRAIN"] == ["my_camvid"] and found["DATASETS.TEST"] == []
    assert "SOLVER.BEST_FIGURE" not in found


def test_a_batch_is_divided_by_what_its_parts_need(cards):
    words = [cards[0], "--batch", "auto", "--device", "cpu"]
    args, places = parsed(*words)
    found = {entry.key: entry.value for entry in expand(args, places)}
    assert (found["SOLVER.IMS_PER_BATCH"], found["SOLVER.ACCUMULATION"]) == (16, 1)
    assert load_config(args.config_file, args.opts).MODEL.DEVICE == "cpu"
    # One image of these alone needs half a terabyte.
    huge = ("MODEL.EOMT.SIZE", "G", "INPUT.CROP_SIZE", "(4096,4096)")
    found = {entry.key: entry.value for entry in expand(*parsed(*words, *huge))}
    assert found["SOLVER.ACCUMULATION"] == 16


@pytest.mark.parametrize(
    ("command", "has", "lacks"),
    [
        ("train", ["--masks", "--patience", "--resume"], ["anoseg eval", "anoseg resume"]),
        ("eval", ["anoseg eval runs", "--device"], ["--epochs", "--overwrite", "anoseg train"]),
        ("resume", ["anoseg resume runs"], ["--epochs", "--overwrite", "anoseg eval"]),
    ],
)
def test_each_command_has_a_help_of_its_own(cards, command, has, lacks, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    said = capsys.readouterr().out
    assert all(word in said for word in has) and not any(word in said for word in lacks)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--epochs", "3"], "go with a card"),
        (["train", "street/street.yaml", "--epochs", "3", "--steps", "9"], "leave one out"),
        (["resume", "street", "--size", "S"], "--size must go with a card"),
        (["train", "street/train/photos", "--masks", "gone"], "gone is not a folder"),
        (
            ["train", "street/train/photos", "--masks", "street/train/masks", "--patience", "2"],
            "--patience needs a validation set",
        ),
        (["train", "street/street.yaml", "--patience", "0"], "--patience is 0"),
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
