import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anoseg_d2.config import add_anoseg_config
from anoseg_d2.data import builtin
from anoseg_d2.data.dataset_card import find_card, read_card, shipped_cards
from anoseg_d2.utils.constants import CITYSCAPES_CLASSES

REAL_DATA = Path(os.environ.get("ANOSEG_DATA", Path(__file__).parents[3] / "shared/data"))
CLOSED = """\
name: mine
root: mine
images: "images/{id}.*"
labels: "labels/{id}.png"
classes: [road, car, sky]
label_values: {0: sky, 1: road, 2: 1}
void: [255, 9]
anomaly: 254
"""
ANOMALY = """\
name: odd
kind: anomaly
root: odd
images: "images/{id}.*"
labels: "labels/{id}.png"
known: [0, 3]
anomaly: [1, 2]
void: 255
"""


@pytest.fixture
def card(tmp_path):
    def write(text):
        path = tmp_path / "card.yaml"
        path.write_text(text)
        return path

    before = set(builtin.DATASETS)
    yield write
    for name in builtin.DATASETS.keys() - before:
        builtin.unregister_dataset(name)


def changed(text, key, value):
    """Replace one top-level line of a card."""
    lines = [line for line in text.splitlines() if not line.startswith(f"{key}:")]
    return "\n".join(lines + ([f"{key}: {value}"] if value is not None else [])) + "\n"


def test_a_closed_set_maps_values_to_train_ids_by_number_or_name(card):
    (dataset,) = read_card(card(CLOSED))
    stored = np.array([[0, 1, 2, 9, 254, 255]], dtype=np.uint8)
    assert dataset.rule.apply(stored, "x").tolist() == [[2, 0, 1, 255, 3, 255]]
    assert dataset.anomaly_id == 3
    assert dataset.classes == ("road", "car", "sky")
    assert len(set(dataset.colors)) == 3


def test_an_anomaly_set_maps_to_known_anomaly_void(card):
    (dataset,) = read_card(card(ANOMALY))
    stored = np.array([[0, 3, 1, 2, 255]], dtype=np.uint8)
    assert dataset.rule.apply(stored, "x").tolist() == [[0, 0, 1, 1, 255]]
    assert dataset.evaluator_type == "anomaly"


def test_an_anomaly_set_chooses_the_track_of_its_components(card):
    assert read_card(card(ANOMALY))[0].metadata()["component_track"] == "anomaly"
    obstacles = changed(ANOMALY, "component_track", "obstacle")
    assert read_card(card(obstacles))[0].metadata()["component_track"] == "obstacle"
    with pytest.raises(ValueError, match="one of the keys"):
        read_card(card(changed(CLOSED, "component_track", "obstacle")))


def test_one_split_of_a_card_can_be_on_another_component_track(card):
    files = 'images: "{split}/i/{{id}}.png", labels: "{split}/l/{{id}}.png"'
    near = f"  near: {{{files.format(split='near')}, component_track: obstacle}}\n"
    far = f"  far: {{{files.format(split='far')}}}\n"
    rest = "name: mine\nroot: mine\nkind: anomaly\nknown: 0\nanomaly: 1\n"
    sets = read_card(card(f"{rest}splits:\n{near}{far}"))
    assert {s.name: s.component_track for s in sets} == {
        "mine_near": "obstacle",
        "mine_far": "anomaly",
    }
    with pytest.raises(ValueError, match="splits.near.component_track.*'obstacles'"):
        read_card(card(f"{rest}splits:\n{near.replace('obstacle', 'obstacles')}"))


def test_mean_iou_runs_over_the_classes_that_the_card_can_give(card):
    partial = changed(CLOSED, "label_values", "{0: sky, 2: car}")
    assert read_card(card(partial))[0].present_classes == (1, 2)
    assert read_card(card(CLOSED))[0].present_classes is None


