from dataclasses import fields

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from PIL import Image

from anoseg_d2.config import add_anoseg_config
from anoseg_d2.data import dataset_mapper
from anoseg_d2.data.augmentation import Augmentation
from anoseg_d2.data.builtin import register_all
from anoseg_d2.data.cut_paste import CutPasteOptions, sampling
from anoseg_d2.data.cut_paste.coco import DROPPED
from anoseg_d2.data.dataset_mapper import AnosegDatasetMapper, sample_generator
from anoseg_d2.data.image_io import write_image
from anoseg_d2.data.label_rules import LABEL_RULES


@pytest.fixture
def entry(tmp_path):
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    label = np.full((40, 60), 7, np.uint8)  # road
    label[:10], label[20:30, 20:40], label[35:] = 23, 254, 3  # sky, pasted, out of roi
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(label).save(tmp_path / "a_gtFine_labelIds.png")
    return {
        "file_name": str(tmp_path / "a.png"),
        "sem_seg_file_name": str(tmp_path / "a_gtFine_labelIds.png"),
        "image_id": "a",
        "label_rule": LABEL_RULES["cityscapes_outlier"],
    }


def train_mapper(**options):
    return AnosegDatasetMapper(is_train=True, augmentation=Augmentation((32, 32)), **options)


def test_training_samples_are_uint8_images_and_int64_train_ids(entry):
    sample = train_mapper()({**entry, "sample": (0, 0, 0)})
    assert sample["image"].dtype == torch.uint8 and sample["image"].shape == (3, 32, 32)
    assert sample["sem_seg"].dtype == torch.int64 and sample["sem_seg"].shape == (32, 32)
    assert sample["image_id"] == "a"


def test_the_pasted_id_becomes_class_k_and_other_ids_void(entry):
    mapper = AnosegDatasetMapper(
        is_train=True, augmentation=Augmentation((40, 60), False, (1.0, 1.0), False)
    )
    sem_seg = mapper({**entry, "sample": (0, 0, 0)})["sem_seg"]
    assert (sem_seg[20:30, 20:40] == 19).all() and (sem_seg == 19).sum() == 200
    assert (sem_seg[:10] == 10).all() and (sem_seg[35:] == 255).all()
    assert set(sem_seg.unique().tolist()) == {0, 10, 19, 255}


def test_a_sample_depends_on_seed_draw_and_index_alone(entry):
    samples = {}
    for sample_id in [(0, 5, 2), (1, 5, 2), (0, 6, 2), (0, 5, 3)]:
        np.random.seed(sample_id[1])  # global state has no say
        torch.manual_seed(sample_id[0])
        first = train_mapper()({**entry, "sample": sample_id})
        np.random.rand(7)
        again = train_mapper()({**entry, "sample": sample_id})
        assert torch.equal(first["image"], again["image"])
        assert torch.equal(first["sem_seg"], again["sem_seg"])
        samples[sample_id] = first["image"]
    images = list(samples.values())
    assert all(not torch.equal(images[0], other) for other in images[1:])


def test_without_a_numbered_draw_the_global_seed_decides(entry):
    np.random.seed(3)
    first, second = train_mapper()(entry), train_mapper()(entry)
    np.random.seed(3)
    assert torch.equal(train_mapper()(entry)["image"], first["image"])
    assert not torch.equal(first["image"], second["image"])


def test_pasting_comes_before_augmentation_and_is_given_draw_and_index(entry):
    calls = []

    def paste(image, label, number, index):
        calls.append((number, index, label.max()))
        return np.full_like(image, 90), np.full_like(label, 19)

    chain = Augmentation((32, 32), color_jitter=False)
    mapper = AnosegDatasetMapper(is_train=True, augmentation=chain, cut_paste=paste)
    sample = mapper({**entry, "sample": (0, 8, 4)})
    assert calls == [(8, 4, 255)]
    inside = sample["sem_seg"] != 255
    assert (sample["sem_seg"][inside] == 19).all()
    assert (sample["image"][:, inside] == 90).all() and (sample["image"][:, ~inside] == 0).all()


def test_pasting_and_augmentation_draw_from_different_streams():
    pasting = np.random.default_rng((7, 5, 3)).random(8)  # how OnlineCutPaste seeds itself
    assert not np.isclose(sample_generator(7, 5, 3).random(8), pasting).any()


def test_test_samples_are_whole_and_untouched(entry):
    sample = AnosegDatasetMapper(is_train=False)(entry)
    image = np.asarray(Image.open(entry["file_name"]))
    assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), image)
    assert (sample["height"], sample["width"]) == (40, 60)
    assert {"file_name", "sem_seg_file_name", "image_id"} <= sample.keys()
    assert "sem_seg" not in sample


def test_the_dataset_dict_is_left_as_it_was(entry):
    given = {**entry, "sample": (0, 0, 0)}
    train_mapper()(given)
    assert given == {**entry, "sample": (0, 0, 0)}


def test_a_label_of_another_size_is_refused_with_both_names(entry):
    Image.fromarray(np.full((20, 60), 7, np.uint8)).save(entry["sem_seg_file_name"])
    with pytest.raises(ValueError, match=r"a\.png is 60x40.*labelIds\.png is 60x20"):
        train_mapper()({**entry, "sample": (0, 0, 0)})


