"""Define what the values in label files mean, in one table for all datasets.

A rule maps every value that a label file may hold to a train id. Other values are refused, so a
wrong folder, a colour map or a half-converted re-pack is noticed at once.
"""

from dataclasses import dataclass, field
from pathlib import PurePath

import numpy as np

from anoseg_d2.data.image_io import read_label
from anoseg_d2.utils.cli import printable
from anoseg_d2.utils.constants import PASTED_ID, VOID
from anoseg_d2.utils.ranges import shown

_NO_RULE = 253  # in lookup tables: a value that the rule does not cover


@dataclass(frozen=True)
class LabelRule:
    """Mapping from stored label values to train ids.

    Args:
        name: for messages.
        values: (stored value, train id) pairs; train ids 0..252, or 255 for void.
        endings: (ending of the file name, rule) pairs for releases whose label files state their
            coding in their name, such as `_gtFine_labelTrainIds.png`; an ending with a leading
            `/` must be the whole name. The first match wins; without one, `values` apply.
        exclusive: two stored values that must not occur in one map, because the presence of one
            changes what the other means; None if there is no such pair.
    """

    name: str
    values: tuple[tuple[int, int], ...]
    endings: tuple[tuple[str, "LabelRule"], ...] = ()
    exclusive: tuple[int, int] | None = None
    _table: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        ids = {*range(_NO_RULE), VOID}
        assert all(value >= 0 and train_id in ids for value, train_id in self.values), self.values
        # Looked up for every pixel of every label, which a dictionary would be too slow for.
        table = np.full(max([255, *dict(self.values)]) + 1, _NO_RULE, dtype=np.uint8)
        for value, train_id in self.values:
            table[value] = train_id
        object.__setattr__(self, "_table", table)

    def apply(self, stored: np.ndarray, where: str) -> np.ndarray:
        """Translate a label map.

        Args:
            stored: (H, W) integers as stored on disk.
            where: name of the label file; selects among `endings`, and appears in errors.
        Returns:
            (H, W) uint8 train ids, 255 for void.
        Raises:
            ValueError: `stored` holds values that the rule does not cover; the message lists them.
        """
        rule = self.for_file(where)
        # Labels of 8 bits, which nearly all are, cannot leave the table of at least 256 entries.
        inside = (stored >= 0) & (stored < len(rule._table)) if stored.dtype != np.uint8 else None
        if inside is not None and not inside.all():
            rule._refuse(stored[~inside], stored, where)
        label = np.take(rule._table, stored)
        unknown = label == _NO_RULE
        if unknown.any():
            rule._refuse(stored[unknown], stored, where)
        if rule.exclusive and all((stored == value).any() for value in rule.exclusive):
            rule._refuse(np.array(rule.exclusive), stored, where)
        return label

    def for_file(self, where: str) -> "LabelRule":
        """Return the rule for a label file of this name."""
        name = f"/{PurePath(where).name}".lower()  # some tools write endings in capitals
        return next((rule for ending, rule in self.endings if name.endswith(ending.lower())), self)

    def train_ids(self) -> tuple[int, ...]:
        """Return the train ids among `values`, sorted, without void."""
        return tuple(sorted({train_id for _, train_id in self.values} - {VOID}))

    def _refuse(self, wrong: np.ndarray, stored: np.ndarray, where: str) -> None:
        wrong, found = np.unique(wrong).tolist(), np.unique(stored).tolist()
        problem = "are not covered by the rule"
        if self.exclusive and wrong == list(self.exclusive):
            problem = "in one map contradict each other in the rule"
        allowed = sorted(value for value, _ in self.values)
        raise ValueError(
            f"{printable(where)}: label values {shown(wrong)} {problem} {self.name!r}. Found: "
            f"{shown(found)}. Allowed: {shown(allowed)}."
        )


def load_label(path, rule: LabelRule) -> np.ndarray:
    """Read a label file as train ids.

    Args:
        path: label image.
        rule: the dataset's rule, `MetadataCatalog.get(name).label_rule`.
    Returns:
        (H, W) uint8: closed sets 0..K-1, K for a pasted anomaly; anomaly sets 0 known, 1 anomaly;
        255 void.
    Raises:
        FileNotFoundError, ValueError: the file does not exist, is not an image, or holds values
            that the rule does not cover.
    """
    return rule.apply(read_label(path), str(path))


# Official Cityscapes ids of the 19 evaluated classes, in train-id order; every other official id
# (0..33) is void.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)
_CITYSCAPES_VALUES = tuple(
    (value, _CITYSCAPES_IDS.index(value) if value in _CITYSCAPES_IDS else VOID)
    for value in (*range(34), VOID)
)
_TRAIN_ID_VALUES = (*((value, value) for value in range(19)), (VOID, VOID))


def _cityscapes(name: str, extra: tuple) -> LabelRule:
    train_ids = LabelRule(f"{name}, labelTrainIds", _TRAIN_ID_VALUES + extra)
    endings = (("_labelTrainIds.png", train_ids),)
    return LabelRule(f"{name}, labelIds", _CITYSCAPES_VALUES + extra, endings)


# In the release's labels_semantic.png, 2 is the anomaly; 1 means road in the tool that drew the
# labels, but anomaly in re-packs, so its meaning is not guessed. Some re-packs keep the 2.
_ROAD_ANOMALY_RELEASE = LabelRule("RoadAnomaly release", ((0, 0), (2, 1), (VOID, VOID)))
_ROAD_ANOMALY = LabelRule(
    "RoadAnomaly re-pack",
    ((0, 0), (1, 1), (2, 1), (VOID, VOID)),
    endings=(("/labels_semantic.png", _ROAD_ANOMALY_RELEASE),),
    exclusive=(1, 2),
)

LABEL_RULES: dict[str, LabelRule] = {
    "cityscapes": _cityscapes("cityscapes", ()),
    "cityscapes_outlier": _cityscapes("cityscapes + anomaly", ((PASTED_ID, 19),)),
    "anomaly": LabelRule("0 known, 1 anomaly, 255 void", ((0, 0), (1, 1), (VOID, VOID))),
    "road_anomaly": _ROAD_ANOMALY,
    "lost_and_found": LabelRule(
        "Lost and Found labelIds",
        ((0, VOID), (1, 0), *((value, 1) for value in range(2, 201)), (VOID, VOID)),
    ),
}
