import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anoseg_d2.commands import check as script
from anoseg_d2.data import builtin

SCRIPT = Path(__file__).parents[2] / "datasets/check.py"


@pytest.fixture(scope="module")
def check():
    return script


@pytest.fixture
def root(tmp_path):
    """A small road_anomaly21: two frames, the second without anomaly."""
    folder = tmp_path / "small/benchmarks/dataset_AnomalyTrack"
    for number in range(2):
        image = np.full((20, 30, 3), 120, np.uint8)
        label = np.zeros((20, 30), np.uint8)
        label[:5] = 255
        label[10:15, 10:16] = 1 - number
        write(folder / f"images/validation000{number}.jpg", image)
        write(folder / f"labels_masks/validation000{number}_labels_semantic.png", label)
    return tmp_path


@pytest.fixture
def forget():
    """Take what a test registers out of the catalogs again."""
    before = set(builtin.DATASETS)
    yield
    for name in builtin.DATASETS.keys() - before:
        builtin.unregister_dataset(name)


NAME = "small_road_anomaly21"


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def track(root):
    return root / "small/benchmarks/dataset_AnomalyTrack"


def run(check, root, *names, **options):
    target = root / "report.json"
    args = [*names, "--root", str(root), "--json", str(target)]
    for key, value in options.items():
        args += [f"--{key.replace('_', '-')}", str(value)]
    status = check.main(args)
    return status, json.loads(target.read_text())["datasets"]


def test_a_sound_set_is_ok_and_described(check, root, capsys):
    status, reports = run(check, root, NAME)
    report = reports[NAME]
    assert status == 0 and report["verdict"] == "ok" and not report["problems"]
    assert report["images"] == 2 and report["sizes"] == {"30x20": 2}
    assert report["label_values"] == {"0": 870 / 1200, "1": 30 / 1200, "255": 300 / 1200}
    assert report["train_ids"] == report["label_values"]
    assert "1 of 2 images without anomaly" in report["notes"]
    assert "OK" in capsys.readouterr().out


def test_names_of_strangers_reach_the_terminal_escaped(check, root, capsys, forget):
    name = "a\nerror: all is well\x1b]0;title\x07"
    for number in range(3):
        write(root / f"own/images/{number}{name}.png", np.zeros((20, 30, 3), np.uint8))
        write(root / f"own/labels/{number}{name}.png", np.zeros((20, 30), np.uint8))
    (root / f"own/images/0{name}.png").write_bytes(b"no image")
    (root / f"own/images/1{name}.png").unlink()
    (root / f"own/labels/2{name}.png").unlink()
    card = root / "card.yaml"
    card.write_text(
        "{name: own, kind: anomaly, root: own, images: 'images/{id}.png', "
        "labels: 'labels/{id}.png', known: 0, anomaly: 1}"
    )
    run(check, root, "own", card=card)
    said = "".join(capsys.readouterr())
    assert r"a\nerror" in said and r"\x1b]0;title\x07" in said
    assert "\x1b" not in said and not any(line.startswith("error") for line in said.splitlines())


def test_a_truncated_image_and_a_text_file_are_named(check, root):
    image = track(root) / "images/validation0000.jpg"
    image.write_bytes(image.read_bytes()[:300])
    label = track(root) / "labels_masks/validation0001_labels_semantic.png"
    label.write_text("hello")
    status, reports = run(check, root, NAME)
    assert status == 1 and reports[NAME]["verdict"] == "broken"
    assert len(reports[NAME]["unreadable"]) == 2
    assert str(image) in reports[NAME]["unreadable"][0]
    assert str(label) in reports[NAME]["unreadable"][1]


def test_values_without_a_rule_are_shown(check, root):
    label = track(root) / "labels_masks/validation0001_labels_semantic.png"
    write(label, np.full((20, 30), 7, np.uint8))
    status, reports = run(check, root, NAME)
    assert status == 1 and reports[NAME]["verdict"] == "broken"
    assert str(label) in reports[NAME]["wrong_values"][0]
    assert reports[NAME]["label_values"]["7"] == 0.5


def test_a_label_of_another_size_is_named(check, root):
    write(
        track(root) / "labels_masks/validation0001_labels_semantic.png",
        np.zeros((10, 15), np.uint8),
    )
    status, reports = run(check, root, NAME)
    assert status == 1
    assert "is 30x20" in reports[NAME]["size_differs"][0]
    assert "is 15x10" in reports[NAME]["size_differs"][0]


def test_partnerless_files_make_a_set_incomplete(check, root):
    image = np.zeros((20, 30, 3), np.uint8)
    write(track(root) / "images/validation0005.jpg", image)
    write(track(root) / "labels_masks/validation0006_labels_semantic.png", image[..., 0])
    status, reports = run(check, root, NAME)
    assert status == 1 and reports[NAME]["verdict"] == "incomplete"
    assert [Path(p).name for p in reports[NAME]["images_without_label"]] == ["validation0005.jpg"]
    assert len(reports[NAME]["labels_without_image"]) == 1


