"""Cityscapes: its classes, their colours, and where its files are."""

from anoseg_d2.data.dataset import Dataset
from anoseg_d2.data.dataset_files import Layout
from anoseg_d2.data.label_rules import LABEL_RULES

__all__ = ["CITYSCAPES_CLASSES", "CITYSCAPES_COLORS"]


CITYSCAPES_CLASSES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign"),
    *("vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train"),
    *("motorcycle", "bicycle"),
)

CITYSCAPES_COLORS = (
    *((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153)),
    *((153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152)),
    *((70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100)),
    *((0, 80, 100), (0, 0, 230), (119, 11, 32)),
)


def _cityscapes(name: str, folder: str, split: str, rule: str, expected: int | None) -> Dataset:
    layout = Layout(
        "Cityscapes",
        (folder,),
        (f"leftImg8bit/{split}/*/{{id}}_leftImg8bit.*",),
        # one labelling in two codings: the ids are read where both lie there
        tuple(
            f"gtFine/{split}/*/{{id}}_gtFine_{code}.png" for code in ("labelIds", "labelTrainIds")
        ),
    )
    return Dataset(
        name,
        "closed_set",
        (layout,),
        LABEL_RULES[rule],
        CITYSCAPES_CLASSES,
        CITYSCAPES_COLORS,
        expected,
    )
