"""Check a dataset file by file for missing and wrong content."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.pool import ThreadPool

import numpy as np

from anoseg_d2.data.dataset import Dataset
from anoseg_d2.data.image_io import read_image, read_label
from anoseg_d2.data.label_rules import LabelRule
from anoseg_d2.utils.cli import printable
from anoseg_d2.utils.constants import ANOMALY, VOID

__all__ = ["DatasetReport", "check_dataset"]


@dataclass
class DatasetReport:
    """Findings of the check of one dataset.

    Args:
        name: of the dataset.
        verdict: "ok"; "incomplete", when files are missing or too many; "broken", when files are
            unreadable or contradict the rules; "absent", when nothing is there.
        problems: reasons for a verdict other than ok.
        notes: worth knowing, but not a fault.
        layout, folder: the layout that was found, and where.
        images: number of pairs of image and label.
        expected_images: how many there should be; None allows any number.
        sizes: "WIDTHxHEIGHT" -> number of images.
        label_values: stored value -> fraction of all label pixels, 0..1.
        train_ids: train id after the rule -> fraction of all label pixels, 0..1.
        unreadable, size_differs, wrong_values: one message per file.
        images_without_label, labels_without_image: paths.
    """

    name: str
    verdict: str = "ok"
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    layout: str = ""
    folder: str = ""
    images: int = 0
    expected_images: int | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    label_values: dict[str, float] = field(default_factory=dict)
    train_ids: dict[str, float] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    size_differs: list[str] = field(default_factory=list)
    wrong_values: list[str] = field(default_factory=list)
    images_without_label: list[str] = field(default_factory=list)
    labels_without_image: list[str] = field(default_factory=list)

    def as_dict(self) -> dict:
        """Return the report as plain types for json."""
        return asdict(self)


@dataclass
class _File:
    """Findings about one image and its label."""

    size: str = ""
    values: Counter = field(default_factory=Counter)
    train_ids: Counter = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    size_differs: str = ""
    wrong_values: str = ""


def check_dataset(
    dataset: Dataset,
    root,
    workers: int = 1,
    progress: Callable[[], object] = lambda: None,
) -> DatasetReport:
    """Check one dataset.

    Args:
        dataset: the dataset to check.
        root: the datasets folder.
        workers: number of reading threads.
        progress: called after each pair.
    Returns:
        the report; faults on disk are reported, not raised.
    """
    report = DatasetReport(dataset.name, expected_images=dataset.expected_images)
    try:
        found = dataset.find(root)
    except FileNotFoundError as error:
        report.verdict, report.problems = "absent", [str(error)]
        return report
    except (OSError, ValueError) as error:
        report.verdict, report.problems = "broken", [str(error)]
        return report
    report.layout, report.folder, report.images = found.layout, str(found.folder), len(found.pairs)
    report.images_without_label = list(map(printable, found.images_without_label))
    report.labels_without_image = list(map(printable, found.labels_without_image))
    report.problems = dataset.problems(found)
    pairs = ((str(image), str(label)) for _, image, label in found.pairs)
    read, files = partial(_read_pair, rule=dataset.rule), []
    # Threads are enough: most of the work is decoding, which releases the interpreter lock.
    with ThreadPool(max(workers, 1)) as pool:
        for file in pool.imap(read, pairs):
            files.append(file)
            progress()
    _summarise(report, dataset, files)
    return report


def _read_pair(pair: tuple[str, str], rule: LabelRule) -> _File:
    file, arrays = _File(), []
    for path, read in zip(pair, (read_image, read_label), strict=True):
        try:
            arrays.append(read(path))
        except (OSError, ValueError) as error:
            file.unreadable.append(str(error))
    if file.unreadable:
        return file
    image, stored = arrays
    file.size = f"{image.shape[1]}x{image.shape[0]}"
    if image.shape[:2] != stored.shape:
        label_size = f"{stored.shape[1]}x{stored.shape[0]}"
        photo, label = map(printable, pair)
        file.size_differs = f"{photo} is {file.size}, its label {label} is {label_size}"
    file.values = _count(stored)
    try:
        file.train_ids = _count(rule.apply(stored, pair[1]))
    except ValueError as error:
        file.wrong_values = str(error)
    return file


def _count(values: np.ndarray) -> Counter:
    present, counts = np.unique(values, return_counts=True)
    return Counter(dict(zip(present.tolist(), counts.tolist(), strict=True)))


def _summarise(report: DatasetReport, dataset: Dataset, files: list[_File]) -> None:
    """Add up the findings of all files and decide the verdict."""
    report.sizes = dict(Counter(file.size for file in files if file.size))
    train_ids = sum((file.train_ids for file in files), Counter())
    report.label_values = _fractions(sum((file.values for file in files), Counter()))
    report.train_ids = _fractions(train_ids)
    report.unreadable = [message for file in files for message in file.unreadable]
    report.size_differs = [file.size_differs for file in files if file.size_differs]
    report.wrong_values = [file.wrong_values for file in files if file.wrong_values]
    if report.problems:
        report.verdict = "incomplete"
    faults = _faults(report, dataset, train_ids)
    if faults:
        report.verdict = "broken"
        report.problems = faults + report.problems
    only_void = sum(file.train_ids.keys() == {VOID} for file in files)
    if only_void:
        report.notes.append(f"{only_void} labels are all void")
    if dataset.evaluator_type == "anomaly":
        without = sum(ANOMALY not in file.train_ids for file in files)
        report.notes.append(f"{without} of {len(files)} images without anomaly")


def _faults(report: DatasetReport, dataset: Dataset, train_ids: Counter) -> list[str]:
    faults = []
    for what, messages in (
        ("unreadable files", report.unreadable),
        ("labels whose size differs from their image", report.size_differs),
        ("labels with values that no rule covers", report.wrong_values),
    ):
        if messages:
            faults.append(f"{len(messages)} {what}; first: {messages[0]}")
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
