"""Where an evaluation leaves its figures inside a run's folder, and how they are written.

`<output_dir>/inference/<dataset>/` holds `result.json` (figures, curves, figures per image),
`images/*.npz` (thumbnails) and is what the report is made of; `<output_dir>/report/` is the report.
"""

from pathlib import Path

__all__ = ["dataset_folder", "report_folder"]


def dataset_folder(output_dir, dataset_name: str) -> Path:
    """Folder of one dataset's evaluation."""
    return Path(output_dir) / "inference" / dataset_name


def report_folder(output_dir) -> Path:
    """Folder of the report."""
    return Path(output_dir) / "report"
