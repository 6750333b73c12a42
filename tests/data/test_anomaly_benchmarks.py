import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from anoseg_d2.data import builtin
from anoseg_d2.data.label_rules import load_label

IMAGE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
KNOWN, ANOMALY, NONE = 0, 1, 255
BENCHMARKS = {  # and their numbers of images
    "road_anomaly": 60,
    "road_anomaly21": 10,
    "road_obstacle21": 30,
    "fishyscapes_lostandfound": 100,
    "fishyscapes_static": 30,
    "lost_and_found": 1203,
}


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def label(anomaly=1, known=0, void=255):
    values = np.full((4, 6), known, dtype=np.uint8)
    values[0], values[1:3, 2:4] = void, anomaly
    return values


def rgb(values):
    return np.stack([values] * 3, axis=2)


# (benchmark, layout, image file, label file, label as stored)
FRAME = "04_Maurener_Weg_8_000000_000030"
RELEASES = {
    "road_anomaly, release": (
        "road_anomaly",
        "RoadAnomaly_jpg/frames/cow.jpg",
        "RoadAnomaly_jpg/frames/cow.labels/labels_semantic.png",
        label(2),
    ),
    "road_anomaly, release, rgb label": (
        "road_anomaly",
        "RoadAnomaly_jpg/frames/cow.webp",
        "RoadAnomaly_jpg/frames/cow.labels/labels_semantic.png",
        rgb(label(2)),
    ),
    "road_anomaly, originals": (
        "road_anomaly",
        "road_anomaly/original/cow.jpg",
        "road_anomaly/labels/cow.png",
        label(1),
    ),
    "road_anomaly, originals keeping 2": (
        "road_anomaly",
        "road_anomaly/original/cow.jpg",
        "road_anomaly/labels/cow.png",
        label(2),
    ),
    "road_anomaly, re-pack": (
        "road_anomaly",
        "Validation_Dataset/RoadAnomaly/images/0.jpg",
        "Validation_Dataset/RoadAnomaly/labels_masks/0.png",
        label(2),
    ),
    "road_anomaly21, track": (
        "road_anomaly21",
        "dataset_AnomalyTrack/images/validation0000.jpg",
        "dataset_AnomalyTrack/labels_masks/validation0000_labels_semantic.png",
        label(),
    ),
    "road_anomaly21, re-pack": (
        "road_anomaly21",
        "Validation_Dataset/RoadAnomaly21/images/0.png",
        "Validation_Dataset/RoadAnomaly21/labels_masks/0.png",
        label(),
    ),
    "road_obstacle21, track": (
        "road_obstacle21",
        "dataset_ObstacleTrack/images/validation_3.webp",
        "dataset_ObstacleTrack/labels_masks/validation_3_labels_semantic.png",
        label(),
    ),
    "road_obstacle21, re-pack": (
        "road_obstacle21",
        "Validation_Dataset/RoadObsticle21/images/0.webp",
        "Validation_Dataset/RoadObsticle21/labels_masks/0.png",
        label(),
    ),
    "fishyscapes_lostandfound, release": (
        "fishyscapes_lostandfound",
        f"laf_images/{FRAME}_leftImg8bit.png",
        f"fishyscapes_lostandfound/0000_{FRAME}_labels.png",
        label(),
    ),
    "fishyscapes_lostandfound, originals": (
        "fishyscapes_lostandfound",
        "fishyscapes/LostAndFound/original/7.png",
        "fishyscapes/LostAndFound/labels/7.png",
        label(),
    ),
    "fishyscapes_lostandfound, SMIYC": (
        "fishyscapes_lostandfound",
        f"dataset_LostAndFound/leftImg8bit/train/04_Maurener_Weg_8/{FRAME}_leftImg8bit.webp",
        f"dataset_FishyLAF/labels/val/{FRAME}_fishy-labels.png",
        label(),
    ),
    "fishyscapes_lostandfound, re-pack": (
        "fishyscapes_lostandfound",
        "Validation_Dataset/FS_LostFound_full/images/0.png",
        "Validation_Dataset/FS_LostFound_full/labels_masks/0.png",
        label(),
    ),
    "fishyscapes_static, release 1": (
        "fishyscapes_static",
        "fs_static_images_v1/0000_frankfurt_000000_rgb.png",
        "fs_val_v1/0000_frankfurt_000000_labels.png",
        label(),
    ),
    "fishyscapes_static, release 2": (
        "fishyscapes_static",
        "fs_static_images_v2/0000_frankfurt_000000_rgb.png",
        "fs_val_v2/0000_frankfurt_000000_labels.png",
        label(),
    ),
    "fishyscapes_static, originals": (
        "fishyscapes_static",
        "fishyscapes/Static/original/1.jpg",
        "fishyscapes/Static/labels/1.png",
        label(),
    ),
    "fishyscapes_static, re-pack": (
        "fishyscapes_static",
        "Validation_Dataset/fs_static/images/0.jpg",
        "Validation_Dataset/fs_static/labels_masks/0.png",
        label(),
    ),
    "lost_and_found, release": (
        "lost_and_found",
        f"lost_and_found/leftImg8bit/test/04_Maurener_Weg_8/{FRAME}_leftImg8bit.png",
        f"lost_and_found/gtCoarse/test/04_Maurener_Weg_8/{FRAME}_gtCoarse_labelIds.png",
        label(anomaly=17, known=1, void=0),
    ),
    "fishyscapes_lostandfound, release next to the Lost and Found tree": (
        "fishyscapes_lostandfound",
        f"lost_and_found/leftImg8bit/train/04_Maurener_Weg_8/{FRAME}_leftImg8bit.png",
        f"fishyscapes_lostandfound/0000_{FRAME}_labels.png",
        label(),
    ),
    "fishyscapes_lostandfound, labels in a folder of their own next to the tree": (
        "fishyscapes_lostandfound",
        f"LostAndFound/leftImg8bit/test/04_Maurener_Weg_8/{FRAME}_leftImg8bit.png",
        f"fishyscapes/fishyscapes_lostandfound/0000_{FRAME}_labels.png",
        label(),
    ),
    "road_anomaly, release with endings in capitals": (
        "road_anomaly",
        "RoadAnomaly_jpg/frames/cow.JPG",
        "RoadAnomaly_jpg/frames/cow.labels/labels_semantic.PNG",
        label(2),
    ),
    "road_anomaly21, track in a renamed folder": (
        "road_anomaly21",
        "my_anomalies/images/validation0003.png",
        "my_anomalies/labels_masks/validation0003_labels_semantic.png",
        label(),
    ),
    "road_obstacle21, track in the re-pack's folder": (
        "road_obstacle21",
        "Validation_Dataset/RoadObsticle21/images/validation_3.webp",
        "Validation_Dataset/RoadObsticle21/labels_masks/validation_3_labels_semantic.png",
        label(),
    ),
}


