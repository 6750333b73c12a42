"""The miniature can be trained on, is read through its cards, and is whole or absent."""

from dataclasses import replace
from pathlib import Path

import make_miniature as script
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from miniature import job as module
from miniature.drawing.anomalies import LARGE, SMALL
from miniature.drawing.objects import OBJECTS
from miniature.drawing.street import IDS
from miniature.job import MANIFEST, MiniatureOptions, make_miniature, read_manifest
from miniature.sets import BENCHMARKS, draw_benchmark, draw_closed_set, draw_coco
from pycocotools.coco import COCO

from anoseg_d2.config import load_config
from anoseg_d2.data import builtin
from anoseg_d2.data.dataset_card import read_card
from anoseg_d2.data.image_io import read_image, read_label
from anoseg_d2.data.label_rules import load_label
from anoseg_d2.utils.constants import ANOMALY, KNOWN, PASTED_ID, VOID

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow  # drawing takes most of the time
OPTIONS = MiniatureOptions(seed=5, train=3, val=1, coco=4, size=(128, 64))
FEW = [("train", 2), ("coco", 3), ("road_anomaly", 1), ("fishyscapes_static", 1), ("coco", 1)]
OVERLAP = {1, 3}  # person and car, which the closed set knows


@pytest.fixture(scope="module", autouse=True)
def _small_benchmarks():
    """Four images per benchmark; the third shows no anomaly."""
    with pytest.MonkeyPatch.context() as patch:
        for name, plan in BENCHMARKS.items():
            patch.setitem(BENCHMARKS, name, replace(plan, images=4))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory, _small_benchmarks):
    folder = tmp_path_factory.mktemp("datasets") / "miniature"
    make_miniature(folder, OPTIONS, workers=1)
    return folder


@pytest.fixture
def few(monkeypatch):
    """A few images of each set, so that making them is quick."""
    monkeypatch.setattr(module, "list_tasks", lambda options: FEW)


