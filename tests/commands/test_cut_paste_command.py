"""Whole cut-paste sets: the same bytes by every road, nothing mixed, nothing silent."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anoseg_d2.commands.cut_paste import main
from anoseg_d2.data.builtin import unregister_dataset
from anoseg_d2.data.cut_paste.frames import SceneLabelReader
from anoseg_d2.data.cut_paste.job import read_manifest
from anoseg_d2.data.dataset_card import read_card
from anoseg_d2.data.image_io import read_image, read_label
from anoseg_d2.data.label_rules import LABEL_RULES, load_label
from anoseg_d2.utils.files import temporary_path

SCRIPT = Path(__file__).parents[2] / "datasets" / "prepare_cut_paste.py"
SHAPE = (96, 192)


def write_scenes(folder, number, shape=SHAPE, split="train"):
    generator = np.random.default_rng(0)
    for index in range(number):
        city = ("aachen", "bonn")[index % 2]
        stem = f"{city}_{index:06d}_000019"
        image = folder / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
        label = folder / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png"
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(image)
        ids = np.full(shape, 11, np.uint8)
        ids[shape[0] // 2 :], ids[:5] = 7, 4
        Image.fromarray(ids).save(label)
    return folder


def write_objects(folder):
    """Three photographs with one cat, one dog and one person each."""
    generator = np.random.default_rng(1)
    categories = [{"id": i, "name": n} for i, n in ((1, "person"), (17, "cat"), (18, "dog"))]
    images, annotations = [], []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(3):
        pixels = generator.integers(0, 256, (120, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 120, "width": 200})
        for place, category in enumerate(categories):
            x = 10 + 62 * place
            polygon = [x, 20, x + 50, 25, x + 45, 20 + 20 * (number + 2), x + 5, 90]
            annotations.append(
                {
                    "id": 10 * number + place,
                    "image_id": number,
                    "category_id": category["id"],
                    "segmentation": [polygon],
                    "area": 2500,
                }
            )
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut_paste")
    return write_scenes(folder / "scenes", 8), write_objects(folder / "coco")


def arguments(inputs, output, *more):
    scenes, objects = inputs
    return [
        *("--cityscapes", scenes, "--coco-json", objects / "instances.json"),
        *("--coco-images", objects, "--output", output, *more),
    ]


def make(inputs, output, *more):
    return main([str(item) for item in arguments(inputs, output, *more)])


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        # The name of the card follows the folder's; a killed run leaves half-written files.
        if path.is_file() and path.name != "card.yaml" and not path.name.startswith(".anoseg-")
    }


@pytest.fixture(scope="session")
def reference(inputs, tmp_path_factory):
    output = tmp_path_factory.mktemp("reference") / "set"
    assert make(inputs, output, "--ratio", "0.6") == 0
    return output


def test_parts_of_objects_are_pasted_when_asked_and_recorded(inputs, tmp_path):
    assert (
        make(inputs, tmp_path / "set", "--ratio", "1", "--parts", "1", "--controls", "1", "1") == 0
    )
    records = read_manifest(tmp_path / "set").values()
    objects = [item for record in records for item in record["objects"]]
    assert {item["label"] == 254: item.get("part", False) for item in objects} == {
        True: True,
        False: False,
    }


def test_output_is_a_cityscapes_folder_with_a_manifest(inputs, reference):
    names = content(reference)
    assert sum(name.endswith("_leftImg8bit.png") for name in names) == 8
    assert sum(name.endswith("_gtFine_labelIds.png") for name in names) == 8
    assert {"manifest.jsonl", "cut_paste.json", "summary.json"} <= names.keys()
    pasted = 0
    for record in read_manifest(reference).values():
        city, stem = record["name"].split("/")
        label = reference / "gtFine" / "train" / city / f"{stem}_gtFine_labelIds.png"
        image = reference / "leftImg8bit" / "train" / city / f"{stem}_leftImg8bit.png"
        source = inputs[0] / "leftImg8bit" / "train" / city / image.name
        train_ids = load_label(label, LABEL_RULES["cityscapes_outlier"])
        visible = sum(item["visible_pixels"] for item in record["objects"])
        assert (train_ids == 19).sum() == visible
        changed = (read_image(image) != read_image(source)).any(-1)
        assert changed.any() == bool(record["objects"])
        assert record["objects"] or image.read_bytes() == source.read_bytes()
        for item in record["objects"]:
            assert item["category"] in ("cat", "dog") and item["source_image"].endswith(".png")
        pasted += bool(record["objects"])
    assert 1 <= pasted <= 7


@pytest.mark.slow
def test_workers_shards_and_repetition_give_the_same_bytes(inputs, reference, tmp_path):
    expected = content(reference)
    assert make(inputs, tmp_path / "workers", "--ratio", "0.6", "--workers", "2") == 0
    assert content(tmp_path / "workers") == expected
    for shard in ("2/3", "0/3", "1/3"):
        assert "manifest.jsonl" not in content(tmp_path / "shards")
        assert make(inputs, tmp_path / "shards", "--ratio", "0.6", "--shard", shard) == 0
    assert content(tmp_path / "shards") == expected
    assert make(inputs, tmp_path / "shards", "--ratio", "0.6") == 0
    assert content(tmp_path / "shards") == expected


def test_a_shard_starts_while_another_writes_its_first_file(inputs, tmp_path):
    (tmp_path / "set").mkdir()
    temporary_path(tmp_path / "set").write_bytes(b"half of the options")
    assert make(inputs, tmp_path / "set", "--shard", "0/2") == 0
    assert make(inputs, tmp_path / "set", "--shard", "1/2") == 0


def test_another_seed_gives_other_pastes(inputs, reference, tmp_path):
    assert make(inputs, tmp_path / "out", "--ratio", "0.6", "--seed", "1") == 0
    images = {name for name in content(reference) if name.endswith("leftImg8bit.png")}
    other = content(tmp_path / "out")
    assert any(other[name] != content(reference)[name] for name in images)


@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_same_bytes(tmp_path):
    inputs = write_scenes(tmp_path / "scenes", 30, (200, 400)), write_objects(tmp_path / "coco")
    output, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, SCRIPT, *arguments(inputs, output, "--workers", "2")]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    process = subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.DEVNULL)
    while len(list((output / "progress").glob("[0-9]*.json"))) < 4:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1.2)  # its workers end by themselves
    finished = {
        path: path.stat().st_mtime_ns
        for record in (output / "progress").glob("[0-9]*.json")
        for path in output.rglob(f"{json.loads(record.read_text())['name'].split('/')[1]}*.png")
    }
    assert 8 <= len(finished) < 60 and not (output / "manifest.jsonl").exists()
    assert make(inputs, output) == 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in finished.items())
    assert make(inputs, whole) == 0
    assert content(output) == content(whole)


def test_a_lost_file_is_made_again(inputs, reference, tmp_path):
    shutil.copytree(reference, tmp_path / "out")
    for pattern in ("*labelIds.png", "*leftImg8bit.png"):
        next((tmp_path / "out").rglob(pattern)).unlink()
    assert make(inputs, tmp_path / "out", "--ratio", "0.6") == 0
    assert content(tmp_path / "out") == content(reference)


@pytest.mark.parametrize(
    ("more", "difference"),
    [
        (["--seed", "5"], "seed: 0 there, 5 now"),
        (["--ratio", "0.7"], "ratio: 0.6 there, 0.7 now"),
        (["--count", "1", "2"], "count: [1, 3] there, [1, 2] now"),
        (["--min-area", "500"], "'min_area': 1000.0"),
    ],
)
def test_changed_options_are_refused_by_name(inputs, reference, capsys, more, difference):
    before = content(reference)
    assert make(inputs, reference, "--ratio", "0.6", *more) == 2
    assert difference in capsys.readouterr().err
    assert content(reference) == before


def test_changed_inputs_are_refused_by_name(inputs, reference, tmp_path, capsys):
    scenes = shutil.copytree(inputs[0], tmp_path / "scenes")
    objects = shutil.copytree(inputs[1], tmp_path / "coco")
    assert make((scenes, objects), reference, "--ratio", "0.6") == 0  # paths may move
    Image.new("RGB", (200, 120)).save(objects / "1.png")
    next(scenes.rglob("bonn_000003*labelIds.png")).unlink()
    assert make((scenes, objects), reference, "--ratio", "0.6") == 2
    assert "other options or inputs: inputs:" in capsys.readouterr().err


def test_a_foreign_output_folder_is_left_alone(inputs, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert make(inputs, tmp_path) == 2
    assert "holds other things (notes.txt)" in capsys.readouterr().err
    assert make(inputs, inputs[0]) == 2
    assert list(content(tmp_path)) == ["notes.txt"]


@pytest.mark.slow
def test_broken_scenes_are_named_and_the_rest_is_made(inputs, tmp_path, capsys):
    scenes = shutil.copytree(inputs[0], tmp_path / "scenes")
    paths = sorted(scenes.rglob("*_leftImg8bit.png"))
    paths[0].write_bytes(paths[0].read_bytes()[:500])
    labels = sorted(scenes.rglob("*labelIds.png"))
    labels[1].unlink()
    Image.new("L", (10, 10), 7).save(labels[2])
    Image.new("L", SHAPE[::-1], 254).save(labels[3])
    output = tmp_path / "out"
    for _ in range(2):  # again: what failed is tried again, and fails again
        assert make((scenes, inputs[1]), output, "--workers", "2") == 1
        text = capsys.readouterr().out
        for path in (paths[0], paths[1], labels[2], labels[3]):
            assert str(path) in text
        assert "image without label" in text and "are not covered" in text and "10x10" in text
    summary = json.loads((output / "summary.json").read_text())
    assert summary["images"]["made"] == 4 and summary["images"]["failed"] == 4
    assert len(summary["problems"]["images not made"]) == 4
    assert len(list(output.rglob("*_leftImg8bit.png"))) == 4


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace", "write_bytes"])
def test_a_write_that_fails_at_any_call_is_named_and_resumed_to_the_same_bytes(
    inputs, tmp_path, capsys, monkeypatch, call, code
):
    """Fail at call 1, then at call 2 of the resumed run, and so on, until a run passes."""
    scenes = tmp_path / "scenes"
    for path in sorted(inputs[0].rglob("*aachen_00000[02]*.png")):
        target = scenes / path.relative_to(inputs[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    whole, output = tmp_path / "whole", tmp_path / "out"
    assert make((scenes, inputs[1]), whole, "--ratio", "1") == 0
    owner = Path if call == "write_bytes" else os
    real = getattr(owner, call)
    for number in range(1, 40):
        calls = iter(range(1, 10_000))

        def fail(*args, real=real, calls=calls, number=number):
            if next(calls) == number:
                raise OSError(code, os.strerror(code))
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(owner, call, fail)
            status = make((scenes, inputs[1]), output, "--ratio", "1")
        error = capsys.readouterr().err
        if status == 0:
            break
        assert status == 2 and os.strerror(code) in error and "Traceback" not in error
        assert not list(output.rglob(".*.tmp"))
    assert status == 0 and number > 3
    assert content(output) == content(whole)


def test_a_damaged_manifest_or_config_ends_in_one_line(inputs, reference, tmp_path, capsys):
    shutil.copytree(reference, tmp_path / "out")
    for name in ("manifest.jsonl", "cut_paste.json"):
        path = tmp_path / "out" / name
        path.write_bytes(path.read_bytes()[:50])
        assert make(inputs, tmp_path / "out", "--ratio", "0.6") == 2
        error = capsys.readouterr().err
        assert name in error and error.count("\n") == 1
    (tmp_path / "out" / "cut_paste.json").write_text((reference / "cut_paste.json").read_text())
    (tmp_path / "out" / "manifest.jsonl").unlink()
    assert make(inputs, tmp_path / "out", "--ratio", "0.6") == 0
    assert content(tmp_path / "out") == content(reference)


@pytest.mark.slow
def test_segments_of_the_set_itself_are_pasted_under_their_own_label(inputs, tmp_path, monkeypatch):
    scenes = shutil.copytree(inputs[0], tmp_path / "scenes")
    for path in scenes.rglob("*labelIds.png"):
        ids = read_label(path)
        ids[30:60, 40:90] = 26
        Image.fromarray(ids).save(path)
    results = []
    for name, workers in (("a", "1"), ("b", "2")):
        more = ["--ratio", "1", "--closed-set", "1", "2", "--rarest-first", "--workers", workers]
        assert make((scenes, inputs[1]), tmp_path / name, *more) == 0
        results.append(content(tmp_path / name))
    assert results[0] == results[1]
    for index, record in read_manifest(tmp_path / "a").items():
        own = [item for item in record["objects"] if item["source"] == "closed_set"]
        assert own and all(item["label"] == 26 for item in own)
        names = {item["source_image"] for item in own}
        assert f"{record['name'].split('/')[1]}_leftImg8bit.png" not in names, index


def test_unreadable_objects_are_named(inputs, tmp_path, capsys):
    objects = shutil.copytree(inputs[1], tmp_path / "coco")
    (objects / "0.png").write_bytes(b"no image")
    (objects / "1.png").unlink()
    assert make((inputs[0], objects), tmp_path / "out", "--ratio", "1") == 1
    problems = json.loads((tmp_path / "out" / "summary.json").read_text())["problems"]
    assert problems["photographs missing"] == ["1.png"]
    assert any("0.png" in text for text in problems["objects unreadable"])
    sources = {
        item["source_image"]
        for record in read_manifest(tmp_path / "out").values()
        for item in record["objects"]
    }
    assert sources == {"2.png"}


def test_benchmark_labels_are_known_anomaly_void(inputs, tmp_path):
    output = tmp_path / "bench"
    assert make(inputs, output, "--as-benchmark", "--controls", "1", "2") == 0
    records = read_manifest(output)
    assert all(record["objects"] for record in records.values())
    values = set()
    for record in records.values():
        stem = record["name"].split("/")[1]
        label = read_label(output / "labels_masks" / f"{stem}_labels_semantic.png")
        assert read_image(output / "images" / f"{stem}.png").shape == (*label.shape, 3)
        unknown = sum(o["visible_pixels"] for o in record["objects"] if o["label"] == 254)
        assert (label == 1).sum() == unknown
        known = [item for item in record["objects"] if item["label"] == 24]
        assert known and all(item["category"] == "person" for item in known)
        values |= set(np.unique(label))
        # a pasted known object is known even where the scene is void
        outside = np.ones(label.shape, bool)
        for item in record["objects"]:
            x0, y0, x1, y1 = item["box"]
            outside[y0:y1, x0:x1] = False
        assert (label[5:][outside[5:]] == 0).all() and (label[:5][outside[:5]] == 255).all()
    assert values == {0, 1, 255}


def test_a_card_with_its_own_classes_keeps_train_ids(
    inputs, tmp_path, monkeypatch, capsys, request
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    request.addfinalizer(lambda: unregister_dataset("farm"))
    for name in ("pictures", "maps"):
        (tmp_path / "farm" / name).mkdir(parents=True)
    for index in range(3):
        Image.new("RGB", (150, 100)).save(tmp_path / "farm" / "pictures" / f"{index}.jpg")
        map_ = np.full((100, 150), 40, np.uint8)
        map_[50:], map_[:4] = 50, 99
        Image.fromarray(map_).save(tmp_path / "farm" / "maps" / f"{index}.png")
    card = tmp_path / "farm_card.yaml"
    card.write_text(
        "name: farm\nroot: farm\nimages: 'pictures/{id}.*'\nlabels: 'maps/{id}.png'\n"
        "classes: [road, person]\nlabel_values: {40: person, 50: road}\nvoid: [99]\n"
    )
    objects = ["--coco-json", inputs[1] / "instances.json", "--coco-images", inputs[1]]
    arguments = ["--dataset", card, *objects, "--output", tmp_path / "out", "--ratio", "1"]
    arguments += ["--placement", "road", "--controls", "1", "1", "--min-side", "10"]
    assert main(list(map(str, arguments))) == 0
    for index in range(3):
        path = tmp_path / "out" / "gtFine" / "train" / "farm" / f"{index}_gtFine_labelTrainIds.png"
        label = read_label(path)
        assert set(np.unique(label)) == {0, 1, 254, 255}
        assert (label[:4] == 255).all()
    line = capsys.readouterr().out.splitlines()[-1]
    card = tmp_path / "out" / "card.yaml"
    assert line == f"train on it: anoseg train '{card}' --stage arcface_full --weights RUN"
    (made,) = read_card(card)
    assert made.expected_images == 3
    assert made.classes == ("road", "person") and made.anomaly_id == 2
    (pair, *_) = entries = made.load("/nowhere")
    assert len(entries) == 3
    assert set(np.unique(load_label(pair["sem_seg_file_name"], made.rule))) == {0, 1, 2, 255}


@pytest.mark.parametrize("benchmark", [True, False])
def test_what_was_made_is_described_by_its_card(inputs, tmp_path, benchmark):
    output = tmp_path / "a b"
    assert make(inputs, output, *["--as-benchmark"] * benchmark) == 0
    (made,) = read_card(output / "card.yaml")
    assert made.name == ("pasted_a_b" if benchmark else "pasted_a_b_train")
    moved = shutil.move(output, tmp_path / "moved")
    (made,) = read_card(Path(moved) / "card.yaml")
    assert len(made.load("/nowhere")) == 8


def test_a_dataset_without_split_uses_its_own(inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for index in range(2):
        for folder, pixels in (("val", (9, 9, 9)), ("valannot", 3)):
            path = tmp_path / "camvid" / folder / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB" if folder == "val" else "L", SHAPE[::-1], pixels).save(path)
    objects = ["--coco-json", inputs[1] / "instances.json", "--coco-images", inputs[1]]
    arguments = [*objects, "--output", tmp_path / "out", "--dataset", "camvid_val"]
    assert main(list(map(str, arguments))) == 0
    assert len(list((tmp_path / "out/leftImg8bit/val").rglob("*.png"))) == 2
    assert main([*map(str, arguments), "--split", "train"]) == 2
    error = capsys.readouterr().err
    assert "--dataset camvid_val has val, but no split train" in error


def test_every_split_of_a_card_is_found_by_its_own_name(inputs, tmp_path, monkeypatch, capsys):
    """CamVid has `train` and `drives_train`: neither name may be taken for the other."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for stem in ("0001TP_1", "0006R0_1", "0006R0_2"):
        for folder, pixels in (("train", (9, 9, 9)), ("trainannot", 3)):
            path = tmp_path / "camvid" / folder / f"{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB" if folder == "train" else "L", SHAPE[::-1], pixels).save(path)
    objects = ["--coco-json", inputs[1] / "instances.json", "--coco-images", inputs[1]]
    for split, images in (("train", 3), ("drives_train", 1), ("drives_val", 2)):
        out = tmp_path / f"out_{split}"
        arguments = [*objects, "--output", out, "--dataset", "camvid", "--split", split]
        assert main(list(map(str, arguments))) == 0
        assert len(list((out / "leftImg8bit" / split).rglob("*.png"))) == images
    arguments = [*objects, "--output", tmp_path / "x", "--dataset", "camvid", "--split", "night"]
    assert main(list(map(str, arguments))) == 2
    assert "but no split night" in capsys.readouterr().err


