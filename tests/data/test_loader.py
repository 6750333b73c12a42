import itertools

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.utils import comm
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anoseg_d2.config import add_anoseg_config
from anoseg_d2.data import loader
from anoseg_d2.data.loader import (
    TrainingStream,
    build_test_loader,
    build_train_loader,
    training_dicts,
)


def take(stream, count):
    return list(itertools.islice(iter(stream), count))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 99))
def test_every_epoch_has_every_image_once_and_draws_count_up(size, batch_size, seed):
    items = sum(take(TrainingStream(size, batch_size, seed), 4 * size), [])
    assert [number for number, _ in items] == list(range(4 * size * batch_size))
    indices = [index for _, index in items]
    for start in range(0, 4 * size * batch_size, size):
        assert sorted(indices[start : start + size]) == list(range(size))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 30))
def test_a_resumed_stream_goes_on_where_it_stopped(size, batch_size, start):
    whole = take(TrainingStream(size, batch_size, 3), start + 5)
    assert take(TrainingStream(size, batch_size, 3, start=start), 5) == whole[start:]


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_processes_share_each_batch_without_overlap(world_size):
    alone = take(TrainingStream(7, 6, 1, rank=0, world_size=1), 10)
    parts = [
        take(TrainingStream(7, 6, 1, rank=r, world_size=world_size), 10) for r in range(world_size)
    ]
    assert [sum(batch, []) for batch in zip(*parts, strict=True)] == alone


def test_epochs_and_seeds_differ():
    stream = TrainingStream(50, 1, 0)
    assert not np.array_equal(stream.permutation(0), stream.permutation(1))
    assert not np.array_equal(stream.permutation(0), TrainingStream(50, 1, 1).permutation(0))


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="SOLVER.IMS_PER_BATCH.*5.*2 processes"):
        TrainingStream(7, 5, 0, rank=0, world_size=2)


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """Five frames for training and three for validation, in Cityscapes layout."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    generator = np.random.default_rng(0)
    for folder, split, count in (
        ("cityscapes", "train", 5),
        ("cityscapes", "val", 3),
        ("cityscapes_outlier", "train", 2),
    ):
        for number in range(count):
            stem = f"small/{folder}/{{}}/{split}/ulm/ulm_{number:06d}_000019_{{}}.png"
            image = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            label = np.full((24, 32), 7, np.uint8)
            for array, kind in (
                (image, ("leftImg8bit", "leftImg8bit")),
                (label, ("gtFine", "gtFine_labelIds")),
            ):
                path = tmp_path / stem.format(*kind)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    cfg = get_cfg()
    add_anoseg_config(cfg)
    cfg.DATASETS.TRAIN = ("small_train",)
    cfg.INPUT.CROP_SIZE = (16, 16)
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SEED = 11
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


def batches(loader, count):
    return [
        [(s["image_id"], s["image"], s["sem_seg"]) for s in batch]
        for batch in itertools.islice(iter(loader), count)
    ]


def same(first, second):
    return all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and torch.equal(a[2], b[2])
        for x, y in zip(first, second, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_workers_change_nothing(cfg):
    alone = batches(build_train_loader(cfg), 6)
    cfg.DATALOADER.NUM_WORKERS = 2
    assert same(alone, batches(build_train_loader(cfg), 6))


def test_a_resumed_loader_repeats_and_skips_nothing(cfg):
    whole = batches(build_train_loader(cfg), 6)
    assert same(whole[4:], batches(build_train_loader(cfg, start=4), 2))
    loader = build_train_loader(cfg)
    loader.batch_sampler.start = 4  # learned after the loader was built
    assert same(whole[4:], batches(loader, 2))


def test_the_same_image_looks_different_each_epoch(cfg):
    seen = {}
    for image_id, image, _ in sum(batches(build_train_loader(cfg), 5), []):
        seen.setdefault(image_id, []).append(image)
    assert all(len(images) == 2 and not torch.equal(*images) for images in seen.values())


def test_loading_leaves_the_global_random_state_alone(cfg):
    torch.manual_seed(0)
    np.random.seed(0)
    batches(build_train_loader(cfg), 2)
    ours = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    assert (torch.rand(1), np.random.rand()) == ours


def test_processes_test_every_image_once(cfg, monkeypatch):
    ids = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        ids.append([s["image_id"] for (s,) in build_test_loader(cfg, "small_val")])
    assert sorted(ids[0] + ids[1]) == [f"ulm_{n:06d}_000019" for n in range(3)]
    assert ids[0] and ids[1]


def test_more_processes_than_images_leave_some_without(cfg, monkeypatch):
    counts = []
    for rank in range(5):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: 5)
        counts.append(len(list(build_test_loader(cfg, "small_val"))))
    assert sum(counts) == 3 and max(counts) == 1


def test_a_small_test_set_starts_no_workers(cfg, monkeypatch):
    cfg.DATALOADER.NUM_WORKERS = 2
    assert build_test_loader(cfg, "small_val").num_workers == 0
    monkeypatch.setattr(loader, "IMAGES_PER_WORKER", 1)
    assert build_test_loader(cfg, "small_val").num_workers == 2


def test_training_sets_are_joined_in_order(cfg):
    cfg.DATASETS.TRAIN = ("small_train", "small_val")
    assert len(training_dicts(cfg)) == 8


@pytest.mark.parametrize(
    "change, message",
    [
        (["DATASETS.TRAIN", ()], "DATASETS.TRAIN is empty; known datasets: .*small_train"),
        (["DATASETS.TRAIN", ("cityscape",)], "unknown dataset 'cityscape'; known: .*CARDS"),
        (["DATASETS.TRAIN", ("road_anomaly",)], "'road_anomaly', which has no classes to learn"),
        (["MODEL.EOMT.NUM_CLASSES", 7], "NUM_CLASSES is 7, but 'small_train' has 19"),
        (["DATASETS.TRAIN", ("small_outlier_train",)], "ANOMALY_CLASS is False"),
        (["INPUT.CUT_PASTE.ENABLED", True], "CUT_PASTE.ENABLED pastes anomalies, but"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_read(cfg, change, message):
    cfg.merge_from_list(change)
    with pytest.raises(ValueError, match=message):
        build_train_loader(cfg)


def test_an_anomaly_class_without_examples_is_warned_of(cfg, caplog):
    cfg.MODEL.EOMT.ANOMALY_CLASS = True
    training_dicts(cfg)
    assert "ANOMALY_CLASS will not see an example" in caplog.text
    caplog.clear()
    cfg.DATASETS.TRAIN = ("small_outlier_train",)
    training_dicts(cfg)
    assert not caplog.text


def test_an_unknown_test_set_is_refused(cfg):
    with pytest.raises(ValueError, match="unknown dataset 'nope'"):
        build_test_loader(cfg, "nope")