@pytest.fixture
def lay(tmp_path, monkeypatch):
    """Lay releases down in a folder whose name holds every name that could mislead."""
    root = tmp_path / "RoadAnomaly_fishyscapes_LostAndFound_road_anomaly"
    root.mkdir()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    monkeypatch.setenv("ANOSEG_ALLOW_COUNT_MISMATCH", "1")

    def lay_down(*releases, prefix=""):
        for release in releases:
            _, image, mask, values = RELEASES[release]
            write(root / prefix / image, IMAGE)
            write(root / prefix / mask, values)
        return root

    return lay_down


@pytest.mark.parametrize("release", RELEASES)
def test_every_public_layout_is_found_with_its_labels(lay, release):
    root = lay(release)
    name, image, mask, _ = RELEASES[release]
    (entry,) = DatasetCatalog.get(name)
    assert entry["file_name"] == str(root / image)
    assert entry["sem_seg_file_name"] == str(root / mask)
    rule = MetadataCatalog.get(name).label_rule
    assert np.array_equal(load_label(entry["sem_seg_file_name"], rule), label())


@pytest.mark.parametrize("release", [r for r in RELEASES if not r.startswith("lost_and_found")])
def test_a_set_of_any_size_is_read_by_the_same_layouts(lay, release, monkeypatch):
    monkeypatch.delenv("ANOSEG_ALLOW_COUNT_MISMATCH")  # any number of images is right there
    lay(release, prefix="small/benchmarks")
    assert len(DatasetCatalog.get(f"small_{RELEASES[release][0]}")) == 1
    with pytest.raises(FileNotFoundError):
        DatasetCatalog.get(RELEASES[release][0])


