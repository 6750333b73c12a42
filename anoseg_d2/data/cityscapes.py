"""Describe where the files of Cityscapes (Cordts et al., arXiv:1604.01685) are."""

from anoseg_d2.data.dataset import Dataset
from anoseg_d2.data.dataset_files import Layout
from anoseg_d2.data.label_rules import LABEL_RULES
from anoseg_d2.utils.constants import CITYSCAPES_CLASSES, CITYSCAPES_COLORS

__all__ = ["IMAGE_SUFFIX", "cityscapes_dataset", "cityscapes_layout"]

IMAGE_SUFFIX = "_leftImg8bit"


def cityscapes_layout(folder: str, split: str) -> Layout:
    """Return the official layout of one split.

    Args:
        folder: path below the datasets folder; holds leftImg8bit/ and gtFine/.
        split: such as `train`.
    """
    return Layout(
        "Cityscapes",
        (folder,),
        (f"leftImg8bit/{split}/*/{{id}}{IMAGE_SUFFIX}.*",),
        # Both codings hold the same labels; where both exist, the official ids are read.
        tuple(
            f"gtFine/{split}/*/{{id}}_gtFine_{code}.png" for code in ("labelIds", "labelTrainIds")
        ),
    )


def cityscapes_dataset(
    name: str, folder: str, split: str, rule: str, expected_images: int | None
) -> Dataset:
    """Describe one split in Cityscapes layout.

    Args:
        name: under which it will be registered.
        folder, split: as in `cityscapes_layout`.
        rule: key of `LABEL_RULES`.
        expected_images: how many there should be; None for any number.
    """
    return Dataset(
        name,
        "closed_set",
        (cityscapes_layout(folder, split),),
        LABEL_RULES[rule],
        CITYSCAPES_CLASSES,
        CITYSCAPES_COLORS,
        expected_images,
        split=split,
    )
