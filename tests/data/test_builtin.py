import logging

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from anoseg_d2.config import add_anoseg_config
from anoseg_d2.data import builtin
from anoseg_d2.data.dataset import allow_count_mismatch
from anoseg_d2.data.label_rules import load_label
from anoseg_d2.utils.constants import CITYSCAPES_CLASSES


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def frame(folder, split, city="ulm", code="labelIds", values=(7, 8), number=0):
    name = f"{city}_{number:06d}_000019"
    write(
        folder / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png", np.zeros((2, 2, 3), np.uint8)
    )
    label = np.array([values, values], dtype=np.uint8)
    write(folder / f"gtFine/{split}/{city}/{name}_gtFine_{code}.png", label)


@pytest.mark.parametrize(
    "name, folder, split",
    [
        ("small_train", "small/cityscapes", "train"),
        ("small_val", "small/cityscapes", "val"),
        ("small_outlier_train", "small/cityscapes_outlier", "train"),
    ],
)
def test_cityscapes_layout_is_listed_over_cities(root, name, folder, split):
    frame(root / folder, split, "ulm")
    frame(root / folder, split, "aachen")
    entries = DatasetCatalog.get(name)
    assert [e["image_id"] for e in entries] == ["aachen_000000_000019", "ulm_000000_000019"]
    label = load_label(entries[0]["sem_seg_file_name"], MetadataCatalog.get(name).label_rule)
    assert label.tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("codes, expected", [(["labelTrainIds"], 7), (["labelIds"], 0)])
def test_either_coding_of_the_labels_is_read(root, codes, expected):
    for code in codes:
        frame(root / "small/cityscapes", "train", code=code, values=(7, 7))
    (entry,) = DatasetCatalog.get("small_train")
    assert (load_label(entry["sem_seg_file_name"], entry["label_rule"]) == expected).all()


def test_label_ids_are_read_where_both_codings_lie(root):
    frame(root / "small/cityscapes", "train", code="labelTrainIds", values=(0, 1))
    frame(root / "small/cityscapes", "train", code="labelIds", values=(7, 8))
    (entry,) = DatasetCatalog.get("small_train")
    assert entry["sem_seg_file_name"].endswith("_labelIds.png")


def test_registering_touches_no_disk_and_files_are_found_when_asked_for(root):
    builtin.register_all()
    with pytest.raises(FileNotFoundError, match="leftImg8bit/train"):
        DatasetCatalog.get("small_train")
    frame(root / "small/cityscapes", "train")
    assert len(DatasetCatalog.get("small_train")) == 1


def test_a_root_given_to_register_all_wins_until_it_is_called_again(root, monkeypatch):
    monkeypatch.setenv("ANOSEG_ALLOW_COUNT_MISMATCH", "1")
    frame(root / "elsewhere/cityscapes", "train")
    try:
        builtin.register_all(root / "elsewhere")
        assert len(DatasetCatalog.get("cityscapes_19_train")) == 1
    finally:
        builtin.register_all()
    with pytest.raises(FileNotFoundError):
        DatasetCatalog.get("cityscapes_19_train")


def test_known_sets_have_the_names_counts_and_kinds_that_others_rely_on():
    sets = builtin.DATASETS
    assert sets["cityscapes_19_train"].expected_images == 2975
    assert sets["cityscapes_19_val"].expected_images == 500
    assert sets["cityscapes_outlier_train"].expected_images == 2975
    closed = {
        name
        for name, dataset in sets.items()
        if dataset.evaluator_type == "closed_set" and dataset.origin != "tests"
    }
    assert closed == {
        *("cityscapes_19_train", "cityscapes_19_val", "cityscapes_outlier_train"),
        "cityscapes_lindau_val",
        *("camvid_train", "camvid_val", "camvid_outlier_train"),
        *("camvid_drives_train", "camvid_drives_val", "idd_ground_train", "idd_ground_val"),
    }


def test_metadata_holds_what_evaluators_ask_for():
    plain, pasted = map(MetadataCatalog.get, ("cityscapes_19_val", "cityscapes_outlier_train"))
    assert plain.evaluator_type == "closed_set" and plain.ignore_label == 255
    assert tuple(plain.stuff_classes) == CITYSCAPES_CLASSES and len(plain.stuff_colors) == 19
    assert plain.get("anomaly_id") is None and pasted.anomaly_id == 19
    benchmark = MetadataCatalog.get("road_anomaly21")
    assert benchmark.evaluator_type == "anomaly" and benchmark.expected_images == 10


def test_an_incomplete_set_is_refused_or_goes_on_loudly_when_asked(root, caplog, monkeypatch):
    frame(root / "cityscapes", "val")
    with pytest.raises(ValueError, match=r"expected 500[\s\S]*DATASETS.ALLOW_COUNT_MISMATCH"):
        DatasetCatalog.get("cityscapes_19_val")
    monkeypatch.setenv("ANOSEG_ALLOW_COUNT_MISMATCH", "1")
    with caplog.at_level(logging.WARNING):
        assert len(DatasetCatalog.get("cityscapes_19_val")) == 1
    assert "INCOMPLETE" in caplog.text and "expected 500" in caplog.text


def test_the_config_key_allows_an_incomplete_set_and_takes_it_back(root):
    frame(root / "cityscapes", "val")
    cfg = get_cfg()
    add_anoseg_config(cfg)
    try:
        cfg.DATASETS.ALLOW_COUNT_MISMATCH = True
        builtin.register_cards(cfg)
        assert len(DatasetCatalog.get("cityscapes_19_val")) == 1
    finally:
        allow_count_mismatch(False)
    with pytest.raises(ValueError, match="not complete"):
        DatasetCatalog.get("cityscapes_19_val")


def test_partnerless_files_are_named_not_passed_over(root):
    folder = root / "small/cityscapes"
    for number in range(3):
        frame(folder, "train", number=number)
    (folder / "gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png").unlink()
    (folder / "leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png").unlink()
    with pytest.raises(ValueError) as error:
        DatasetCatalog.get("small_train")
    assert "1 images without label" in str(error.value)
    assert "ulm_000000_000019_leftImg8bit.png" in str(error.value)
    assert "1 labels without image" in str(error.value)


def test_registering_again_changes_nothing():
    before = dict(builtin.DATASETS)
    builtin.register_all()
    assert dict(builtin.DATASETS) == before
    assert set(before) <= set(DatasetCatalog.list())


def test_a_name_that_belongs_to_another_is_refused(tmp_path):
    card = tmp_path / "mine.yaml"
    text = "name: {}\nkind: anomaly\nroot: r\nimages: '{{id}}.png'\nlabels: 'l/{{id}}.png'\n"
    card.write_text(text.format("road_anomaly") + "known: 0\nanomaly: 1\n")
    with pytest.raises(ValueError, match="'road_anomaly'.*taken"):
        builtin.register_cards([card])
    card.write_text(text.format("coco_2017_train") + "known: 0\nanomaly: 1\n")
    with pytest.raises(ValueError, match="already taken by another project"):
        builtin.register_cards(card)
