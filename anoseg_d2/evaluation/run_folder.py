"""Read and write the figures that an evaluation leaves in a run's folder.

    <output_dir>/inference/<dataset>/result.json    figures, curves, figures per image
    <output_dir>/inference/<dataset>/images/*.npz   thumbnails
    <output_dir>/inference/<dataset>/failures/*.npz crops of the worst mistakes
    <output_dir>/report/                            the report, made from the above

One folder belongs to one method: its scores are kept next to each other, and scores of different
methods are never mixed.
"""

from pathlib import Path

from anoseg_d2.evaluation.stored_form import VERSION, check_record, check_stored
from anoseg_d2.utils.files import check_name, read_json, write_json

__all__ = [
    "add_scores",
    "check_method",
    "dataset_folder",
    "read_record",
    "report_folder",
    "write_record",
]


def dataset_folder(output_dir, dataset_name: str) -> Path:
    """Return the folder of one dataset's evaluation; ValueError if its name could leave it."""
    return Path(output_dir) / "inference" / check_name(dataset_name, "dataset")  # as detectron2


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
    """Read a dataset's result.json.

    Returns:
        dict with `kind` "anomaly" or "closed_set" and `result`; of an anomaly set also `method`,
        `labels`, `score_warnings`, `per_image`, `curves`, `false_components` and `failures`,
        which are empty if an older version did not write them.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an evaluator did not write it; see `check_stored`.
    """
    record = check_stored(read_json(path), check_record, path)
    empty = {"method": None, "labels": None, "score_warnings": {}, "per_image": [], "curves": {}}
    return {**empty, "false_components": {}, "failures": [], **record}


def write_record(folder: Path, record: dict) -> None:
    """Write the result.json of one dataset's evaluation."""
    write_json(folder / "result.json", {"version": VERSION, **record})


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
    earlier = {image["image_id"]: image["ap"] for image in old["per_image"]}

    def with_kept(before: dict, now: dict, absent=None) -> dict:
        """Return the entries of the kept scores followed by the new ones."""
        return {**{name: before.get(name, absent) for name in kept}, **now}

    result = {**new["result"]}
    result["scores"] = with_kept(old["result"]["scores"], result["scores"])
    warnings = with_kept(old["score_warnings"], new["score_warnings"], [])
    result["warnings"] = [*result["warnings"], *(w for name in kept for w in warnings[name])]
    return {
        **new,
        "result": result,
        "score_warnings": warnings,
        "per_image": [
            {**image, "ap": with_kept(earlier.get(image["image_id"], {}), image["ap"])}
            for image in new["per_image"]
        ],
        "curves": with_kept(old["curves"], new["curves"]),
        "false_components": with_kept(old["false_components"], new["false_components"], []),
        "failures": [*(f for f in old["failures"] if f["score"] in kept), *new["failures"]],
    }
