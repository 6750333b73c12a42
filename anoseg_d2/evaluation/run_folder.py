"""Where an evaluation leaves its figures inside a run's folder.

    <output_dir>/inference/<dataset>/result.json    figures, curves, figures per image
    <output_dir>/inference/<dataset>/images/*.npz   thumbnails
    <output_dir>/inference/<dataset>/failures/*.npz crops of the worst mistakes
    <output_dir>/report/                            the report, made of the above

One folder belongs to one method: several scores of it are kept next to each other, scores of
different methods never meet.
"""

from pathlib import Path

from anoseg_d2.utils.files import check_name, read_json

__all__ = ["add_scores", "check_method", "dataset_folder", "report_folder"]


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
        record = read_json(path)
        found = record.get("method") if isinstance(record, dict) else None
        if found != method:
            whose = f"the method {found!r}" if found else "a model that train_net.py evaluated"
            raise ValueError(
                f"{output_dir} holds the figures of {whose} on {path.parent.name}, and those of "
                f"{method!r} would be mixed with them. Choose another --output"
                + (f", or --name {found} if it is the same method" if found else "")
            )


def add_scores(old: dict, new: dict) -> dict:
    """Add the scores of an earlier evaluation of the same method and dataset to a new record.

    Args:
        old, new: contents of result.json; a score that both have is the new one's.
    Raises:
        ValueError: the labels have changed since, so that the figures cannot stand side by side.
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
    failures = [entry for entry in old["failures"] if entry["score"] in kept]
    earlier = {image["image_id"]: image["ap"] for image in old["per_image"]}
    per_image = []
    for image in new["per_image"]:
        before = earlier.get(image["image_id"], {})
        ap = {name: before.get(name) for name in kept}
        per_image.append({**image, "ap": {**ap, **image["ap"]}})
    return {
        **new,
        "result": {**new["result"], "scores": {**scores, **new["result"]["scores"]}},
        "per_image": per_image,
        "curves": {**{name: old["curves"].get(name) for name in kept}, **new["curves"]},
        "failures": [*failures, *new["failures"]],
    }
