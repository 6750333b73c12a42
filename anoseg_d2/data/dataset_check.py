"""Check a dataset file by file for missing and wrong content."""

from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from multiprocessing.pool import ThreadPool

import numpy as np

from anoseg_d2.data.dataset import Dataset
from anoseg_d2.data.image_io import read_image, read_label
from anoseg_d2.data.label_rules import LabelRule, load_label
from anoseg_d2.utils.cli import printable
from anoseg_d2.utils.constants import ANOMALY, ANOMALY_COLOR, VOID
from anoseg_d2.utils.visualization import class_palette, overlay, resize_image, resize_label


def check_dataset(dataset: Dataset, root, progress: Callable[[], object] = lambda: None) -> dict:
    """Check one dataset; faults on disk are reported, not raised.

    Args:
        dataset: the dataset to check.
        root: the datasets folder.
        progress: called after each pair.
    Returns:
        `verdict`: "ok"; "incomplete", when files are missing or too many; "broken", when files are
        unreadable or contradict the rules; "absent", when nothing is there. `problems`: reasons for
        a verdict other than ok. `expected_images` (None allows any number). Unless it is absent:
        `layout`, `folder`, `images` (pairs of image and label), `sizes` ("WIDTHxHEIGHT" -> images),
        `label_values` and `train_ids` (value -> fraction of all label pixels, 0..1), `notes`, and
        lists with a message per file: `unreadable`, `size_differs`, `wrong_values`,
        `images_without_label`, `labels_without_image`.
    """
    try:
        found = dataset.find(root)
    except (OSError, ValueError) as error:
        verdict = "absent" if isinstance(error, FileNotFoundError) else "broken"
        expected = dataset.expected_images
        return {"verdict": verdict, "problems": [str(error)], "expected_images": expected}
    values, train_ids = Counter(), Counter()
    without_anomaly = only_void = 0
    findings = defaultdict(list)
    # Threads are enough: most of the work is decoding, which releases the interpreter lock.
    pairs = ((str(image), str(label)) for _, image, label in found.pairs)
    with ThreadPool() as pool:
        for kind, text, *counts in pool.imap(partial(_read_pair, rule=dataset.rule), pairs):
            findings[kind].append(text)
            values += counts[0]
            train_ids += counts[1]
            without_anomaly += ANOMALY not in counts[1]
            only_void += counts[1].keys() == {VOID}
            progress()
    missing, faults = dataset.problems(found), _faults(findings, dataset, train_ids)
    notes = [f"{only_void} labels are all void"] if only_void else []
    if dataset.evaluator_type == "anomaly":
        notes.append(f"{without_anomaly} of {len(found.pairs)} images without anomaly")
    return {
        "verdict": "broken" if faults else "incomplete" if missing else "ok",
        "problems": faults + missing,
        "notes": notes,
        "layout": found.layout,
        "folder": str(found.folder),
        "images": len(found.pairs),
        "expected_images": dataset.expected_images,
        "sizes": dict(Counter(findings["sizes"])),
        "label_values": _fractions(values),
        "train_ids": _fractions(train_ids),
        **{kind: findings[kind] for kind in ("unreadable", "size_differs", "wrong_values")},
        "images_without_label": list(map(printable, found.images_without_label)),
        "labels_without_image": list(map(printable, found.labels_without_image)),
    }


def _read_pair(pair: tuple[str, str], rule: LabelRule) -> tuple[str, str, Counter, Counter]:
    """Return the kind of finding, the finding, and the counts of values and of train ids."""
    try:
        image, stored = read_image(pair[0]), read_label(pair[1])
    except (OSError, ValueError) as error:
        return "unreadable", str(error), Counter(), Counter()
    size, label_size = (f"{array.shape[1]}x{array.shape[0]}" for array in (image, stored))
    values = _count(stored)
    if size != label_size:
        photo, label = map(printable, pair)
        message = f"{photo} is {size}, its label {label} is {label_size}"
        return "size_differs", message, values, Counter()
    try:
        return "sizes", size, values, _count(rule.apply(stored, pair[1]))
    except ValueError as error:
        return "wrong_values", str(error), values, Counter()


def _count(values: np.ndarray) -> Counter:
    present, counts = np.unique(values, return_counts=True)
    return Counter(dict(zip(present.tolist(), counts.tolist(), strict=True)))


def _faults(findings: dict[str, list[str]], dataset: Dataset, train_ids: Counter) -> list[str]:
    faults = []
    for kind, what in (
        ("unreadable", "unreadable files"),
        ("size_differs", "labels whose size differs from their image"),
        ("wrong_values", "labels with values that no rule covers"),
    ):
        if findings[kind]:
            faults.append(f"{len(findings[kind])} {what}; first: {findings[kind][0]}")
    wanted = ANOMALY if dataset.evaluator_type == "anomaly" else dataset.anomaly_id
    if dataset.evaluator_type == "closed_set" and dataset.split.startswith(("val", "test")):
        wanted = None  # the splits of a card share its key, but only training needs them
    if wanted is not None and train_ids and not train_ids[wanted]:
        faults.append("no label has a single anomaly pixel")
    if train_ids and set(train_ids) <= {VOID}:
        faults.append("the labels are all void")
    return faults


def _fractions(counts: Counter) -> dict[str, float]:
    total = sum(counts.values())
    return {str(value): counts[value] / total for value in sorted(counts)}


def draw_preview(dataset: Dataset, root, number: int = 6, width: int = 480) -> np.ndarray:
    """Draw some images of a dataset in a row, each above a copy with its label in colour.

    Args:
        dataset: a sound dataset.
        root: the datasets folder.
        number: of images, evenly spread.
        width: of one image, pixels.
    Returns:
        (H, number * width, 3) uint8 RGB.
    """
    # Anomaly sets have no classes: their known pixels are grey.
    palette = class_palette(len(dataset.classes) or 1, dataset.colors or [(200, 200, 200)])
    palette[len(dataset.classes) or ANOMALY] = ANOMALY_COLOR
    pairs, tiles = dataset.find(root).pairs, []
    for index in np.unique(np.linspace(0, len(pairs) - 1, number).astype(int)):
        image, label = read_image(pairs[index][1]), load_label(pairs[index][2], dataset.rule)
        size = max(1, round(image.shape[0] * width / image.shape[1])), width
        image, label = resize_image(image, size), resize_label(label, size)
        tiles.append(np.vstack([image, overlay(image, palette[label], 0.6)]))
    height = max(map(len, tiles))
    return np.hstack([np.pad(t, ((0, height - len(t)), (0, 0), (0, 0))) for t in tiles])