def test_a_config_registers_cards_for_training_and_evaluation(card, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name, array in (("images/1.jpg", np.zeros((2, 2, 3), np.uint8)), ("labels/1.png", None)):
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True)
        Image.fromarray(np.zeros((2, 2), np.uint8) if array is None else array).save(path)
    cfg = get_cfg()
    add_anoseg_config(cfg)
    cfg.DATASETS.CARDS = [str(card(CLOSED))]
    assert builtin.register_cards(cfg) == ["mine"]
    assert builtin.register_cards(cfg) == ["mine"]
    (entry,) = DatasetCatalog.get("mine")
    assert entry["image_id"] == "1"
    assert MetadataCatalog.get("mine").anomaly_id == 3


def test_splits_register_one_set_each(card):
    text = changed(changed(CLOSED, "images", None), "labels", None) + (
        "splits:\n"
        "  train: {images: 'a/{id}.*', labels: 'b/{id}.png'}\n"
        "  val: {images: 'c/{id}.*', labels: 'd/{id}.png', expected_images: 7}\n"
    )
    train, val = read_card(card(text))
    assert (train.name, val.name) == ("mine_train", "mine_val")
    assert (train.expected_images, val.expected_images) == (None, 7)
    assert val.layouts[0].images == ("c/{id}.*",)


def test_a_split_can_take_the_frames_that_a_pattern_names(card, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name in ("a_1", "a_2", "ab_1"):
        for folder in ("images", "labels"):
            path = tmp_path / "mine" / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((2, 2), np.uint8)).save(path)
    (data_set,) = read_card(card(CLOSED + 'frames: "a_.*"\n'))
    assert [pair[0] for pair in data_set.find(tmp_path).pairs] == ["a_1", "a_2"]
    with pytest.raises(ValueError, match=r"'frames': found 'a\('.*expression"):
        read_card(card(CLOSED + 'frames: "a("\n'))


