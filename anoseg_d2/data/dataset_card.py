"""Read dataset cards: small yaml files that describe a dataset without Python.

`datasets/README.md` explains every key, and `cards/` has the card of each shipped set:
`camvid.yaml` has splits and classes, `street_hazards.yaml` is an anomaly set, and
`road_anomaly.yaml` lists several layouts, of which only one may be on disk.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from anoseg_d2.data.dataset import Dataset
from anoseg_d2.data.dataset_files import Layout, placeholders
from anoseg_d2.data.label_rules import LABEL_RULES, LabelRule
from anoseg_d2.utils.config_files import load_yaml
from anoseg_d2.utils.constants import CITYSCAPES_CLASSES, CITYSCAPES_COLORS, VOID
from anoseg_d2.utils.files import check_name
from anoseg_d2.utils.ranges import shown
from anoseg_d2.utils.visualization import class_palette

CARDS_FOLDER = Path(__file__).parent / "cards"
MAX_CLASSES = 252  # train ids 253 to 255 have other meanings
_LAYOUT_KEYS = ("name", "root", "images", "labels", "frames", "spare_images")
_FILE_KEYS = ("images", "labels", "frames", "expected_images")
_ABOUT_KEYS = ("description", "licence", "source")  # for readers
_COMMON_KEYS = ("name", "kind", "root", "splits", "layouts", *_FILE_KEYS, *_ABOUT_KEYS)
_KINDS = {
    "closed_set": ("classes", "label_values", "void", "anomaly"),
    "anomaly": ("label_values", "known", "anomaly", "void", "component_track"),
}
# Keys of `LABEL_RULES` that a card of a kind may name as its label_values.
_NAMED_RULES = {
    "closed_set": ("cityscapes", "cityscapes_outlier"),
    "anomaly": ("road_anomaly", "lost_and_found"),
}


def shipped_cards() -> list[str]:
    """Return the names of the cards that come with the package."""
    return sorted(path.stem for path in CARDS_FOLDER.glob("*.yaml"))


def find_card(card) -> Path:
    """Return the file of a card.

    Args:
        card: path of a yaml file, or the name of a shipped card.
    Raises:
        FileNotFoundError: it is neither.
    """
    for path in (Path(card).expanduser(), CARDS_FOLDER / f"{card}.yaml"):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"no dataset card {str(card)!r}: give a yaml file or one of {', '.join(shipped_cards())}"
    )


def read_card(path) -> list[Dataset]:
    """Read a card.

    Args:
        path: yaml file.
    Returns:
        the datasets it describes: one, or one per split.
    Raises:
        ValueError: it is not yaml or violates the schema; the message names the file and key, and
            what is allowed.
    """
    return _Card(Path(path)).datasets()


class _Card:
    """A parsed card, whose errors name the file and the key."""

    def __init__(self, path: Path):
        self.path = path
        self.card = load_yaml(path)
        if not isinstance(self.card, Mapping):
            raise ValueError(f"{path}: a card is a mapping of keys, found {shown(self.card)}")

    def datasets(self) -> list[Dataset]:
        kind = self.card.get("kind", "closed_set")
        if not isinstance(kind, str) or kind not in _KINDS:
            self.fail("kind", kind, " or ".join(_KINDS))
        self.check_keys(self.card, (*_COMMON_KEYS, *_KINDS[kind]))
        splits = self.card.get("splits", {None: self.card})
        if not isinstance(splits, Mapping) or not splits:
            self.fail("splits", splits, "a mapping of split names to images and labels")
        # What is stated further in must not be stated here too.
        for outer, keys in (("splits", (*_FILE_KEYS, "layouts")), ("layouts", _LAYOUT_KEYS[1:5])):
            for key in keys if outer in self.card else ():
                if key in self.card:
                    self.fail(key, self.card[key], f"inside each of the `{outer}`")
        return [self.dataset(kind, split, entry) for split, entry in splits.items()]

    def dataset(self, kind: str, split, entry) -> Dataset:
        """Return the dataset of one split, or of the whole card for the split None."""
        name, where = self.text("name"), "" if split is None else f"splits.{split}."
        for key, given in (("name", name), ("splits", "all" if split is None else split)):
            try:
                check_name(str(given), "dataset")  # both become parts of paths
            except ValueError as error:
                self.fail(key, given, str(error))
        if where:
            keys = (*_FILE_KEYS, "component_track")[: None if kind == "anomaly" else -1]
            if not isinstance(entry, Mapping):
                self.fail(where[:-1], entry, f"keys {', '.join(keys)}")
            self.check_keys(entry, keys, where)
            name = f"{name}_{split}"
        expected = entry.get("expected_images")
        if expected is not None and (not _is_int(expected) or expected < 1):
            self.fail(f"{where}expected_images", expected, "a positive integer")
        if kind == "anomaly":
            track = entry.get("component_track", self.card.get("component_track", "anomaly"))
            if track not in ("anomaly", "obstacle"):
                self.fail(f"{where}component_track", track, "anomaly or obstacle")
            meaning = {"rule": self.anomaly_rule(name), "component_track": track}
        else:
            classes, colors = self.classes()
            rule = self.closed_rule(name, classes)
            # A mean over classes that a set never labels would depend on the images chosen.
            present = tuple(train_id for train_id in rule.train_ids() if train_id < len(classes))
            meaning = {"rule": rule, "classes": classes, "colors": colors}
            meaning["present_classes"] = present if len(present) < len(classes) else None
        return Dataset(
            name=name,
            evaluator_type=kind,
            layouts=self.layouts(entry, where),
            expected_images=expected,
            origin=str(self.path),
            split="" if split is None else str(split),
            **meaning,
        )

    def layouts(self, entry: Mapping, where: str) -> tuple[Layout, ...]:
        """Return every form in which the files may be on disk."""
        if "layouts" not in self.card:
            return (self.layout(entry, where, self.card.get("root"), "root"),)
        given = self.card["layouts"]
        mappings = isinstance(given, list) and all(isinstance(one, Mapping) for one in given)
        if not mappings or not given:
            self.fail("layouts", given, f"a list of mappings with {', '.join(_LAYOUT_KEYS)}")
        made = []
        for number, one in enumerate(given):
            place = f"layouts.{number}."
            self.check_keys(one, _LAYOUT_KEYS, place)
            made.append(self.layout(one, place, one.get("root"), f"{place}root"))
        return tuple(made)

    def layout(self, entry: Mapping, where: str, root, root_key: str) -> Layout:
        roots = root if isinstance(root, list) else [root]
        blank = isinstance(root, str) and not root.strip()
        if not roots or blank or not all(isinstance(folder, str) for folder in roots):
            self.fail(root_key, root, "a folder below DETECTRON2_DATASETS, or a list of folders")
        # A card next to its images works wherever the folder is moved.
        here = self.path.absolute().parent
        roots = [str(here / r) if r == "." or r.startswith("./") else r for r in roots]
        images, labels = (self.patterns(entry, key, where) for key in ("images", "labels"))
        if len({frozenset(placeholders(pattern)) for pattern in images + labels}) > 1:
            allowed = f"the same placeholders as images ({images})"
            self.fail(f"{where}labels", labels, allowed)
        frames = entry.get("frames", ".*")
        try:
            re.compile(frames)
        except (re.error, TypeError):
            self.fail(f"{where}frames", frames, "a regular expression that whole ids match")
        spare = entry.get("spare_images", False)
        if not isinstance(spare, bool):
            self.fail(f"{where}spare_images", spare, "true or false")
        # Outside of `layouts`, the name is that of the set.
        name = entry.get("name") if "layouts" in self.card else None
        name = str(name or f"card {self.path.name}")
        return Layout(name, tuple(roots), images, labels, frames, spare)

    def patterns(self, entry: Mapping, key: str, where: str) -> tuple[str, ...]:
        given = entry.get(key)
        patterns = [given] if isinstance(given, str) else given
        if not isinstance(patterns, list) or not patterns or not all(map(_is_pattern, patterns)):
            allowed = "a pattern below root with a placeholder, such as 'images/{id}.*', or a list"
            self.fail(f"{where}{key}", given, allowed)
        return tuple(patterns)

    def classes(self) -> tuple[tuple[str, ...], tuple]:
        given = self.card.get("classes")
        if given == "cityscapes":
            return CITYSCAPES_CLASSES, CITYSCAPES_COLORS
        good = isinstance(given, list) and given and all(isinstance(c, str) for c in given)
        if not good or len(set(given)) < len(given) or len(given) > MAX_CLASSES:
            allowed = f"`cityscapes`, or a list of 1 to {MAX_CLASSES} different class names"
            self.fail("classes", given, allowed)
        # Cityscapes' colours would suggest its classes.
        palette = class_palette(len(given), colors=())
        return tuple(given), tuple(map(tuple, palette[: len(given)].tolist()))

    def closed_rule(self, name: str, classes: tuple[str, ...]) -> LabelRule:
        given = self.card.get("label_values")
        if given in _NAMED_RULES["closed_set"]:
            if classes != CITYSCAPES_CLASSES:
                allowed = f"cityscapes, because label_values is {given!r}"
                self.fail("classes", list(classes), allowed)
            return LABEL_RULES[given]
        if not isinstance(given, Mapping) or not given:
            named = " or ".join(_NAMED_RULES["closed_set"])
            allowed = f"a mapping of label value to train id or class name, or {named}"
            self.fail("label_values", given, allowed)
        values = {}
        for value, known in given.items():
            train_id = classes.index(known) if known in classes else known
            if not _is_int(train_id) or not 0 <= train_id < len(classes):
                allowed = f"a train id 0..{len(classes) - 1} or a class name ({', '.join(classes)})"
                self.fail(f"label_values.{value}", known, allowed)
            values[self.value(value, "label_values")] = train_id
        return self.rule(name, values, {"anomaly": len(classes), "void": VOID})

    def anomaly_rule(self, name: str) -> LabelRule:
        given = self.card.get("label_values")
        if given is None:
            return self.rule(name, {}, {"known": 0, "anomaly": 1, "void": VOID})
        twice = [key for key in ("known", "anomaly", "void") if key in self.card]
        if given not in _NAMED_RULES["anomaly"] or twice:
            allowed = f"{' or '.join(_NAMED_RULES['anomaly'])}; or known, anomaly and void instead"
            self.fail("label_values", given, allowed)
        return LABEL_RULES[given]

    def rule(self, name: str, values: dict[int, int], keys: dict[str, int]) -> LabelRule:
        """Make the label rule of `values` and those of further keys.

        Args:
            name: of the dataset.
            values: label value -> train id, changed in place.
            keys: key of the card -> train id of all its values.
        """
        used = ["label_values"] if values else []
        for key, train_id in keys.items():
            given = self.card.get(key)
            if given is None and ("known" not in keys or key == "void"):
                given = []
            for value in given if isinstance(given, list) else [given]:
                if self.value(value, key) in values:
                    self.fail(key, value, f"a value that {' or '.join(used)} does not use")
                values[value] = train_id
            used.append(key)
        return LabelRule(f"{name} ({self.path.name})", tuple(sorted(values.items())))

    def value(self, given, key: str) -> int:
        if not _is_int(given) or not 0 <= given <= 65535:
            self.fail(key, given, "label values: integers 0..65535")
        return given

    def text(self, key: str) -> str:
        given = self.card.get(key)
        if not isinstance(given, str) or not given.strip():
            self.fail(key, given, "a string that is not empty")
        return given

    def check_keys(self, entry: Mapping, allowed: tuple[str, ...], where: str = "") -> None:
        for key in entry:
            if key not in allowed:
                self.fail(f"{where}{key}", entry[key], f"one of the keys {', '.join(allowed)}")

    def fail(self, key: str, found, allowed: str):
        """Raise the schema error of one key."""
        raise ValueError(f"{self.path}: key {key!r}: found {shown(found)}; allowed: {allowed}.")


def _is_pattern(given) -> bool:
    """Return whether a pattern has placeholders and stays below its root."""
    if not isinstance(given, str) or given.startswith("/") or ".." in given or "\0" in given:
        return False
    names = placeholders(given)
    return bool(names) and all(name.isidentifier() for name in names)


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