@pytest.fixture
def cards(made, monkeypatch):
    """Register the cards of the quickstart configs on what was made."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(made.parent))
    monkeypatch.chdir(ROOT)
    names = builtin.register_cards(load_config("configs/quickstart/arcface_full.yaml"))
    yield names
    for name in names:
        builtin.unregister_dataset(name)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_same_bytes_with_any_number_of_workers(made, few, tmp_path):
    make_miniature(tmp_path / "again", OPTIONS, workers=2)
    again, whole = contents(tmp_path / "again"), contents(made)
    drawn = [name for name in again if not name.endswith(".json")]
    assert len(drawn) == 2 * len(FEW) - 2  # a COCO image has no label file
    assert all(again[name] == whole[name] for name in drawn)


def test_seeds_and_splits_share_no_picture():
    size = (128, 64)
    first = draw_closed_set(0, "train", 0, size)[0].astype(int)
    for seed, split, index in ((1, "train", 0), (0, "val", 0), (0, "train", 1)):
        assert np.abs(first - draw_closed_set(seed, split, index, size)[0]).mean() > 5


def test_a_picture_does_not_depend_on_how_many_are_drawn(made):
    name = "cityscapes/leftImg8bit/train/tannwald/tannwald_000002_000019_leftImg8bit.png"
    image, _ = draw_closed_set(OPTIONS.seed, "train", 2, OPTIONS.size)
    assert (read_image(made / name) == image).all()


def test_every_drawn_class_is_in_a_good_fraction_of_the_scenes():
    labels = [draw_closed_set(2, "train", i, (128, 64))[1] for i in range(14)]
    assert {int(value) for label in labels for value in np.unique(label)} <= set(IDS.values())
    for name, value in IDS.items():
        if name not in ("ego vehicle", "out of roi", "static"):
            fraction = np.mean([(label == value).sum() >= 10 for label in labels])
            assert fraction >= 0.2, f"{name} in {fraction:.0%} of the scenes"


def test_colour_alone_does_not_give_the_class_away():
    images, labels = zip(*(draw_closed_set(2, "val", i, (128, 64)) for i in range(8)), strict=True)
    colors = np.concatenate([image.reshape(-1, 3) for image in images]) // 32
    table = np.zeros((512, 256))
    np.add.at(
        table, (colors @ np.array([64, 8, 1]), np.concatenate([x.ravel() for x in labels])), 1
    )
    # Even with the table of these very images, the best class for each colour is often wrong.
    assert table.max(1).sum() / table.sum() < 0.75


def test_coco_loads_and_its_figures_fit_the_masks(made):
    coco = COCO(str(made / "coco/annotations/instances_train.json"))
    assert len(coco.imgs) == OPTIONS.coco
    assert {c["id"] for c in coco.cats.values()} == set(OBJECTS) > OVERLAP
    for entry in coco.imgs.values():
        image = read_image(made / "coco/train" / entry["file_name"])
        assert image.shape == (entry["height"], entry["width"], 3)
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        ys, xs = np.nonzero(mask)
        assert mask.sum() == annotation["area"] > 0
        drawn = (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)
        assert np.allclose(annotation["bbox"], drawn, atol=1.01)


def test_coco_offers_polygons_run_lengths_and_small_objects():
    found = [a for i in range(12) for a in draw_coco(3, i)[1]]
    assert {type(a["segmentation"]) for a in found} == {list, dict}
    assert any(a["area"] < 1000 for a in found)
    unknown = [a for a in found if a["area"] >= 1000 and a["category_id"] not in OVERLAP]
    assert len(unknown) >= 20


def test_anomalies_differ_in_kind_from_the_objects_offered_for_training():
    anomalies = {**SMALL, **LARGE}
    assert not set(anomalies) & {name for name, _, _ in OBJECTS.values()}
    assert not set(anomalies.values()) & {draw for _, _, draw in OBJECTS.values()}


def test_the_cards_of_the_configs_find_every_file(made, cards):
    counts = {"miniature_train": OPTIONS.train, "miniature_val": OPTIONS.val}
    counts.update({f"miniature_{name}": plan.images for name, plan in BENCHMARKS.items()})
    assert set(cards) == {*counts, "miniature_outlier_train"}
    assert {name: len(DatasetCatalog.get(name)) for name in counts} == counts


def test_the_configs_use_only_what_their_cards_register(cards, monkeypatch):
    for path in sorted((ROOT / "configs/quickstart").glob("*.yaml")):
        if path.name != "recipe.yaml":
            cfg = load_config(str(path))
            assert {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} <= set(cards), path.name


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_labels(cards, name):
    shown = []
    for entry in DatasetCatalog.get(f"miniature_{name}"):
        label = load_label(entry["sem_seg_file_name"], entry["label_rule"])
        assert read_image(entry["file_name"]).shape == (*label.shape, 3) == (64, 128, 3)
        assert {KNOWN, VOID} <= set(np.unique(label).tolist()) <= {KNOWN, ANOMALY, VOID}
        shown.append((label == ANOMALY).any())
    assert shown == [True, True, False, True]


def test_scenes_hold_no_anomaly(made):
    labels = [read_label(p) for p in made.glob("cityscapes/gtFine/*/*/*_labelIds.png")]
    assert len(labels) == OPTIONS.train + OPTIONS.val
    assert not any((label == PASTED_ID).any() for label in labels)


def test_only_the_drawn_obstacle_track_counts_components_as_small_obstacles():
    card = Path(__file__).parents[2] / "datasets/miniature/cards/benchmarks.yaml"
    tracks = {dataset.name: dataset.component_track for dataset in read_card(card)}
    assert len(tracks) == 5
    obstacles = [name for name, track in tracks.items() if track == "obstacle"]
    assert obstacles == ["miniature_road_obstacle21"]


def test_off_the_road_is_void_on_the_obstacle_track():
    _, label = draw_benchmark(0, "road_obstacle21", 1, (256, 128))
    assert (label[:30] == VOID).mean() > 0.9
    assert (label == KNOWN).any()


def test_made_again_only_when_asked(made):
    before = (made / MANIFEST).stat().st_mtime_ns
    assert make_miniature(made, OPTIONS) is False
    assert (made / MANIFEST).stat().st_mtime_ns == before


def test_other_options_are_refused_and_named(made):
    other = MiniatureOptions(seed=6, train=3, val=4, coco=4, size=(128, 64))
    with pytest.raises(ValueError, match="seed 5.*6.*val 1.*4"):
        make_miniature(made, other)


def test_overwrite_replaces_a_miniature_of_other_options(few, tmp_path):
    make_miniature(tmp_path / "m", OPTIONS)
    other = MiniatureOptions(seed=1, train=3, val=1, coco=4, size=(128, 64))
    assert make_miniature(tmp_path / "m", other, overwrite=True)
    assert read_manifest(tmp_path / "m") == other.manifest()


def test_a_lost_file_is_made_again(few, tmp_path):
    make_miniature(tmp_path / "m", OPTIONS)
    whole = contents(tmp_path / "m")
    next((tmp_path / "m").rglob("*.jpg")).unlink()
    assert make_miniature(tmp_path / "m", OPTIONS)
    assert contents(tmp_path / "m") == whole


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_leaves_nothing(tmp_path, workers):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_miniature(tmp_path / "m", OPTIONS, workers=workers, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_not_a_miniature_is_left_alone(tmp_path, overwrite):
    (tmp_path / "cityscapes").mkdir()
    (tmp_path / "cityscapes/real.png").write_text("real")
    with pytest.raises(ValueError, match="has no miniature.json"):
        make_miniature(tmp_path, OPTIONS, overwrite=overwrite)
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


def test_script_reuses_and_refuses(made, capsys):
    same = ["--train", "3", "--val", "1", "--coco", "4", "--size", "128x64", "--output", str(made)]
    assert script.main(["--seed", "5", *same]) == 0
    assert "already there" in capsys.readouterr().out
    assert script.main(["--seed", "6", *same]) == 2
    assert "Replace it with --overwrite" in capsys.readouterr().err


def test_script_names_a_bad_size(capsys):
    with pytest.raises(SystemExit, match="2"):
        script.main(["--size", "wide"])
    assert "'wide' is not a size" in capsys.readouterr().err


def test_a_size_that_no_machine_draws_is_refused():
    with pytest.raises(ValueError, match="size"):
        MiniatureOptions(size=(1_000_000, 1_000_000))
