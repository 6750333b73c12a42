"""The miniature is worth training on, lies on disk as the real sets do, and is whole or absent."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from miniature import job as module
from miniature.drawing.anomalies import ANOMALIES
from miniature.drawing.objects import OBJECTS
from miniature.drawing.scene import ANOMALY_ID
from miniature.drawing.street import IDS
from miniature.job import (
    MANIFEST,
    MiniatureOptions,
    benchmark_files,
    make_miniature,
    read_manifest,
)
from miniature.sets import BENCHMARKS, draw_benchmark, draw_closed_set, draw_coco

from anoseg_d2.data.image_io import read_image, read_label

coco_api = pytest.importorskip("pycocotools.coco")

SMALL = MiniatureOptions(seed=5, train=8, val=3, coco=12, size=(256, 128))
SCRIPT = Path(__file__).parents[2] / "datasets" / "make_miniature.py"
OVERLAP = {1, 2, 3, 4, 6, 7, 8}
CLASS_IDS = {7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("miniature") / "mini"
    make_miniature(folder, SMALL, workers=1)
    return folder


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_same_bytes_with_any_number_of_workers(made, tmp_path, monkeypatch):
    some = [("train", 7), ("coco", 3), *((name, 1) for name in BENCHMARKS), ("val", 0), ("coco", 1)]
    monkeypatch.setattr(module, "_tasks", lambda options: some)
    make_miniature(tmp_path / "again", SMALL, workers=2)
    again, whole = contents(tmp_path / "again"), contents(made)
    drawn = [name for name in again if not name.endswith(".json")]
    assert len(drawn) == 2 * len(some) - 2  # a COCO image has no label file
    assert all(again[name] == whole[name] for name in drawn)


def test_another_seed_draws_other_pictures():
    one, other = (draw_closed_set(seed, "train", 0, (256, 128))[0] for seed in (0, 1))
    assert np.abs(one.astype(int) - other).mean() > 5


def test_train_and_val_share_no_picture():
    train, val = (draw_closed_set(0, split, 0, (256, 128))[0] for split in ("train", "val"))
    assert np.abs(train.astype(int) - val).mean() > 5


def test_a_picture_does_not_depend_on_how_many_are_drawn(made):
    name = "cityscapes/leftImg8bit/train/larkholm/larkholm_000004_000019_leftImg8bit.png"
    image, _ = draw_closed_set(SMALL.seed, "train", 4, SMALL.size)
    assert (read_image(made / name) == image).all()


def test_scenes_lie_as_cityscapes_does(made):
    for split, count in (("train", SMALL.train), ("val", SMALL.val)):
        images = sorted((made / "cityscapes/leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
        assert len(images) == count
        for image in images:
            city, stem = image.parent.name, image.name.removesuffix("_leftImg8bit.png")
            label = made / "cityscapes/gtFine" / split / city / f"{stem}_gtFine_labelIds.png"
            assert stem.startswith(f"{city}_")
            assert read_image(image).shape == (128, 256, 3)
            assert read_label(label).shape == (128, 256)


def test_scenes_hold_official_ids_and_no_anomaly(made):
    labels = [read_label(p) for p in made.glob("cityscapes/gtFine/*/*/*_labelIds.png")]
    found = set(np.unique(np.concatenate([label.ravel() for label in labels])).tolist())
    assert found <= set(IDS.values())
    assert ANOMALY_ID not in found
    assert all((label == IDS["out of roi"]).any() for label in labels)


def test_every_drawn_class_is_in_a_good_share_of_the_scenes():
    labels = [draw_closed_set(2, "train", i, (256, 128))[1] for i in range(14)]
    for class_id in CLASS_IDS & set(IDS.values()):
        share = np.mean([(label == class_id).sum() >= 40 for label in labels])
        assert share >= 0.2, f"label id {class_id} in {share:.0%} of the scenes"
    assert len(CLASS_IDS & set(IDS.values())) >= 12


def test_colour_alone_does_not_tell_the_class():
    images, labels = zip(*(draw_closed_set(2, "val", i, (256, 128)) for i in range(8)), strict=True)
    colors = np.concatenate([image[::2, ::2].reshape(-1, 3) for image in images]) // 32
    bins = colors @ np.array([64, 8, 1])
    ids = np.concatenate([label[::2, ::2].ravel() for label in labels])
    table = np.zeros((512, 256))
    np.add.at(table, (bins, ids), 1)
    # Even with the table of these very images, the best class for each colour is often wrong.
    assert table.max(1).sum() / table.sum() < 0.75


def test_coco_loads_and_its_figures_fit_the_masks(made):
    coco = coco_api.COCO(str(made / "coco/annotations/instances_train.json"))
    assert len(coco.imgs) == SMALL.coco
    for entry in coco.imgs.values():
        image = read_image(made / "coco/train" / entry["file_name"])
        assert image.shape == (entry["height"], entry["width"], 3)
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        ys, xs = np.nonzero(mask)
        assert mask.sum() == annotation["area"] > 0
        x, y, w, h = annotation["bbox"]
        drawn = (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)
        assert np.allclose((x, y, w, h), drawn, atol=1.01)


def test_coco_offers_every_kind_of_annotation():
    found = [a for i in range(16) for a in draw_coco(3, i)[1]]
    plain = [a for a in found if not a["iscrowd"]]
    assert any(isinstance(a["segmentation"], list) for a in plain)
    assert any(isinstance(a["segmentation"], dict) for a in plain)
    crowds = [a["segmentation"]["counts"] for a in found if a["iscrowd"]]
    assert crowds and all(isinstance(counts, list) for counts in crowds)
    assert any(a["area"] < 1000 for a in plain)
    unknown = [a for a in plain if a["area"] >= 1000 and a["category_id"] not in OVERLAP]
    assert len(unknown) >= 20


def test_a_polygon_keeps_the_mask():
    mask = np.zeros((40, 60), bool)
    mask[5:30, 10:50] = True
    mask[20:30, 10:20] = False
    from miniature.sets import _polygons
    from pycocotools import mask as coco_mask

    coded = coco_mask.merge(coco_mask.frPyObjects(_polygons(mask), *mask.shape))
    decoded = coco_mask.decode(coded).astype(bool)
    assert (decoded & mask).sum() / (decoded | mask).sum() > 0.97


def test_run_lengths_are_those_of_pycocotools():
    from miniature.sets import _run_lengths
    from pycocotools import mask as coco_mask

    for first in (0, 1):
        mask = np.random.default_rng(first).random((9, 7)) < 0.5
        mask[0, 0] = first
        coded = coco_mask.frPyObjects({"size": [9, 7], "counts": _run_lengths(mask)}, 9, 7)
        assert (coco_mask.decode(coded) == mask).all()


def test_overlap_categories_are_among_the_coco_objects(made):
    content = json.loads((made / "coco/annotations/instances_train.json").read_text())
    assert {c["id"] for c in content["categories"]} == set(OBJECTS) > OVERLAP


def test_anomalies_differ_in_kind_from_the_objects_offered_for_training():
    assert not set(ANOMALIES) & {name for name, _, _ in OBJECTS.values()}
    drawn = {draw for draw, _ in ANOMALIES.values()}
    assert not drawn & {draw for _, _, draw in OBJECTS.values()}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_labels(made, name):
    stored = {0, 2, 255} if name == "road_anomaly" else {0, 1, 255}
    shown = []
    for index in range(BENCHMARKS[name].images):
        image, label = (made / path for path in benchmark_files(name, index))
        assert read_image(image).shape == (128, 256, 3)
        values = read_label(label)
        assert values.shape == (128, 256)
        assert {0, 255} <= set(np.unique(values).tolist()) <= stored
        shown.append(np.isin(values, (1, 2)).any())
    assert 0 < sum(shown) < len(shown)
    assert sum(shown) >= 5


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_is_found_by_its_registered_layout(made, name, tmp_path, monkeypatch):
    catalog = pytest.importorskip("detectron2.data").DatasetCatalog
    from anoseg_d2.data.builtin import register_anomaly_benchmarks

    (tmp_path / "miniature").symlink_to(made)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_anomaly_benchmarks(str(tmp_path))
    try:
        found = catalog.get(f"miniature_{name}")
    finally:
        register_anomaly_benchmarks()
    expected = {benchmark_files(name, i) for i in range(BENCHMARKS[name].images)}
    base = tmp_path / "miniature"
    pairs = {(entry["file_name"], entry["sem_seg_file_name"]) for entry in found}
    assert {tuple(str(Path(p).relative_to(base)) for p in pair) for pair in pairs} == expected


def test_benchmarks_come_as_png_jpg_and_webp():
    files = {benchmark_files(name, i)[0] for name, p in BENCHMARKS.items() for i in range(p.images)}
    assert {Path(f).suffix for f in files} == {".png", ".jpg", ".webp"}


def test_obstacle_frames_avoid_the_withdrawn_numbers():
    frames = [
        int(Path(benchmark_files("road_obstacle21", i)[0]).stem.split("_")[1])
        for i in range(BENCHMARKS["road_obstacle21"].images)
    ]
    assert len(set(frames)) == len(frames)
    assert not set(frames) & {19, *range(21, 30)}


def test_off_the_road_is_void_on_the_obstacle_track():
    label = draw_benchmark(0, "road_obstacle21", 1, (256, 128)).label
    assert (label[:30] == 255).mean() > 0.9
    assert (label == 0).any()


def test_made_again_only_when_asked(made):
    before = (made / MANIFEST).stat().st_mtime_ns
    assert make_miniature(made, SMALL) is False
    assert (made / MANIFEST).stat().st_mtime_ns == before


def test_other_options_are_refused_and_named(made):
    other = MiniatureOptions(seed=6, train=8, val=4, coco=12, size=(256, 128))
    with pytest.raises(ValueError, match="seed 5 there, 6 asked for; val 3 there, 4 asked for"):
        make_miniature(made, other)


TINY = MiniatureOptions(train=1, val=1, coco=1, size=(128, 64))


@pytest.fixture
def few(monkeypatch):
    """One image per benchmark, so that whole makes are quick."""
    monkeypatch.setattr(module, "_tasks", lambda options: [("train", 0), ("val", 0), ("coco", 0)])


def test_overwrite_replaces_its_own_parts_only(few, tmp_path):
    make_miniature(tmp_path / "m", TINY)
    (tmp_path / "m/notes.txt").write_text("mine")
    other = MiniatureOptions(seed=1, train=1, val=1, coco=1, size=(128, 64))
    assert make_miniature(tmp_path / "m", other, overwrite=True)
    assert read_manifest(tmp_path / "m") == other.manifest()
    assert (tmp_path / "m/notes.txt").read_text() == "mine"


def test_a_lost_file_is_made_again(few, tmp_path):
    make_miniature(tmp_path / "m", TINY)
    whole = contents(tmp_path / "m")
    next((tmp_path / "m").rglob("*.jpg")).unlink()
    assert make_miniature(tmp_path / "m", TINY)
    assert contents(tmp_path / "m") == whole


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_leaves_nothing(tmp_path, workers):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_miniature(tmp_path / "m", TINY, workers=workers, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_move_is_finished(few, tmp_path, monkeypatch):
    make_miniature(tmp_path / "whole", TINY)
    rename = Path.rename

    def stop_at_coco(self, target):
        if self.name == "coco":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stop_at_coco)
    with pytest.raises(KeyboardInterrupt):
        make_miniature(tmp_path / "m", TINY)
    assert read_manifest(tmp_path / "m") is None
    monkeypatch.setattr(Path, "rename", rename)
    assert make_miniature(tmp_path / "m", TINY)
    assert contents(tmp_path / "m") == contents(tmp_path / "whole")


@pytest.mark.parametrize("overwrite", [False, True])
def test_folders_that_are_no_miniature_are_left_alone(tmp_path, overwrite):
    (tmp_path / "cityscapes").mkdir()
    (tmp_path / "cityscapes/real.png").write_text("real")
    with pytest.raises(ValueError, match="cityscapes but no miniature.json"):
        make_miniature(tmp_path, TINY, overwrite=overwrite)
    assert (tmp_path / "cityscapes/real.png").read_text() == "real"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"train": 0}, "train is 0"), ({"seed": -1}, "seed is -1"), ({"size": (64, 64)}, "64x64")],
)
def test_bad_options_name_the_key(options, message):
    with pytest.raises(ValueError, match=message):
        MiniatureOptions(**options)


def test_a_broken_manifest_is_named(tmp_path):
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match=MANIFEST):
        read_manifest(tmp_path)


def run_script(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_script_reuses_and_refuses(made):
    same = ["--train", 8, "--val", 3, "--coco", 12, "--size", "256x128", "--output", made]
    done = run_script("--seed", 5, *same)
    assert (done.returncode, "already there" in done.stdout) == (0, True)
    refused = run_script("--seed", 6, *same)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: ") and "Traceback" not in refused.stderr


def test_script_names_a_bad_size():
    done = run_script("--size", "wide")
    assert done.returncode == 2
    assert "'wide' is not a size" in done.stderr
