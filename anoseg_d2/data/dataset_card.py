"""Read dataset cards: small yaml files that describe a dataset without Python.

Example::

    name: my_road
    root: my_road                       # below DETECTRON2_DATASETS; absolute; or ./ for the
                                        # folder of the card itself
    splits:                             # registers my_road_train and my_road_val
      train: {images: "train/{id}.*", labels: "train_labels/{id}.png"}
      val: {images: "val/{id}.*", labels: "val_labels/{id}.png", expected_images: 200}
    classes: [road, car, sky]           # in train-id order; or `cityscapes`
    label_values: {0: sky, 1: road, 2: car}
    void: [255]
    anomaly: 254                        # optional: the pasted anomaly becomes train id K

To take only some files of a folder, a split sets `frames`, a simple regular expression that the
whole id (what the placeholders capture) must match, as in `frames: "(0001TP|0016E5)_.*"`: one group
of alternatives, and at most two repeats, of a single character or class each.

A card without `splits` has `images` and `labels` next to `name` and registers `name`. An anomaly
set has `kind: anomaly`, with `known`, `anomaly` and `void` instead of classes; the
`component_track` of the card or of one split is `anomaly`, or `obstacle` for small things on the
road.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import yaml

from anoseg_d2.data.dataset import Dataset
from anoseg_d2.data.dataset_files import Layout
from anoseg_d2.data.label_rules import LABEL_RULES, LabelRule
from anoseg_d2.data.path_pattern import MAX_REPEATS, is_simple_regex, placeholders
from anoseg_d2.utils.config_files import load_yaml
from anoseg_d2.utils.constants import CITYSCAPES_CLASSES, CITYSCAPES_COLORS, VOID
from anoseg_d2.utils.files import check_name, read_bytes
from anoseg_d2.utils.visualization import class_palette

__all__ = ["CARDS_FOLDER", "find_card", "read_card", "shipped_cards"]

CARDS_FOLDER = Path(__file__).parent / "cards"
# Cards come from strangers, so everything that could be made to take forever has a limit.
MAX_WILDCARDS = 12
MAX_CLASSES = 252  # train ids 253 to 255 have other meanings
_FILE_KEYS = ("images", "labels", "frames", "expected_images")
_KINDS = {
    "closed_set": ("classes", "label_values", "void", "anomaly"),
    "anomaly": ("known", "anomaly", "void", "component_track"),
}
# Keys that a split may have, by kind.
_SPLIT_KEYS = {"closed_set": _FILE_KEYS, "anomaly": (*_FILE_KEYS, "component_track")}
_TRACKS = ("anomaly", "obstacle")
_COMMON_KEYS = ("name", "kind", "root", "splits", *_FILE_KEYS, "description", "licence", "source")
_NAMED_RULES = ("cityscapes", "cityscapes_outlier")


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
        f"DATASETS.CARDS: no dataset card {str(card)!r}. Give the path of a yaml file, or one of "
        f"the shipped cards: {', '.join(shipped_cards())}."
    )


def read_card(path) -> list[Dataset]:
    """Read a card.

    Args:
        path: yaml file.
    Returns:
        the datasets it describes: one, or one per split.
    Raises:
        ValueError: it is not yaml or violates the schema; the message names the file, line and
            key, and what is allowed.
    """
    return _Card(Path(path)).datasets()


class _Card:
    """A parsed card, whose errors name the file, the line and the key."""

    def __init__(self, path: Path):
        self.path = path
        self.card = load_yaml(path)
        if not isinstance(self.card, Mapping):
            raise ValueError(
                f"{path}: a card is a mapping of keys, found {reprlib.repr(self.card)}"
            )

    def datasets(self) -> list[Dataset]:
        kind = self.card.get("kind", "closed_set")
        if not isinstance(kind, str) or kind not in _KINDS:
            self.fail("kind", kind, " or ".join(_KINDS))
        self.check_keys(self.card, (*_COMMON_KEYS, *_KINDS[kind]))
        name = self.name()
        build = self.closed_set if kind == "closed_set" else self.anomaly_set
        made = []
        for where, entry, layout, expected in self.layouts(_SPLIT_KEYS[kind]):
            split = where[-1] if where else ""
            full_name = f"{name}_{split}" if split else name
            dataset = build(full_name, layout, expected, entry, where)
            made.append(replace(dataset, split=split))
        return made

    def closed_set(self, name: str, layout: Layout, expected: int | None, *_) -> Dataset:
        classes, colors = self.classes()
        rule = self.closed_rule(name, classes)
        # Averages of mIoU over classes that a set never labels would depend on the images chosen.
        present = tuple(train_id for train_id in rule.train_ids() if train_id < len(classes))
        return Dataset(
            name,
            "closed_set",
            (layout,),
            rule,
            classes,
            colors,
            expected,
            present if len(present) < len(classes) else None,
            origin=str(self.path),
        )

    def anomaly_set(
        self, name: str, layout: Layout, expected: int | None, entry: Mapping, where: tuple
    ) -> Dataset:
        rule = self.rule(name, {}, {"known": 0, "anomaly": 1, "void": VOID})
        if "component_track" not in entry:
            entry, where = self.card, ()
        track = entry.get("component_track", "anomaly")
        if track not in _TRACKS:
            self.fail("component_track", track, _or(_TRACKS), where)
        return Dataset(
            name,
            "anomaly",
            (layout,),
            rule,
            expected_images=expected,
            origin=str(self.path),
            component_track=track,
        )

    def layouts(self, split_keys: tuple[str, ...]):
        """Yield (keys above the entry, entry, layout, expected number of images) per split."""
        root = self.text(self.card, "root")
        if root.startswith("~") or "$" in root or "\0" in root:
            self.fail(
                "root",
                root,
                "a folder below DETECTRON2_DATASETS or an absolute path, or ./ for the card's",
            )
        # A card next to its images works wherever the folder is moved.
        if root == "." or root.startswith("./"):
            root = str(self.path.absolute().parent / root)
        if "splits" not in self.card:
            yield (), self.card, *self.layout(root, self.card, ())
            return
        splits = self.card["splits"]
        if not isinstance(splits, Mapping) or not splits:
            self.fail("splits", splits, "a mapping of split names to images and labels")
        for key in _FILE_KEYS:
            if key in self.card:
                self.fail(key, self.card[key], "inside each split, because the card has `splits`")
        for split, entry in splits.items():
            if not isinstance(entry, Mapping):
                self.fail(split, entry, f"keys {', '.join(split_keys)}", ("splits",))
            where = ("splits", split)
            self.check_keys(entry, split_keys, where)
            yield where, entry, *self.layout(root, entry, where)

    def layout(self, root: str, entry: Mapping, where: tuple) -> tuple[Layout, int | None]:
        images = self.patterns(entry, "images", where)
        labels = self.patterns(entry, "labels", where)
        names = {frozenset(placeholders(pattern)) for pattern in images + labels}
        if len(names) > 1:
            self.fail("labels", labels, f"the same placeholders as images ({images})", where)
        expected = entry.get("expected_images")
        if expected is not None and (not _is_int(expected) or expected < 1):
            self.fail("expected_images", expected, "a positive integer", where)
        frames = entry.get("frames", ".*")
        if not is_simple_regex(frames):
            allowed = (
                "a simple regular expression that whole ids match, such as (a|b)_.*: one group of "
                f"alternatives, at most {MAX_REPEATS} repeats of one character or class each"
            )
            self.fail("frames", frames, allowed, where)
        return Layout(f"card {self.path.name}", (root,), images, labels, frames), expected

    def patterns(self, entry: Mapping, key: str, where: tuple) -> tuple[str, ...]:
        given = entry.get(key)
        patterns = [given] if isinstance(given, str) else given
        if not isinstance(patterns, list) or not patterns or not all(map(_is_pattern, patterns)):
            allowed = "a pattern below root with a placeholder, such as 'images/{id}.*', or a list"
            self.fail(key, given, allowed, where)
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
        if given in _NAMED_RULES:
            for key in ("void", "anomaly"):
                if key in self.card:
                    self.fail(
                        key, self.card[key], f"nothing, because label_values {given!r} defines it"
                    )
            if classes != CITYSCAPES_CLASSES:
                self.fail(
                    "classes", list(classes), f"cityscapes, because label_values is {given!r}"
                )
            return LABEL_RULES[given]
        if not isinstance(given, Mapping) or not given:
            self.fail(
                "label_values",
                given,
                f"a mapping of label value to train id or class name, or {_or(_NAMED_RULES)}",
            )
        values = {self.value(v, "label_values"): self.train_id(v, given[v], classes) for v in given}
        return self.rule(name, values, {"anomaly": len(classes), "void": VOID})

    def rule(self, name: str, values: dict[int, int], keys: dict[str, int]) -> LabelRule:
        """Make the label rule of `values` and those of further keys.

        Args:
            name: of the dataset.
            values: label value -> train id, changed in place.
            keys: key of the card -> train id of all its values.
        """
        used = ["label_values"] if values else []
        for key, train_id in keys.items():
            required = "known" in keys and key != "void"
            for value in self.values(key, required):
                if value in values:
                    self.fail(key, value, f"a value that {_or(used)} does not use")
                values[value] = train_id
            used.append(key)
        return LabelRule(f"{name} ({self.path.name})", tuple(sorted(values.items())))

    def train_id(self, value, given, classes: tuple[str, ...]) -> int:
        if isinstance(given, str) and given in classes:
            return classes.index(given)
        if _is_int(given) and 0 <= given < len(classes):
            return given
        allowed = f"a train id 0..{len(classes) - 1} or a class name ({', '.join(classes)})"
        self.fail(value, given, allowed, ("label_values",))

    def values(self, key: str, required: bool = False) -> list[int]:
        given = self.card.get(key)
        if given is None and not required:
            return []
        return [self.value(v, key) for v in (given if isinstance(given, list) else [given])]

    def value(self, given, key: str) -> int:
        if not _is_int(given) or not 0 <= given <= 65535:
            self.fail(key, given, "label values: integers 0..65535")
        return given

    def name(self) -> str:
        """Return the card's name; it and those of splits must be safe as parts of paths."""
        name = self.text(self.card, "name")
        splits = self.card.get("splits")
        splits = splits if isinstance(splits, Mapping) else {}
        names = {("splits", split): split for split in splits}
        for where, given in {("name",): name, **names}.items():
            try:
                check_name(str(given), "dataset")
            except ValueError:
                allowed = (
                    "a name of at most 100 letters, digits, '.', '_', '+' and '-', the first a "
                    "letter or digit"
                )
                self.fail(where[-1], given, allowed, where[:-1])
        return name

    def text(self, entry: Mapping, key: str) -> str:
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            self.fail(key, entry.get(key), "a string that is not empty")
        return entry[key]

    def check_keys(self, entry: Mapping, allowed: tuple[str, ...], where: tuple = ()) -> None:
        for key in entry:
            if key not in allowed:
                self.fail(key, entry[key], f"one of the keys {', '.join(allowed)}", where)

    def fail(self, key, found, allowed: str, where: tuple = ()):
        """Raise the schema error of one key."""
        path = (*where, key)
        # The file has been read before, so it is safe to read once more, for the line.
        line = _line(yaml.compose(read_bytes(self.path), Loader=yaml.SafeLoader), path)
        place = f"{self.path}, line {line}" if line else str(self.path)
        dotted = ".".join(map(str, path))
        shown = repr(found)
        shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
        raise ValueError(f"{place}: key {dotted!r}: found {shown}; allowed: {allowed}.")


def _line(node, path: tuple) -> int | None:
    """Return the line of a key, or of the closest key above it that the card has."""
    line = None
    for step in path:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        match = next(((k, v) for k, v in pairs if k.value == str(step)), None)
        if match is None:
            return line
        line, node = match[0].start_mark.line + 1, match[1]
    return line


def _is_pattern(given) -> bool:
    """Return whether a pattern stays below its root and matches in reasonable time."""
    if not isinstance(given, str) or given.startswith("/") or ".." in given or "\0" in given:
        return False
    names = placeholders(given)
    good = bool(names) and all(name.isidentifier() for name in names)
    return good and given.count("*") + given.count("{") <= MAX_WILDCARDS


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _or(words) -> str:
    return " or ".join(words)