def test_a_config_builds_both_mappers(entry):
    cfg = get_cfg()
    add_anoseg_config(cfg)
    cfg.INPUT.CROP_SIZE = (16, 24)
    assert AnosegDatasetMapper(cfg, True)(entry)["image"].shape == (3, 16, 24)
    assert AnosegDatasetMapper(cfg, False)(entry)["image"].shape == (3, 40, 60)


def test_pasting_by_config_needs_its_objects():
    register_all()
    cfg = get_cfg()
    add_anoseg_config(cfg)
    cfg.INPUT.CUT_PASTE.ENABLED = True
    cfg.DATASETS.TRAIN = ("cityscapes_19_train",)
    with pytest.raises(ValueError, match="no objects.*INPUT.CUT_PASTE.COCO_JSON"):
        AnosegDatasetMapper(cfg, True)


def test_pasting_by_config_takes_every_choice_from_it(monkeypatch):
    monkeypatch.setattr(sampling, "CocoObjects", lambda *files, **options: (files, options))
    register_all()
    cfg = get_cfg()
    add_anoseg_config(cfg)
    cfg.DATASETS.TRAIN = ("cityscapes_19_train",)
    node = cfg.INPUT.CUT_PASTE
    node.ENABLED, node.COCO_JSON, node.COCO_IMAGES = True, "coco.json", "coco"
    node.FEATHER, node.OPAQUE_CORE, node.CONTROL_OBJECTS, node.RATIO = (2.0, 0.2), True, 2, 0.25
    paste = AnosegDatasetMapper(cfg, True).cut_paste
    options = paste.options
    assert (options.feather, options.opaque_core, options.ratio) == ((2.0, 0.2), True, 0.25)
    assert (options.control_count, options.anomaly_value) == ((0, 2), 19)
    assert options.ground_labels == (0, 1)
    (_, controls), (_, outliers) = paste.controls[0], paste.outliers[0]
    assert controls["labels"]["person"] == 11 and outliers["drop"] == DROPPED


def test_pasting_by_config_can_set_every_option_of_the_offline_job(monkeypatch):
    monkeypatch.setattr(sampling, "CocoObjects", lambda *files, **options: options)
    monkeypatch.setattr(dataset_mapper, "ClosedSetObjects", lambda *_, **options: "segments")
    monkeypatch.setattr(dataset_mapper.DatasetCatalog, "get", lambda name: [])
    cfg = get_cfg()
    add_anoseg_config(cfg)
    cfg.DATASETS.TRAIN = ("cityscapes_19_train",)
    node = cfg.INPUT.CUT_PASTE
    node.ENABLED, node.COCO_JSON, node.COCO_IMAGES = True, "coco.json", "coco"
    node.DROP_CATEGORIES, node.MIN_AREA, node.KEEP_CUT = ["cow"], 7.0, True
    node.RATIO, node.COUNT, node.SCALE, node.MAX_FRACTION = 0.1, (2, 4), (0.2, 0.3), 0.9
    node.PARTS = 0.4
    node.CONTROL_LEAST, node.CONTROL_OBJECTS, node.MIN_SIDE, node.RIM = 1, 2, 5, 0
    node.CLOSED_SET_LEAST, node.CLOSED_SET_OBJECTS = 3, 6
    node.SCALE_MODE, node.PLACEMENT = "perspective", "road"
    node.PERSPECTIVE_SIDE, node.PERSPECTIVE_MIN_SIDE, node.FEATHER = 0.2, 3, (1.0, 0.5)
    node.OPAQUE_CORE, node.MAX_REDRAWS = True, 4
    paste = AnosegDatasetMapper(cfg, True).cut_paste
    expected = {"drop": ("cow",), "min_area": 7.0, "keep_cut": True}
    assert {name: paste.outliers[0][name] for name in expected} == expected
    assert paste.closed_set == ["segments"]
    default = CutPasteOptions()
    for field in fields(default):
        assert getattr(default, field.name) != getattr(paste.options, field.name), field.name


def test_closed_set_segments_by_config_come_from_other_training_images(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for number in range(2):
        stored = np.full((60, 90), 3, np.uint8)  # road
        stored[20:40, 30:60] = 8  # car
        image = np.full((60, 90, 3), 100 + number, np.uint8)
        write_image(tmp_path / f"camvid/train/{number}.png", image)
        write_image(tmp_path / f"camvid/trainannot/{number}.png", stored)
    cutouts = np.zeros((40, 40, 4), np.uint8)
    cutouts[5:30, 5:30] = 255
    (tmp_path / "cutouts").mkdir()
    Image.fromarray(cutouts).save(tmp_path / "cutouts/a.png")
    cfg = get_cfg()
    add_anoseg_config(cfg)
    cfg.DATASETS.TRAIN, cfg.SEED = ("camvid_train",), 0
    node = cfg.INPUT.CUT_PASTE
    node.ENABLED, node.CUTOUTS, node.RATIO = True, "cutouts", 1.0
    node.CLOSED_SET_LEAST = node.CLOSED_SET_OBJECTS = 1
    paste = AnosegDatasetMapper(cfg, True).cut_paste
    (segments,) = paste.closed_set
    assert [segments.frame_of(index) for index in range(len(segments))] == [0, 1]
    assert segments.load(0).label == 13 and (segments.load(1).image == 101).all()


def test_a_training_mapper_without_augmentation_is_refused():
    with pytest.raises(ValueError, match="needs an augmentation"):
        AnosegDatasetMapper(is_train=True)
