"""Scores kept on disk give scikit-learn's figures, and leave nothing behind."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from scored_pixels import (
    FIGURES,
    SHAPES,
    counted,
    narrow,
    pixel_sets,
    reference,
    saturated,
    two_sided,
)

from anoseg_d2.evaluation.metrics import PixelMetrics


@pytest.mark.parametrize("make", SHAPES)
def test_exact_equals_scikit_learn(make, tmp_path):
    scores, labels = make(60_000, np.random.default_rng(10))
    labels[::17] = 255
    metrics = counted(scores, labels, parts=4, exact=True, spill_dir=tmp_path)
    found, truth = metrics.compute(), reference(scores, labels)
    for name in FIGURES:
        assert found[name] == pytest.approx(truth[name], abs=1e-12)
    files = [file for folder in tmp_path.iterdir() for file in folder.iterdir()]
    assert sum(f.stat().st_size for f in files) == 4 * (labels != 255).sum()


@given(pixel_sets())
@settings(max_examples=20, deadline=None)
def test_exact_equals_scikit_learn_on_ties_and_extremes(pixels):
    found, truth = counted(*pixels, exact=True).compute(), reference(*pixels)
    for name in FIGURES:
        assert found[name] == pytest.approx(truth[name], abs=1e-12)


def test_exact_merges_through_disk_and_leaves_nothing_behind(tmp_path):
    scores, labels = two_sided(5000, np.random.default_rng(11))
    whole = counted(scores, labels, exact=True, spill_dir=tmp_path)
    half = counted(scores[:2000], labels[:2000], exact=True, spill_dir=tmp_path)
    rest = counted(scores[2000:], labels[2000:], exact=True, spill_dir=tmp_path)
    merged = pickle.loads(pickle.dumps(half)).merge(rest)
    assert len(list(tmp_path.iterdir())) == 4
    assert {**merged.compute(), "images": 1} == whole.compute()
    del whole, half, rest, merged
    assert not list(tmp_path.iterdir())


def test_exact_says_what_it_takes_and_refuses_a_full_disk(tmp_path, caplog, monkeypatch):
    with caplog.at_level("INFO"):
        metrics = PixelMetrics(exact=True, spill_dir=tmp_path)
    assert "bytes per pixel" in caplog.text and str(tmp_path) in caplog.text
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(OSError, match="spill_dir"):
        metrics.update(*two_sided(100, np.random.default_rng(0)))
    del metrics
    assert not list(tmp_path.iterdir())


def test_a_pickled_store_names_the_way_out_once_its_files_are_gone(tmp_path):
    pixels = two_sided(100, np.random.default_rng(12))
    stored = pickle.dumps(counted(*pixels, exact=True))
    with pytest.raises(FileNotFoundError, match="until they are merged"):
        pickle.loads(stored)


def test_exact_takes_float64_among_float32(tmp_path):
    generator = np.random.default_rng(23)
    images = [two_sided(3000, generator), saturated(2000, generator), narrow(3000, generator)]
    metrics = PixelMetrics(exact=True, spill_dir=tmp_path)
    for image in images[1:]:
        metrics.update(*image)
    metrics.merge(counted(*images[0], exact=True, spill_dir=tmp_path))
    truth = reference(*(np.concatenate(part) for part in zip(*images, strict=True)))
    for _ in range(2):  # the files are sorted by the first reading
        found = metrics.compute()
        assert all(found[name] == pytest.approx(truth[name], abs=1e-12) for name in FIGURES)
        assert found["threshold95"] == truth["threshold"]
