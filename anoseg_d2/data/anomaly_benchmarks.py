"""The road-anomaly benchmarks: every public layout, the rule of their labels, their sizes.

Layouts and splits: Lis et al. 2019 (RoadAnomaly, arXiv:1904.07595), Chan et al. 2021
(SegmentMeIfYouCan, arXiv:2104.14812), Blum et al. 2019 (Fishyscapes, arXiv:1904.03215), Pinggera
et al. 2016 (Lost and Found, arXiv:1609.04653), and the re-packs that public evaluation code uses.
"""

from anoseg_d2.data.dataset import Dataset
from anoseg_d2.data.dataset_files import Layout
from anoseg_d2.data.label_rules import LABEL_RULES

__all__ = ["ANOMALY_BENCHMARKS"]


def _repack(folder: str) -> Layout:
    """The collection in which each benchmark has images/N.* and labels_masks/N.*."""
    return Layout(
        "re-pack (images, labels_masks)",
        (f"Validation_Dataset/{folder}", folder),
        ("images/{id}.*",),
        ("labels_masks/{id}.*",),
    )


def _originals(*folders: str) -> Layout:
    """The collection in which each benchmark has original/*.* and labels/*.*."""
    return Layout(
        "re-pack (original, labels)",
        folders,
        ("original/{id}.*", "original/{id}_leftImg8bit.*", "original/{id}_rgb.*"),
        ("labels/{id}.*", "labels/{id}_labels.*"),
    )


def _track(folder: str, frames: str) -> Layout:
    """A track of SegmentMeIfYouCan; its images without public labels are no part of it."""
    return Layout(
        "SegmentMeIfYouCan track",
        (folder, f"SegmentMeIfYouCan/{folder}", f"smiyc/{folder}"),
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

# 19 and 21..29 were withdrawn by the authors: test scenes beside them in the archive
_OBSTACLE_FRAMES = r"validation_(?!19$|2[1-9]$)\d+"

_ROAD_OBSTACLE21 = (
    _track("dataset_ObstacleTrack", _OBSTACLE_FRAMES),
    _repack("RoadObsticle21"),  # spelled so in the collection
    _repack("RoadObstacle21"),
)

_FISHYSCAPES_PARENTS = ("", "fishyscapes", "Fishyscapes")

_FISHY_LOST_AND_FOUND = (
    Layout(
        "Fishyscapes release",
        _FISHYSCAPES_PARENTS,
        ("laf_images/{id}_leftImg8bit.*", "laf_images/{id}leftImg8bit.*"),
        ("fishyscapes_lostandfound/????_{id}_labels.png",),
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
        for version in (1, 2)
    ),
    _originals("fishyscapes/Static", "Fishyscapes/Static"),
    _repack("fs_static"),
)

_LOST_AND_FOUND = (
    Layout(
        "Lost and Found release",
        ("lost_and_found", "LostAndFound", "lostandfound", "dataset_LostAndFound"),
        ("leftImg8bit/test/*/{id}_leftImg8bit.*",),
        ("gtCoarse/test/*/{id}_gtCoarse_labelIds.png",),
    ),
)

# name -> layouts, label rule, images of the public validation (Lost and Found: test) set
_TABLE = {
    "road_anomaly": (_ROAD_ANOMALY, "road_anomaly", 60),
    "road_anomaly21": (_ROAD_ANOMALY21, "anomaly", 10),
    "road_obstacle21": (_ROAD_OBSTACLE21, "anomaly", 30),
    "fishyscapes_lostandfound": (_FISHY_LOST_AND_FOUND, "anomaly", 100),
    "fishyscapes_static": (_FISHY_STATIC, "anomaly", 30),
    "lost_and_found": (_LOST_AND_FOUND, "lost_and_found", 1203),
}

ANOMALY_BENCHMARKS: dict[str, Dataset] = {
    name: Dataset(name, "anomaly", layouts, LABEL_RULES[rule], expected_images=expected)
    for name, (layouts, rule, expected) in _TABLE.items()
}