def test_an_absolute_root_does_not_depend_on_the_datasets_folder(card, tmp_path):
    for name in ("far/images/1.png", "far/labels/1.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.touch()
    (dataset,) = read_card(card(changed(CLOSED, "root", tmp_path / "far")))
    assert len(dataset.find("/nowhere").pairs) == 1


LAYOUTS = """\
name: odd
kind: anomaly
layouts:
  - {name: release, root: [odd, Odd], images: "images/{id}.*", labels: "labels/{id}.png"}
  - {root: packed, images: "{id}.jpg", labels: "{id}.png", spare_images: true}
known: 0
anomaly: 1
"""


def test_a_card_lists_every_layout_in_which_its_set_is_distributed(card, tmp_path):
    (dataset,) = read_card(card(LAYOUTS))
    assert [layout.name for layout in dataset.layouts] == ["release", "card card.yaml"]
    for name in ("packed/1.jpg", "packed/1.png", "packed/2.jpg", "Odd/images/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = dataset.find(tmp_path)
    assert found.folder == tmp_path / "packed" and not found.images_without_label
    (tmp_path / "Odd/labels").mkdir()
    (tmp_path / "Odd/labels/1.png").touch()
    with pytest.raises(ValueError, match="2 copies or layouts"):
        dataset.find(tmp_path)


WRONG = {
    # key as the error names it: (card, words of what is allowed)
    "kind": (changed(CLOSED, "kind", "open"), "closed_set or anomaly"),
    "name": (changed(CLOSED, "name", None), "a string that is not empty"),
    "images": (changed(CLOSED, "images", "'images/*.png'"), "{id}"),
    "labels": (changed(CLOSED, "labels", "'labels/{name}.png'"), "same placeholders as images"),
    "classes": (changed(CLOSED, "classes", "[road, road]"), "different class names"),
    "label_values ": (changed(CLOSED, "label_values", "official"), "cityscapes or"),
    "label_values.0": (changed(CLOSED, "label_values", "{0: tree}"), "road, car, sky"),
    "label_values.1": (changed(CLOSED, "label_values", "{0: 0, 1: 3}"), "a train id 0..2"),
    "anomaly": (changed(CLOSED, "anomaly", 2), "a value that label_values does not use"),
    "void": (changed(CLOSED, "void", 254), "label_values or anomaly does not use"),
    "expected_images": (changed(CLOSED, "expected_images", -3), "a positive integer"),
    "lables": (CLOSED + "lables: x\n", "one of the keys name, kind, root"),
    "known": (changed(ANOMALY, "known", "yes"), "integers 0..65535"),
    "anomaly ": (changed(ANOMALY, "anomaly", "[0, 1]"), "a value that known does not use"),
    "component_track": (changed(ANOMALY, "component_track", "street"), "anomaly or obstacle"),
    "splits": (changed(CLOSED, "splits", "[train]"), "a mapping of split names"),
    "root": (changed(CLOSED, "root", "''"), "a list of folders"),
    "layouts": ("name: odd\nkind: anomaly\nlayouts: x\nknown: 0\nanomaly: 1\n", "a list of"),
    "root ": (LAYOUTS + "root: odd\n", "inside each of the `layouts`"),
    "layouts.0.images": (LAYOUTS.replace("images/{id}.*", "images/x.*"), "placeholder"),
    "layouts.1.spare_images": (LAYOUTS.replace("true", "maybe"), "true or false"),
    "label_values": (LAYOUTS + "label_values: road_anomaly\n", "known, anomaly and void"),
}


@pytest.mark.parametrize("key", WRONG)
def test_schema_errors_name_file_key_and_what_is_allowed(card, key):
    text, allowed = WRONG[key]
    path = card(text)
    with pytest.raises(ValueError) as error:
        read_card(path)
    assert str(path) in str(error.value)
    assert f"key {key.strip()!r}" in str(error.value)
    assert allowed in str(error.value)


def test_class_names_that_yaml_takes_for_switches_are_refused(card):
    with pytest.raises(ValueError, match="key 'classes': found .False, True."):
        read_card(card(changed(CLOSED, "classes", "[off, on]")))


def test_patterns_cannot_leave_the_root(card):
    with pytest.raises(ValueError, match="key 'images'"):
        read_card(card(changed(CLOSED, "images", "'../{id}.png'")))


def test_cards_are_data_and_run_nothing(card, tmp_path):
    target = tmp_path / "made"
    with pytest.raises(ValueError, match="card.yaml .*constructor"):
        read_card(card(f"name: !!python/object/apply:os.mkdir ['{target}']\n"))
    assert not target.exists()


@pytest.mark.parametrize("text", ["just a line", "- a\n- b\n", "", "a: [1\n"])
def test_what_is_no_mapping_is_refused(card, text):
    with pytest.raises(ValueError, match="card.yaml"):
        read_card(card(text))


def test_an_unknown_card_lists_the_shipped_ones():
    with pytest.raises(FileNotFoundError, match="dataset.*'camvidd'.*camvid_anomaly"):
        find_card("camvidd")


def test_shipped_cards_are_registered():
    for name in shipped_cards():
        for dataset in read_card(find_card(name)):
            assert builtin.DATASETS[dataset.name] == dataset


def test_camvid_card_is_the_order_of_its_release():
    release = [10, 2, 5, 0, 1, 8, 7, 4, 13, 11, 12, 255]
    dataset = builtin.DATASETS["camvid_train"]
    assert dataset.rule.apply(np.arange(12, dtype=np.uint8)[None], "x").tolist() == [release]
    assert dataset.classes == CITYSCAPES_CLASSES
    assert dataset.present_classes == (0, 1, 2, 4, 5, 7, 8, 10, 11, 12, 13)


def test_a_card_is_plain_yaml():
    for name in shipped_cards():
        assert isinstance(yaml.safe_load(find_card(name).read_text()), dict)


def test_the_cards_of_the_readme_are_valid(card):
    text = (Path(__file__).parents[2] / "datasets/README.md").read_text()
    cards = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    names = [dataset.name for example in cards for dataset in read_card(card(example))]
    assert names == ["my_road_train", "my_road_val", "my_anomalies"]


@pytest.mark.skipif(not (REAL_DATA / "camvid").is_dir(), reason=f"no CamVid in {REAL_DATA}")
def test_camvid_is_found_and_every_label_fits(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(REAL_DATA))
    counts = {"train": 120, "val": 40, "drives_train": 86, "drives_val": 34}
    for name, count in ((f"camvid_{split}", count) for split, count in counts.items()):
        entries = DatasetCatalog.get(name)
        assert len(entries) == count
        label = np.asarray(Image.open(entries[0]["sem_seg_file_name"]))
        train_ids = entries[0]["label_rule"].apply(label, "x")
        assert (train_ids[-40:] == 0).mean() > 0.3  # road at the bottom
        assert (train_ids[:40] == 0).mean() < 0.01


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/x", "a/b", "..", "", "x" * 101, "a\\b"])
def test_names_that_would_leave_a_folder_are_refused(card, name):
    with pytest.raises(ValueError, match="key 'name'"):
        read_card(card(changed(CLOSED, "name", repr(name))))
    splits = changed(changed(CLOSED, "images", None), "labels", None)
    splits += f"splits: {{{name!r}: {{images: 'a/{{id}}.*', labels: 'b/{{id}}.png'}}}}\n"
    with pytest.raises(ValueError, match="splits"):
        read_card(card(splits))


BROKEN = {
    "empty": b"",
    "a list": b"- name: x\n",
    "looping": b"name: &a {b: *a}\n",
    "a list that holds itself": b"name: mine\nclasses: &a [*a]\n",
    "growing": b"a: &a [x, x]\nb: &b [*a, *a]\nname: *b\n",
    "numbers of base 60": CLOSED.replace("void: [255, 9]", "void: " + "1:" * 400_000).encode(),
    "deep": b"name: " + b"[" * 100_000,
    "deep mappings": b"name: " + b"{a: " * 5000,
    "not UTF-8": "name: m\xfcnchen".encode("latin-1"),
    "bytes": bytes(range(256)),
    "a date that does not exist": b"name: 2001-99-99\n",
    "a number too long to read": b"name: " + b"9" * 5000,
    "keys that are lists": b"? [a]\n: b\n? [a]\n: c\n",
    "keys that are mappings": b"? {a: b}\n: c\n",
    "too large": b"# " + b"x" * 2_000_000,
    "kind of a wrong type": b"kind: [open]\nname: x\n",
    "patterns of a wrong type": CLOSED.replace('"images/{id}.*"', "7").encode(),
    "a placeholder that is a number": CLOSED.replace("{id}", "{0}").encode(),
    "too many classes": changed(
        CLOSED, "classes", str(list("abc") + [f"c{i}" for i in range(300)])
    ).encode(),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", BROKEN)
def test_broken_cards_are_named(tmp_path, what):
    path = tmp_path / "card.yaml"
    path.write_bytes(BROKEN[what])
    with pytest.raises(ValueError, match="card.yaml") as error:
        read_card(path)
    assert len(str(error.value)) < 1000


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([CLOSED, ANOMALY]), st.integers(0, 10**6), st.integers(0, 255), st.booleans()
)
def test_a_card_with_one_byte_changed_loads_or_is_named(text, place, byte, cut):
    data = bytearray(text.encode())
    place %= len(data)
    data[place] = byte
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "card.yaml")
        path.write_bytes(data[:place] if cut else data)
        try:
            datasets = read_card(path)
        except ValueError as error:
            assert "card.yaml" in str(error)
        else:
            assert all(dataset.name and dataset.rule.values for dataset in datasets)
