"""Thumbnails and failure crops: what the report shows of single images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from anoseg_d2.evaluation.thumbnails import (
    FailureGallery,
    image_average_precision,
    load_thumbnails,
    save_thumbnails,
    thumbnail_name,
)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_average_precision_of_an_image_is_scikit_learns_with_ties(seed, values):
    rng = np.random.default_rng(seed)
    score = rng.integers(0, values, (5, 6)).astype(np.float32)
    label = rng.choice([0, 1, 255], (5, 6)).astype(np.uint8)
    label[0, 0] = 1
    counted = label != 255
    expected = average_precision_score(label[counted], score[counted])
    assert image_average_precision(score, label) == pytest.approx(expected)


def test_an_image_without_anomaly_has_no_average_precision():
    assert image_average_precision(np.zeros((2, 2), np.float32), np.zeros((2, 2), np.uint8)) is None


def scene():
    """A known pixel that scores high, one object that is seen, one that is not."""
    label = np.zeros((60, 80), np.uint8)
    label[5:10, 5:10] = label[40:45, 60:65] = 1
    score = np.zeros(label.shape, np.float32)
    score[5:10, 5:10], score[40:45, 60:65] = 0.9, 0.1
    score[30, 20] = 0.8
    score[10, 5] = 5.0  # next to an object: its blurred border, not a mistake
    return np.zeros((60, 80, 3), np.uint8), label, score


def test_the_gallery_finds_the_false_pixel_and_the_missed_object():
    photo, label, score = scene()
    gallery = FailureGallery(crop=16)
    gallery.update("a", photo, label, {"s": score})
    false, missed = gallery.entries["false", "s"][0], gallery.entries["missed", "s"][0]
    assert false["place"] == [30, 20] and false["value"] == pytest.approx(0.8)
    assert missed["place"] == [42, 62] and missed["value"] == pytest.approx(0.1)
    assert missed["label"].shape == (16, 16) and missed["label"].sum() == 25


def test_the_gallery_keeps_the_worst_whatever_the_split():
    photo, label, score = scene()
    values = [0.5, 0.9, 0.2, 0.7]
    one, two, three = (FailureGallery(keep=2, crop=16) for _ in range(3))
    for index, value in enumerate(values):
        varied = np.where(score == np.float32(0.8), np.float32(value), score)
        one.update(str(index), photo, label, {"s": varied})
        (two if index % 2 else three).update(str(index), photo, label, {"s": varied})
    two.merge(three)
    for gallery in (one, two):
        assert [e["image_id"] for e in gallery.entries["false", "s"]] == ["1", "3"]


def test_a_small_image_is_cropped_whole():
    gallery = FailureGallery(crop=192)
    gallery.update("a", *scene()[:2], {"s": scene()[2]})
    assert gallery.entries["false", "s"][0]["photo"].shape == (60, 80, 3)


def test_thumbnails_come_back(tmp_path):
    photo, label, score = scene()
    path = tmp_path / thumbnail_name("city/frame 1")
    save_thumbnails(path, photo, label, None, {"s": score, "rba_sum": -score}, long_side=40)
    stored = load_thumbnails(path)
    assert path.name == "city%2Fframe%201.npz"
    assert stored["photo"].shape == (30, 40, 3) and stored["sem_seg"] is None
    assert set(stored["scores"]) == {"s", "rba_sum"} and stored["scores"]["s"].shape == (30, 40)
    assert stored["label"].max() == 1 and stored["size"].tolist() == [60, 80]