@pytest.mark.parametrize(
    "first, second",
    [
        ("road_anomaly, release", "road_anomaly, originals"),
        ("road_anomaly21, track", "road_anomaly21, re-pack"),
        ("fishyscapes_lostandfound, release", "fishyscapes_lostandfound, SMIYC"),
        ("fishyscapes_static, release 1", "fishyscapes_static, release 2"),
    ],
)
def test_two_layouts_at_once_are_refused(lay, first, second):
    lay(first, second)
    with pytest.raises(ValueError, match="2 copies or layouts were found"):
        DatasetCatalog.get(RELEASES[first][0])


def test_all_benchmarks_lie_side_by_side_undisturbed(lay):
    releases = [
        "road_anomaly, release",
        "road_anomaly21, track",
        "road_obstacle21, track",
        "fishyscapes_lostandfound, SMIYC",
        "fishyscapes_static, release 1",
    ]
    lay(*releases)
    for name, *_ in (RELEASES[release] for release in releases):
        assert len(DatasetCatalog.get(name)) == 1


def test_withdrawn_obstacle_frames_and_test_frames_are_left_out(lay):
    root = lay("road_obstacle21, track")
    for frame in ("validation_19", *(f"validation_{n}" for n in range(20, 31)), "gravel_axe_2"):
        write(root / f"dataset_ObstacleTrack/images/{frame}.webp", IMAGE)
        mask = root / f"dataset_ObstacleTrack/labels_masks/{frame}_labels_semantic.png"
        write(mask, label())
    ids = [entry["image_id"] for entry in DatasetCatalog.get("road_obstacle21")]
    assert ids == ["validation_20", "validation_3", "validation_30"]


def test_images_of_the_track_without_public_labels_and_colour_maps_do_not_disturb(lay):
    root = lay("road_anomaly21, track")
    write(root / "dataset_AnomalyTrack/images/zebra0000.jpg", IMAGE)
    color = "dataset_AnomalyTrack/labels_masks/validation0000_labels_semantic_color.png"
    write(root / color, IMAGE)
    assert len(DatasetCatalog.get("road_anomaly21")) == 1
    found = builtin.DATASETS["road_anomaly21"].find(root)
    assert not found.images_without_label and not found.labels_without_image


def test_a_folder_with_more_of_lost_and_found_than_fishyscapes_needs_is_fine(lay):
    root = lay("fishyscapes_lostandfound, release")
    write(root / "laf_images/01_Hanns_Klemm_Str_45_000000_000080_leftImg8bit.png", IMAGE)
    assert not builtin.DATASETS["fishyscapes_lostandfound"].find(root).images_without_label


@pytest.mark.parametrize("name", BENCHMARKS)
def test_another_number_of_images_is_refused_with_both_numbers(lay, name, monkeypatch):
    monkeypatch.delenv("ANOSEG_ALLOW_COUNT_MISMATCH")
    lay(next(release for release in RELEASES if RELEASES[release][0] == name))
    with pytest.raises(ValueError, match=f"1 images with labels .*expected {BENCHMARKS[name]}"):
        DatasetCatalog.get(name)


def test_sets_of_small_obstacles_follow_the_obstacle_track():
    tracks = {name: MetadataCatalog.get(name).component_track for name in BENCHMARKS}
    obstacles = {name for name, track in tracks.items() if track == "obstacle"}
    assert obstacles == {"road_obstacle21", "lost_and_found"}


def test_street_hazards_is_a_card_that_finds_the_unpacked_archive(lay):
    root = lay()
    write(root / "street_hazards/test/images/test/t5/300.png", IMAGE)
    mask = "street_hazards/test/annotations/test/t5/300.png"
    write(root / mask, label(anomaly=14, known=3, void=0))
    (entry,) = DatasetCatalog.get("street_hazards")
    rule = MetadataCatalog.get("street_hazards").label_rule
    assert np.array_equal(load_label(entry["sem_seg_file_name"], rule), label())
