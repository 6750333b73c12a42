"""Read and write the figures that an evaluation leaves in a run's folder.

<output_dir>/inference/<dataset>/result.json    figures, curves
<output_dir>/inference/<dataset>/images/*.npz   a few images with their maps, small
<output_dir>/report/                            the report, made from the above
"""

from pathlib import Path

from anoseg_d2.utils.files import check_name, read_json, write_json

VERSION = 1  # of result.json and results.json; files without a version are of version 1


def dataset_folder(output_dir, dataset_name: str) -> Path:
    """Return the folder of one dataset's evaluation; ValueError if its name could leave it."""
    return Path(output_dir) / "inference" / check_name(dataset_name, "dataset")  # as detectron2


def report_folder(output_dir) -> Path:
    """Return the folder of the report."""
    return Path(output_dir) / "report"


def read_stored(path, key: str) -> dict:
    """Read a file of figures that this project wrote.

    Args:
        path: of the file.
        key: that every such file has, with a dict as value.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else, or of another version.
    """
    stored = read_json(path)
    if not isinstance(stored, dict) or not isinstance(stored.get(key), dict):
        found = f"it has no {key!r}"
    elif stored.get("version", VERSION) != VERSION:
        found = f"its version is {stored['version']!r}, this release reads {VERSION}"
    else:
        return stored
    raise ValueError(f"{path} was not written by an evaluation ({found}); evaluate again")


def read_record(path) -> dict:
    """Read a dataset's result.json.

    Returns:
        dict with `kind` "anomaly" or "closed_set", `result`, and of an anomaly set `curves`.
    Raises:
        FileNotFoundError, ValueError: see `read_stored`.
    """
    record = read_stored(path, "result")
    return {"kind": "anomaly", "curves": {}, **record}


def write_record(folder: Path, record: dict) -> None:
    """Write the result.json of one dataset's evaluation."""
    write_json(folder / "result.json", {"version": VERSION, **record})