def test_two_layouts_at_once_are_broken(check, root):
    other = root / "small/benchmarks/Validation_Dataset/RoadAnomaly21"
    write(other / "images/0.png", np.zeros((20, 30, 3), np.uint8))
    write(other / "labels_masks/0.png", np.zeros((20, 30), np.uint8))
    status, reports = run(check, root, NAME)
    assert status == 1 and reports[NAME]["verdict"] == "broken"
    assert "2 copies or layouts were found" in reports[NAME]["problems"][0]


def test_an_absent_set_fails_only_when_named(check, root, capsys):
    status, reports = run(check, root)
    assert status == 0 and f"looked in {root}" in capsys.readouterr().out
    assert reports[NAME]["verdict"] == "ok" and reports["road_anomaly"]["verdict"] == "absent"
    status, reports = run(check, root, NAME, "road_anomaly")
    assert status == 1
    assert "frames/{id}.labels/labels_semantic.png" in reports["road_anomaly"]["problems"][0]


def test_a_wrong_number_of_images_is_incomplete(check, root):
    (root / "dataset_AnomalyTrack").symlink_to(track(root))
    status, reports = run(check, root, "road_anomaly21")
    assert status == 1 and reports["road_anomaly21"]["verdict"] == "incomplete"
    assert "expected 10" in reports["road_anomaly21"]["problems"][0]


def test_labels_without_any_anomaly_are_broken(check, root):
    label = np.zeros((20, 30), np.uint8)
    for number in range(2):
        write(track(root) / f"labels_masks/validation000{number}_labels_semantic.png", label)
    _, reports = run(check, root, NAME)
    assert "no label has a single anomaly pixel" in reports[NAME]["problems"]


def test_preview_shows_photograph_and_coloured_label(check, root, tmp_path):
    run(check, root, NAME, preview=tmp_path / "previews")
    sheet = np.asarray(Image.open(tmp_path / f"previews/{NAME}.jpg")).astype(int)
    height = round(20 * 480 / 30)
    assert sheet.shape == (2 * height, 2 * 480, 3)
    photograph = sheet[:height, :480]
    assert np.abs(photograph[8:-8, 8:-8] - 120).max() < 8  # as it was
    # row 12, column 13 of the first frame is anomaly: orange over grey
    marked = sheet[height:]
    red, green, blue = marked[int(12.5 * height / 20), int(13.5 * 480 / 30)]
    assert red > green + 60 and red > blue + 90
    assert marked[int(2 * height / 20), 300].max() < 60  # void


def test_nothing_at_all_fails_and_says_where_it_looked(check, tmp_path, capsys):
    assert check.main(["--root", str(tmp_path / "typo")]) == 1
    assert f"looked in {tmp_path / 'typo'}, which does not exist" in capsys.readouterr().out
    assert check.main(["--root", str(tmp_path)]) == 1


def test_a_folder_that_cannot_be_read_spoils_only_its_own_set(check, root, monkeypatch):
    find = builtin.DATASETS["camvid_val"].__class__.find

    def refuse(dataset, folder):
        if dataset.name == "camvid_val":
            raise PermissionError(13, "Permission denied", str(folder))
        return find(dataset, folder)

    monkeypatch.setattr(builtin.DATASETS["camvid_val"].__class__, "find", refuse)
    status, reports = run(check, root)
    assert status == 1 and reports["camvid_val"]["verdict"] == "broken"
    assert "Permission denied" in reports["camvid_val"]["problems"][0]
    assert reports[NAME]["verdict"] == "ok"


def test_unknown_names_and_cards_end_with_2_and_the_way_out(check, root, capsys):
    assert check.main(["camvit", "--root", str(root)]) == 2
    assert "unknown dataset camvit; known: camvid_anomaly" in capsys.readouterr().err
    assert check.main(["--card", "nowhere.yaml", "--root", str(root)]) == 2
    assert "no dataset card 'nowhere.yaml'" in capsys.readouterr().err


def test_a_card_can_be_checked(check, tmp_path, forget):
    write(tmp_path / "my/images/1.png", np.zeros((8, 8, 3), np.uint8))
    write(tmp_path / "my/labels/1.png", np.eye(8, dtype=np.uint8))
    card = tmp_path / "checked.yaml"
    card.write_text(
        "name: checked_by_card\nroot: my\nimages: 'images/{id}.*'\nlabels: 'labels/{id}.png'\n"
        "classes: [far, near]\nlabel_values: {0: far, 1: near}\n"
    )
    assert check.main(["checked_by_card", "--root", str(tmp_path)]) == 2
    status, reports = run(check, tmp_path, "checked_by_card", card=card)
    assert status == 0 and reports["checked_by_card"]["train_ids"] == {"0": 56 / 64, "1": 8 / 64}
