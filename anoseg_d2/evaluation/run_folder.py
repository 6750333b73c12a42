"""Where an evaluation leaves its figures inside a run's folder, and how they are written.

`<output_dir>/inference/<dataset>/` holds `result.json` (figures, curves, figures per image),
`images/*.npz` (thumbnails) and is what the report is made of; `<output_dir>/report/` is the report.
"""

import json
import math
from pathlib import Path

from anoseg_d2.data.image_io import write_atomic

__all__ = ["dataset_folder", "read_json", "report_folder", "without_nan", "write_json"]


def dataset_folder(output_dir, dataset_name: str) -> Path:
    """Folder of one data set's evaluation."""
    return Path(output_dir) / "inference" / dataset_name


def report_folder(output_dir) -> Path:
    """Folder of the report."""
    return Path(output_dir) / "report"


def without_nan(value):
    """Copy a nest of dicts and lists with plain numbers, NaN and infinities as None."""
    if isinstance(value, dict):
        return {str(key): without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(entry) for entry in value]
    if hasattr(value, "tolist"):
        return without_nan(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path, value) -> None:
    """Write a nest of plain values as strict JSON, whole or not at all."""
    text = json.dumps(without_nan(value), indent=1, allow_nan=False, ensure_ascii=False)
    write_atomic(path, (text + "\n").encode())


def read_json(path):
    """Read JSON; the error of a broken file names it.

    Raises:
        FileNotFoundError, ValueError: as the name says.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from error
