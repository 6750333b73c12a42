"""Describe the public layouts, label rules and sizes of the road-anomaly benchmarks.

Layouts and splits: Lis et al. 2019 (RoadAnomaly, arXiv:1904.07595), Chan et al. 2021
(SegmentMeIfYouCan, arXiv:2104.14812), Blum et al. 2019 (Fishyscapes, arXiv:1904.03215), Pinggera
et al. 2016 (Lost and Found, arXiv:1609.04653), and the re-packs that public evaluation code uses.
"""

from dataclasses import replace

from anoseg_d2.data.dataset import Dataset
from anoseg_d2.data.dataset_files import Layout
from anoseg_d2.data.label_rules import LABEL_RULES

__all__ = ["ANOMALY_BENCHMARKS"]


def _repack(folder: str) -> Layout:
    """Return the layout of the collection that has images/N.* and labels_masks/N.* per set."""
    return Layout(
        "re-pack (images, labels_masks)",
        (f"Validation_Dataset/{folder}", folder),
        ("images/{id}.*",),
        ("labels_masks/{id}.*",),
    )


def _originals(*folders: str) -> Layout:
    """Return the layout of the collection that has original/*.* and labels/*.* per set."""
    return Layout(
        "re-pack (original, labels)",
        folders,
        ("original/{id}.*", "original/{id}_leftImg8bit.*", "original/{id}_rgb.*"),
        ("labels/{id}.*", "labels/{id}_labels.*"),
    )


def _track(folder: str, frames: str) -> Layout:
    """Return the layout of a SegmentMeIfYouCan track; only frames with public labels belong."""
    return Layout(
        "SegmentMeIfYouCan track",
        # Frame names identify a track, so its folder may have any name.
        (folder, f"SegmentMeIfYouCan/{folder}", f"smiyc/{folder}", "*", "Validation_Dataset/*"),
        ("images/{id}.*",),
        ("labels_masks/{id}_labels_semantic.png",),
        frames=frames,
    )


_ROAD_ANOMALY = (
    Layout(
        "RoadAnomaly release",
        ("RoadAnomaly_jpg", "RoadAnomaly", "road_anomaly"),
        ("frames/{id}.*",),
        ("frames/{id}.labels/labels_semantic.png",),
    ),
    _originals("road_anomaly", "RoadAnomaly"),
    _repack("RoadAnomaly"),
)

_ROAD_ANOMALY21 = (_track("dataset_AnomalyTrack", r"validation\d+"), _repack("RoadAnomaly21"))

# The authors withdrew 19 and 21..29, which are in the archive but show test scenes.
_OBSTACLE_FRAMES = r"validation_(?!19$|2[1-9]$)\d+"

_ROAD_OBSTACLE21 = (
    _track("dataset_ObstacleTrack", _OBSTACLE_FRAMES),
    _repack("RoadObsticle21"),  # spelled so in the collection
    _repack("RoadObstacle21"),
)

_FISHYSCAPES_PARENTS = ("", "fishyscapes", "Fishyscapes")

_LOST_AND_FOUND_FOLDERS = (
    *("lost_and_found", "LostAndFound", "lostandfound", "dataset_LostAndFound"),
)

