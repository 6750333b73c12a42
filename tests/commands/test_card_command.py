"""A card for one's own images: the pairs, the values and the guesses, and a card that works."""

import numpy as np
import pytest
import yaml

from anoseg_d2.commands import card
from anoseg_d2.data.dataset_card import read_card
from anoseg_d2.data.image_io import write_image

SHAPE = (8, 12)


def write_photo(path):
    write_image(path, np.zeros((*SHAPE, 3), np.uint8))


def write_mask(path, *values):
    """A mask whose rows hold the values in turn."""
    rows = np.resize(np.array(values, np.uint8), SHAPE[0])
    write_image(path, np.repeat(rows[:, None], SHAPE[1], axis=1))


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


def run(*arguments):
    return card.main([str(argument) for argument in arguments])


def proposed(folder, *options):
    """Run the command; returns the yaml and {dataset: number of pairs} as found by its card."""
    output = folder / "card.yaml"
    assert run(folder, "--name", "mine", "--output", output, *options) == 0
    datasets = read_card(output)
    found = {dataset.name: dataset.find(folder) for dataset in datasets}
    assert not any(f.images_without_label or f.labels_without_image for f in found.values())
    return yaml.safe_load(output.read_text()), {name: len(f.pairs) for name, f in found.items()}


FOLDERS = {
    "two folders": (("images/{}.jpg", "masks/{}.png"), ["mine"]),
    "splits below": (("images/train/{}.png", "labels/train/{}.png"), ["mine_train"]),
    "splits above": (("val/photos/{}.jpg", "val/labels/{}.png"), ["mine_val"]),
}
PATTERNS = {
    "masks below": (("{}.jpg", "masks/{}.png"), ("{id}.jpg", "masks/{id}.png"), ["mine"]),
    "a suffix": (("{}.jpg", "{}_mask.png"), ("{id}.jpg", "{id}_mask.png"), ["mine"]),
    "the extension": (("{}.jpg", "{}.png"), ("{id}.jpg", "{id}.png"), ["mine"]),
    "prefixes": (("p_{}.jpg", "m_{}.png"), ("p_{id}.jpg", "m_{id}.*"), ["mine"]),
    "splits": (
        ("in/val/u/{}_l.png", "gt/val/u/{}_g.png"),
        ("in/{split}/*/{id}_l.png", "gt/{split}/*/{id}_g.png"),
        ["mine_val"],
    ),
}


def write_pairs(folder, photo, mask):
    for name in ("1", "2", "10", "11"):
        write_photo(folder / photo.format(name))
        write_mask(folder / mask.format(name), 0, 1, 2, 255)


@pytest.mark.parametrize("layout", list(FOLDERS))
def test_masks_of_the_same_names_are_found_in_their_folder(tmp_path, layout):
    (photo, mask), names = FOLDERS[layout]
    write_pairs(tmp_path, photo, mask)
    assert proposed(tmp_path)[1] == dict.fromkeys(names, 4)


@pytest.mark.parametrize("layout", list(PATTERNS))
def test_patterns_pair_other_names(tmp_path, layout):
    (photo, mask), (images, masks), names = PATTERNS[layout]
    write_pairs(tmp_path, photo, mask)
    assert proposed(tmp_path, "--images", images, "--masks", masks)[1] == dict.fromkeys(names, 4)


@pytest.mark.parametrize("names", [("a.jpg", "a.png"), ("val/a.jpg", "val/a.png")])
def test_two_folders_pair_the_files_of_the_same_names(tmp_path, names):
    photo, mask = names
    write_photo(tmp_path / "in" / photo)
    write_mask(tmp_path / "out/put" / mask, 0, 1, 2, 255)
    splits = proposed(tmp_path, "--images", "in", "--masks", "out/put")[1]
    assert list(splits.values()) == [1]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["--images", "{id}.jpg"], "the same placeholders"),
        (["--images", "{id}.jpg", "--masks", "{name}.png"], "the same placeholders"),
        (["--images", "a.jpg", "--masks", "b.png"], "placeholders in braces"),
        (["--images", "{id}.jpg", "--masks", "no/{id}.png"], "no photograph has a mask"),
    ],
)
def test_patterns_that_do_not_fit_are_refused(tmp_path, capsys, patterns, message):
    write_photo(tmp_path / "fine/1.jpg")
    write_mask(tmp_path / "fine/masks/1.png", 0, 1)
    assert run(tmp_path, *patterns) == 2
    assert message in capsys.readouterr().err


