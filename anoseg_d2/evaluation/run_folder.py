"""Where an evaluation leaves its figures inside a run's folder.

    <output_dir>/inference/<dataset>/result.json    figures, curves, figures per image
    <output_dir>/inference/<dataset>/images/*.npz   thumbnails
    <output_dir>/inference/<dataset>/failures/*.npz crops of the worst mistakes
    <output_dir>/report/                            the report, made from the above

One folder belongs to one method: its scores are kept next to each other, and scores of different
methods are never mixed.
"""

import math
import re
from numbers import Real
from pathlib import Path

from anoseg_d2.utils.files import check_name, read_json

__all__ = ["add_scores", "check_method", "dataset_folder", "read_record", "report_folder"]

# File names of failure crops: kind, quoted score, rank.
_CROP_FILE = re.compile(r"(false|missed)-[A-Za-z0-9._+%-]+-[0-9]{2}\.npz")


def dataset_folder(output_dir, dataset_name: str) -> Path:
    """Return the folder of one dataset's evaluation; ValueError if its name could leave it."""
    return Path(output_dir) / "inference" / check_name(dataset_name, "dataset")


def report_folder(output_dir) -> Path:
    """Return the folder of the report."""
    return Path(output_dir) / "report"


def check_method(output_dir, method: str) -> None:
    """Refuse a folder that holds figures of another method.

    Raises:
        ValueError: names the folder, the method found there and the way out.
    """
    for path in sorted(Path(output_dir).glob("inference/*/result.json")):
        found = read_record(path).get("method")
        if found != method:
            whose = f"the method {found!r}" if found else "a model of `anoseg train`"
            raise ValueError(
                f"{output_dir} holds the figures of {whose} on {path.parent.name}, and those of "
                f"{method!r} would be mixed with them. Choose another --output"
                + (f", or --name {found} if it is the same method" if found else "")
            )


def read_record(path) -> dict:
    """Read a dataset's result.json and check the types of everything that a report uses.

    The figures themselves are checked by `report.results.check_results`.

    Returns:
        dict with `kind` "anomaly" or "closed_set" and `result`; of an anomaly set also `method`,
        `labels`, `score_warnings`, `per_image`, `curves`, `false_components` and `failures`,
        which are empty if an older version did not write them.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an entry is not what an evaluator writes; names the file and the entry.
    """
    record = read_json(path)

    def check(right: bool, what: str) -> None:
        if not right:
            raise ValueError(f"{path}: {what} is not what an evaluator writes; evaluate again")

    check(isinstance(record, dict) and isinstance(record.get("result"), dict), "the file")
    check(record.get("kind") in ("anomaly", "closed_set"), f"kind {record.get('kind')!r:.60}")
    if record["kind"] == "closed_set":
        return record
    empty = {"method": None, "labels": None, "score_warnings": {}, "per_image": [], "curves": {}}
    record = {**empty, "false_components": {}, "failures": [], **record}
    for name in ("method", "labels"):
        check(record[name] is None or isinstance(record[name], str), name)
    scores = record["result"].get("scores")
    check(isinstance(scores, dict) and all(isinstance(s, dict) for s in scores.values()), "scores")
    check(isinstance(record["curves"], dict), "curves")
    check(_lists_of(record["score_warnings"], lambda text: isinstance(text, str)), "score_warnings")
    check(_list_of(record["per_image"], _is_image), "per_image")
    check(_lists_of(record["false_components"], _is_component), "false_components")
    check(_list_of(record["failures"], _is_failure), "failures")
    return record


def _list_of(value, right) -> bool:
    return isinstance(value, list) and all(map(right, value))


def _lists_of(value, right) -> bool:
    """Whether `value` is {score: [entries that are right]}."""
    return isinstance(value, dict) and all(_list_of(entries, right) for entries in value.values())


def _number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _natural(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _naturals(value, count: int) -> bool:
    return _list_of(value, _natural) and len(value) == count


def _of_image(value) -> bool:
    return isinstance(value, dict) and isinstance(value.get("image_id"), str)


def _is_image(value) -> bool:
    figures = value.get("ap") if _of_image(value) else None
    return isinstance(figures, dict) and all(v is None or _number(v) for v in figures.values())


def _is_component(value) -> bool:
    found = _of_image(value) and _naturals(value.get("box"), 4) and min(value["box"][2:]) > 0
    return found and _natural(value.get("area"))


def _is_failure(value) -> bool:
    if not _of_image(value) or not _naturals(value.get("place"), 2):
        return False
    named = all(isinstance(value.get(key), str) for key in ("kind", "score", "file"))
    finite = value.get("value") is None or _number(value["value"])  # None for an infinite score
    return named and finite and bool(_CROP_FILE.fullmatch(value["file"]))


def add_scores(old: dict, new: dict) -> dict:
    """Add the scores of an earlier evaluation of the same method and dataset to a new record.

    Args:
        old, new: contents of result.json; of a score in both, the new figures are kept.
    Raises:
        ValueError: the labels have changed since, so the figures do not compare.
    """
    kept = [name for name in old["result"]["scores"] if name not in new["result"]["scores"]]
    if not kept:
        return new
    if old["labels"] != new["labels"]:
        raise ValueError(
            f"the labels of {new['dataset']} have changed since {', '.join(kept)} was evaluated: "
            "the figures would not compare. Choose another --output"
        )
    scores = {name: old["result"]["scores"][name] for name in kept}
    earlier_warnings = {name: old["score_warnings"].get(name, []) for name in kept}
    warnings = [text for texts in earlier_warnings.values() for text in texts]
    failures = [entry for entry in old["failures"] if entry["score"] in kept]
    earlier = {image["image_id"]: image["ap"] for image in old["per_image"]}
    per_image = []
    for image in new["per_image"]:
        before = earlier.get(image["image_id"], {})
        ap = {name: before.get(name) for name in kept}
        per_image.append({**image, "ap": {**ap, **image["ap"]}})
    return {
        **new,
        "result": {
            **new["result"],
            "scores": {**scores, **new["result"]["scores"]},
            "warnings": [*new["result"]["warnings"], *warnings],
        },
        "score_warnings": {**earlier_warnings, **new["score_warnings"]},
        "per_image": per_image,
        "curves": {**{name: old["curves"].get(name) for name in kept}, **new["curves"]},
        "false_components": {
            **{name: old["false_components"].get(name, []) for name in kept},
            **new["false_components"],
        },
        "failures": [*failures, *new["failures"]],
    }
