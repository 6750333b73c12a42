"""Describe a dataset by the places of its files, the meaning of its labels and its size."""

import logging
import os
from dataclasses import dataclass

from anoseg_d2.data.dataset_files import FoundFiles, Layout, find_files
from anoseg_d2.data.label_rules import LabelRule
from anoseg_d2.utils.cli import printable
from anoseg_d2.utils.files import check_name

logger = logging.getLogger(__name__)

COUNT_VARIABLE = "ANOSEG_ALLOW_COUNT_MISMATCH"
_settings = {"allow_count_mismatch": False}
_warned_of: set[tuple[str, str]] = set()


def allow_count_mismatch(allow: bool) -> None:
    """Choose whether incomplete datasets cause a warning (True) or an error (False, the default).

    The environment variable ANOSEG_ALLOW_COUNT_MISMATCH=1 does the same from outside.
    """
    _settings["allow_count_mismatch"] = bool(allow)


@dataclass(frozen=True)
class Dataset:
    """A dataset that can be registered.

    Args:
        name: as registered.
        evaluator_type: "closed_set" (known classes, perhaps a pasted anomaly) or "anomaly".
        layouts: file layouts in which it is distributed.
        rule: maps label values to train ids.
        classes: names of the K known classes in train-id order; empty for anomaly sets.
        colors: RGB 0..255 of each.
        expected_images: number of images; None allows any number.
        present_classes: train ids over which mIoU is averaged; None for those that occur.
            A dataset that lacks some classes (CamVid) states them, so that its mIoU does not
            depend on which images are evaluated.
        origin: the card that describes it, for messages.
        component_track: "anomaly" or "obstacle"; chooses the size limits of the component figures
            of an anomaly set (SegmentMeIfYouCan, arXiv:2104.14812).
        split: which split of its source it is; "" where the source has only one.
    """

    name: str
    evaluator_type: str
    layouts: tuple[Layout, ...]
    rule: LabelRule
    classes: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()
    expected_images: int | None = None
    present_classes: tuple[int, ...] | None = None
    origin: str = "built in"
    component_track: str = "anomaly"
    split: str = ""

    def __post_init__(self):
        check_name(self.name, "dataset")  # it becomes the name of files and folders

    @property
    def anomaly_id(self) -> int | None:
        """Train id K of the pasted anomaly if the closed set has one, else None."""
        known = len(self.classes)
        has_anomaly = self.evaluator_type == "closed_set" and known in self.rule.train_ids()
        return known if has_anomaly else None

    def find(self, root) -> FoundFiles:
        """Find the files; see `dataset_files.find_files`."""
        return find_files(self.name, root, self.layouts)

    def load(self, root) -> list[dict]:
        """List the images for detectron2.

        Args:
            root: the datasets folder.
        Returns:
            one dict per image: file_name, sem_seg_file_name, image_id, label_rule.
        Raises:
            FileNotFoundError: no files were found.
            ValueError: two layouts at once, or files are missing and that is not allowed.
        """
        found = self.find(root)
        problems = self.problems(found)
        allowed = _settings["allow_count_mismatch"] or os.environ.get(COUNT_VARIABLE, "0") != "0"
        if problems and not allowed:
            raise ValueError(
                "\n  ".join([f"{self.name} is not complete:", *problems])
                + f"\nTo continue with the files found, set DATASETS.ALLOW_COUNT_MISMATCH True or "
                f"{COUNT_VARIABLE}=1."
            )
        for problem in problems:
            if (self.name, problem) not in _warned_of:  # a run loads a dataset several times
                _warned_of.add((self.name, problem))
                logger.warning(
                    "continuing with %s although it is INCOMPLETE: %s", self.name, problem
                )
        # Each has its rule: sets that a run trains on together may be coded differently.
        return [
            {
                "file_name": str(image),
                "sem_seg_file_name": str(label),
                "image_id": key,
                "label_rule": self.rule,
            }
            for key, image, label in found.pairs
        ]

    def problems(self, found: FoundFiles) -> list[str]:
        """List missing and superfluous files; empty if there are none."""
        problems = []
        if self.expected_images not in (None, len(found.pairs)):
            problems.append(
                f"{len(found.pairs)} images with labels in {found.folder}, "
                f"expected {self.expected_images}"
            )
        for what, paths in (
            ("images without label", found.images_without_label),
            ("labels without image", found.labels_without_image),
        ):
            if paths:
                some = [printable(path) for path in paths[:3]] + ["..."] * (len(paths) > 3)
                problems.append(f"{len(paths)} {what}: {', '.join(some)}")
        return problems

    def metadata(self) -> dict:
        """Return the entries for MetadataCatalog."""
        metadata = {
            "evaluator_type": self.evaluator_type,
            "ignore_label": 255,
            "label_rule": self.rule,
            "expected_images": self.expected_images,
        }
        if self.evaluator_type == "anomaly":
            metadata["component_track"] = self.component_track
        if self.evaluator_type == "closed_set":
            metadata.update(
                stuff_classes=list(self.classes),
                stuff_colors=[list(color) for color in self.colors],
                present_classes=self.present_classes,
            )
        if self.anomaly_id is not None:
            metadata["anomaly_id"] = self.anomaly_id
        return metadata