def test_values_are_listed_with_their_fractions_and_guesses(tmp_path, capsys):
    for index in range(4):
        write_photo(tmp_path / f"images/{index}.jpg")
        write_mask(tmp_path / f"masks/{index}.png", 3, 3, 7, *([254] if index else [255]))
    content, _ = proposed(tmp_path)
    assert content["kind"] == "closed_set"
    assert content["classes"] == ["class_3", "class_7"]
    assert content["label_values"] == {3: "class_3", 7: "class_7"}
    assert content["void"] == [255] and content["anomaly"] == 254
    said = capsys.readouterr().out
    assert "anoseg check --card" in said and "254    18.75%" in said


@pytest.mark.parametrize(
    ("values", "known", "anomaly", "void"),
    [
        ((0, 1), [0], 1, []),
        ((0, 1, 255), [0], 1, [255]),
        ((0, 255), [0], 255, []),
        ((0, 254, 255), [0], 254, [255]),
        ((4, 9), [4], 9, []),
    ],
)
def test_masks_of_two_values_make_an_anomaly_set(tmp_path, values, known, anomaly, void):
    write_photo(tmp_path / "images/1.jpg")
    write_mask(tmp_path / "masks/1.png", *values)
    content, _ = proposed(tmp_path)
    assert content["kind"] == "anomaly"
    assert (content["known"], content["anomaly"], content["void"]) == (known, anomaly, void)


def test_the_kind_can_be_given(tmp_path):
    write_photo(tmp_path / "images/1.jpg")
    write_mask(tmp_path / "masks/1.png", 0, 1, 2, 2)
    assert proposed(tmp_path, "--kind", "anomaly")[0]["known"] == [0, 2]
    content, _ = proposed(tmp_path, "--kind", "closed_set", "--overwrite")
    assert content["classes"] == ["class_0", "class_1", "class_2"]


def test_images_of_no_pair_are_named(tmp_path, capsys):
    for index in range(3):
        write_photo(tmp_path / f"images/{index}.jpg")
        write_mask(tmp_path / f"masks/{index}.png", 0, 1)
    write_photo(tmp_path / "images/9.jpg")
    assert run(tmp_path, "--name", "mine") == 0
    assert "1 files belong to no pair and are left out: images/9.jpg" in capsys.readouterr().out


def test_the_card_is_written_next_to_the_images_and_is_not_replaced(tmp_path, capsys):
    folder = tmp_path / "My road (1)"
    write_photo(folder / "images/1.jpg")
    write_mask(folder / "masks/1.png", 0, 1)
    assert run(folder) == 0
    content = yaml.safe_load((folder / "My_road_1.yaml").read_text())
    assert content["root"] == "." and content["name"] == "My_road_1"
    assert run(folder) == 2
    assert "exists; remove it or pass --overwrite" in capsys.readouterr().err


def colour_mask(path):
    colours = np.zeros((*SHAPE, 3), np.uint8)
    colours[:4, :, 1] = 200
    write_image(path, colours)


def instance_mask(path):
    write_image(path, np.resize(np.arange(300, dtype=np.uint16), (30, 10)))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (lambda path: None, "no photograph has a mask of the same name"),
        (lambda path: write_mask(path, 5), "the masks hold only the value 5"),
        (colour_mask, "1.png is a colour picture"),
        (lambda path: path.write_bytes(b"no image"), "cannot read image"),
        (lambda path: write_mask(path.with_suffix(".jpg"), 0, 1), "1.jpg is a JPEG"),
        (instance_mask, "the masks hold 298 different values"),
    ],
)
def test_what_cannot_be_proposed_is_said(tmp_path, capsys, mask, message):
    write_photo(tmp_path / "images/1.jpg")
    (tmp_path / "masks").mkdir()
    mask(tmp_path / "masks/1.png")
    assert run(tmp_path, "--name", "mine") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "mine.yaml").exists()


def test_a_folder_that_is_not_there_and_a_name_that_is_taken(tmp_path, capsys):
    assert run(tmp_path / "no") == 2
    assert "is not a folder" in capsys.readouterr().err
    write_photo(tmp_path / "images/1.jpg")
    write_mask(tmp_path / "masks/1.png", 0, 1)
    assert run(tmp_path, "--name", "road_anomaly") == 2
    assert "'road_anomaly' is taken" in capsys.readouterr().err