_FISHY_LOST_AND_FOUND = (
    Layout(
        "Fishyscapes release",
        _FISHYSCAPES_PARENTS,
        (
            "laf_images/{id}_leftImg8bit.*",
            "laf_images/{id}leftImg8bit.*",
            # Fishyscapes offers only the labels for download; the images stay in Lost and Found.
            *(f"{tree}/leftImg8bit/*/*/{{id}}_leftImg8bit.*" for tree in _LOST_AND_FOUND_FOLDERS),
            "leftImg8bit/*/*/{id}_leftImg8bit.*",
        ),
        ("fishyscapes_lostandfound/????_{id}_labels.png",),
        spare_images=True,
    ),
    Layout(
        "Fishyscapes labels in a separate folder, official Lost and Found tree",
        ("",),
        tuple(f"{tree}/leftImg8bit/*/*/{{id}}_leftImg8bit.*" for tree in _LOST_AND_FOUND_FOLDERS),
        tuple(
            f"{parent}/fishyscapes_lostandfound/????_{{id}}_labels.png"
            for parent in _FISHYSCAPES_PARENTS
            if parent
        ),
        spare_images=True,
    ),
    _originals("fishyscapes/LostAndFound", "Fishyscapes/LostAndFound"),
    Layout(
        "SegmentMeIfYouCan's copy",
        ("", "SegmentMeIfYouCan", "smiyc"),
        (
            "dataset_FishyLAF/images/**/{id}_leftImg8bit.*",
            "dataset_FishyLAF/images/**/{id}.*",
            "dataset_LostAndFound/leftImg8bit/*/*/{id}_leftImg8bit.*",
            "lost_and_found/leftImg8bit/*/*/{id}_leftImg8bit.*",
        ),
        ("dataset_FishyLAF/labels/val/{id}_fishy-labels.png",),
        spare_images=True,
    ),
    _repack("FS_LostFound_full"),
)

_FISHY_STATIC = (
    *(
        Layout(
            f"Fishyscapes release v{version}",
            _FISHYSCAPES_PARENTS,
            (f"fs_static_images_v{version}/{{id}}_rgb.*",),
            (f"fs_val_v{version}/{{id}}_labels.png",),
        )
        for version in (1, 2, 3)
    ),
    _originals("fishyscapes/Static", "Fishyscapes/Static"),
    _repack("fs_static"),
)

_LOST_AND_FOUND = (
    Layout(
        "Lost and Found release",
        _LOST_AND_FOUND_FOLDERS,
        ("leftImg8bit/test/*/{id}_leftImg8bit.*",),
        ("gtCoarse/test/*/{id}_gtCoarse_labelIds.png",),
    ),
)

# SegmentMeIfYouCan leaves out the scenes whose obstacles are children or bicycles, because these
# are known classes. It also leaves out 17 frames that are all void, which gives 1043 images; here
# they are read, but they add no pixel to any figure.
_KNOWN_OBSTACLES = (
    *("15_Rechbergstr_Deckenpfronn", "01_Hanns_Klemm_Str_45_000006"),
    *("01_Hanns_Klemm_Str_45_000007", "10_Schlossberg_9_000004"),
)
_LOST_AND_FOUND_NO_KNOWN = tuple(
    replace(layout, frames=rf"(?!{'|'.join(_KNOWN_OBSTACLES)}).*") for layout in _LOST_AND_FOUND
)

# name -> layouts, label rule, number of images in the public validation set (Lost and Found: test)
_TABLE = {
    "road_anomaly": (_ROAD_ANOMALY, "road_anomaly", 60),
    "road_anomaly21": (_ROAD_ANOMALY21, "anomaly", 10),
    "road_obstacle21": (_ROAD_OBSTACLE21, "anomaly", 30),
    "fishyscapes_lostandfound": (_FISHY_LOST_AND_FOUND, "anomaly", 100),
    "fishyscapes_static": (_FISHY_STATIC, "anomaly", 30),
    "lost_and_found": (_LOST_AND_FOUND, "lost_and_found", 1203),
    "lost_and_found_no_known": (_LOST_AND_FOUND_NO_KNOWN, "lost_and_found", None),
}

# Sets of small obstacles on the road. Their components count from 50 predicted and 10 labelled
# pixels on; the anomaly track's limits, 500 and 100 pixels, would drop many of them.
_OBSTACLE_TRACK = ("road_obstacle21", "lost_and_found", "lost_and_found_no_known")

ANOMALY_BENCHMARKS: dict[str, Dataset] = {
    name: Dataset(
        name,
        "anomaly",
        layouts,
        LABEL_RULES[rule],
        expected_images=expected,
        component_track="obstacle" if name in _OBSTACLE_TRACK else "anomaly",
    )
    for name, (layouts, rule, expected) in _TABLE.items()
}
