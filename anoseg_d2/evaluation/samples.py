"""Keep a few images of a dataset with their maps, small, for the sheet of the report."""

import io
import urllib.parse
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog

from anoseg_d2.data.image_io import read_image
from anoseg_d2.evaluation.streaming.keys import to_numpy
from anoseg_d2.utils.files import write_atomic
from anoseg_d2.utils.visualization import fit_long_side, resize_image, resize_label, resize_score

SAMPLES = 6
_FLOAT16_MAX = 60000.0  # below 65504, where float16 becomes infinite


def sampled_files(dataset_name: str) -> set[str]:
    """Return `file_name` of the images that stand for a dataset, the same in every evaluation."""
    files = [image["file_name"] for image in DatasetCatalog.get(dataset_name)]
    places = np.linspace(0, len(files) - 1, min(SAMPLES, len(files))).round().astype(int)
    return {files[place] for place in places}


def save_sample(
    folder: Path, input_: dict, label, sem_seg, scores: dict, long_side: int = 480
) -> None:
    """Write what the report shows of one image to a file of its own.

    Args:
        folder: of the dataset's samples.
        input_: dataset dict, with or without its `image`; its `image_id`, or the photograph's name
            where a set has no ids, is its name in the report.
        label: (H, W) uint8; 1 never vanishes, since a small anomaly must be seen.
        sem_seg: (H, W) integers of train ids, array or tensor, or None.
        scores: {name: (H, W) float32}.
        long_side: pixels of what is kept.
    """
    image = input_.get("image")
    photo = read_image(input_["file_name"]) if image is None else to_numpy(image).transpose(1, 2, 0)
    size = fit_long_side(*label.shape, long_side)
    arrays = {
        "photo": resize_image(photo, size),
        "label": resize_label(label, size, keep=1 if scores else None),
    }
    if sem_seg is not None:
        arrays["sem_seg"] = resize_label(to_numpy(sem_seg).astype(np.uint8), size)
    for name, score in scores.items():
        small = np.clip(resize_score(score, size), -_FLOAT16_MAX, _FLOAT16_MAX)
        arrays[f"score:{name}"] = small.astype(np.float16)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # in memory first: a file must not be half written
    image_id = str(input_.get("image_id", Path(input_["file_name"]).stem))
    name = urllib.parse.quote(image_id, safe="")  # ids may hold slashes
    write_atomic(folder / f"{name}.npz", buffer.getvalue())


def load_samples(folder: Path) -> dict[str, dict]:
    """Read what `save_sample` wrote.

    Returns:
        {image id: {`photo`, `label`, `sem_seg` or None, `scores` {name: (h, w) float16}}}.
    """
    samples = {}
    for path in sorted(Path(folder).glob("*.npz")):
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        scores = {k.removeprefix("score:"): arrays.pop(k) for k in list(arrays) if ":" in k}
        sample = {"sem_seg": None, **arrays, "scores": scores}
        samples[urllib.parse.unquote(path.stem)] = sample
    return samples
