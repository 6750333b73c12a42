"""Check the JSON that evaluations write: result.json, results.json and curves.json.

They are written by this project and read again, perhaps after somebody edited, cut or received
them. What is not as it was written is to be evaluated again. Entries that nothing reads may be
anything.
"""

import itertools
import re
import sys

__all__ = ["VERSION", "check_record", "check_report_curves", "check_results", "check_stored"]

VERSION = 1  # files without a version are of version 1
_FIGURES = ("auprc", "fpr95", "auroc", "best_f1", "sIoU", "PPV", "mean_F1", "best_f1_threshold")
_BOUNDS = ("auprc_bounds", "fpr95_bounds", "auroc_bounds", "best_f1_bounds")
_CLOSED = ("mIoU", "mIoU_union", "pixel_accuracy", "mean_accuracy", "ECE")
_COUNTS = ("images", "classes", "pixels", "anomaly_pixels", "known_pixels", "void_pixels")
# A crop in its own folder: kind, quoted score, rank.
_CROP_FILE = re.compile(r"(false|missed)-[A-Za-z0-9._+%-]+-[0-9]{2}\.npz")


def check_stored(value, check, source):
    """Return `value` if `check` passes it.

    Args:
        value: what the file holds.
        check: one of the functions below.
        source: the file, for the message.
    Raises:
        ValueError: names the file and says to evaluate again.
    """
    try:
        check(value)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{source} was not written by an evaluation ({str(error)[:100]}); evaluate again "
            "(anoseg eval, anoseg maps)"
        ) from error
    return value


def check_results(results: dict) -> None:
    """Check the contents of a results.json."""
    _check_version(results)
    for entry in results["datasets"].values():
        _check_anomaly(entry)
    for entry in results.get("closed_set", {}).values():
        _check_closed(entry)
    _of_type(results.get("model"), dict, type(None))
    for inner in results.get("models", {}).values():
        check_results(inner)


def check_record(record: dict) -> None:
    """Check the contents of a dataset's result.json."""
    _check_version(record)
    result = record["result"]
    if record["kind"] == "closed_set":
        _check_closed(result)
        return
    if record["kind"] != "anomaly" or "scores" not in result:
        raise ValueError(f"no scores of kind {record['kind']!r:.40}")
    _check_anomaly(result)
    for name in ("method", "labels"):
        _of_type(record.get(name), str, type(None))
    for texts in record.get("score_warnings", {}).values():
        _check_texts(texts)
    for image in _of_type(record.get("per_image", []), list):
        _of_type(image["image_id"], str)
        _check_numbers(image["ap"], image["ap"])
    check_curves(record.get("curves", {}))
    for components in record.get("false_components", {}).values():
        for component in components:
            _of_type(component["image_id"], str)
            top, left, height, width = map(_natural, component["box"])
            if not height * width * _natural(component["area"]):
                raise ValueError(f"an empty component at {top}, {left}")
    for failure in _of_type(record.get("failures", []), list):
        for key in ("image_id", "kind", "score", "file"):
            _of_type(failure[key], str)
        row, column = map(_natural, failure.get("at", failure["place"]))
        _number(failure["value"])
        # Else a file that somebody sent could name any file of the reader's.
        if not _CROP_FILE.fullmatch(failure["file"]):
            raise ValueError(f"a crop named {failure['file']!r:.60} at {row}, {column}")


def check_report_curves(curves: dict) -> None:
    """Check the contents of a report's curves.json, {run: {dataset: {score: curve}}}."""
    for of_run in curves.values():
        for of_dataset in of_run.values():
            check_curves(of_dataset)


def check_curves(curves: dict) -> None:
    """Check {score: curve or None}, each with three lists of numbers of one length."""
    for curve in filter(None, curves.values()):
        lists = [_of_type(curve[key], list) for key in ("recall", "precision", "fpr")]
        for value in itertools.chain(*zip(*lists, strict=True)):
            _of_type(_number(value), float, int)


def _check_version(value: dict) -> None:
    version = value.get("version", VERSION)
    if version != VERSION:
        raise ValueError(f"its version is {version!r:.40}, this release reads {VERSION}")


def _check_anomaly(entry: dict) -> None:
    for score in entry.get("scores", {}).values():
        _check_numbers(score, _FIGURES)
        for name in _BOUNDS:
            if score.get(name) is not None:
                low, high = map(_number, _of_type(score[name], list))
        for level, threshold in (score.get("tpr_thresholds") or {}).items():
            _number(float(level))
            _number(threshold)
        for counts in (score.get("components_at") or {}).values():
            _check_numbers(counts, counts)
        _of_type(score.get("why"), str, type(None))
    _check_numbers(entry, _COUNTS)
    _check_texts(entry.get("warnings") or [])


def _check_closed(entry: dict) -> None:
    _check_numbers(entry, (*_CLOSED, *_COUNTS))
    classes = entry.get("IoU", {})
    _check_numbers(classes, _of_type(classes, dict))


def _check_numbers(entry: dict, names) -> None:
    for name in names:
        _number(entry.get(name))


def _check_texts(texts) -> None:
    for text in _of_type(texts, list):
        _of_type(text, str)


def _of_type(value, *types):
    if not isinstance(value, types):
        raise TypeError(f"{value!r:.60}, not {types[0].__name__}")
    return value


def _number(value):
    # bool is an int in Python; integers beyond float, infinities and NaN fail the comparison.
    if value is not None and (isinstance(value, bool) or not abs(value) <= sys.float_info.max):
        raise ValueError(f"{value!r:.40} is not a finite number")
    return value


def _natural(value) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ValueError(f"{value!r:.40} is not a place or size")
    return value