def test_train_ids_become_official_ids(tmp_path):
    stored = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(stored).save(tmp_path / "a_gtFine_labelTrainIds.png")
    reader = SceneLabelReader(LABEL_RULES["cityscapes"])
    ids = reader(tmp_path / "a_gtFine_labelTrainIds.png")
    assert ids.ravel().tolist() == [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24]
    assert (LABEL_RULES["cityscapes"].apply(ids, "x") == stored).all()
    assert reader.known()["person"] == 24 and reader.known()["bicycle"] == 33


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--cityscapes", "nowhere"], "nowhere does not exist"),
        (["--split", "val"], "leftImg8bit/val/"),
        (["--drop-categories", "cow"], "cow not in"),
        (["--drop-categories", "cat", "dog", "person"], "no object to paste; left out: 9 of"),
        (["--count", "3", "1"], "--count is (3, 1)"),
        (["--count", "0", "0"], "--count is (0, 0): nothing is pasted"),
        (["--count", "0", "1000000000"], "--count is (0, 1000000000); it must be"),
        (["--controls", "5", "1"], "--controls is (5, 1)"),
        (["--closed-set", "-1", "-1"], "--closed-set is (-1, -1)"),
        (["--scale", "1", "1e9"], "scale is (1.0, 1000000000.0)"),
        (["--cutouts", "nowhere"], "no folder of objects: nowhere"),
    ],
)
def test_user_mistakes_give_one_line(inputs, tmp_path, capsys, changes, message):
    assert make(inputs, tmp_path / "out", *changes) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option,value",
    [("--workers", "-1"), ("--workers", "100000"), ("--seed", "-1"), ("--min-area", "nan")],
)
def test_an_option_out_of_its_range_is_named(inputs, tmp_path, capsys, option, value):
    assert make(inputs, tmp_path / "out", option, value) == 2
    assert f"error: {option} is {value}; it must be" in capsys.readouterr().err


@pytest.mark.parametrize("shard", ["3/3", "1", "-1/2", "a/b"])
def test_shards_count_from_zero(inputs, tmp_path, shard, capsys):
    with pytest.raises(SystemExit):
        make(inputs, tmp_path, f"--shard={shard}")
    assert "I in 0..N-1" in capsys.readouterr().err


def test_no_source_of_objects_is_refused(inputs, tmp_path, capsys):
    assert main(["--cityscapes", str(inputs[0]), "--output", str(tmp_path / "out")]) == 2
    assert "no objects: give --coco-json" in capsys.readouterr().err
