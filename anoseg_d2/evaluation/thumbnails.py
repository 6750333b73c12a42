"""Keep precision, thumbnails and failures of single images for the report."""

import io
import urllib.parse
from pathlib import Path

import cv2
import numpy as np
from detectron2.utils import comm

from anoseg_d2.data.image_io import read_image
from anoseg_d2.evaluation.streaming.keys import to_numpy
from anoseg_d2.utils.constants import ANOMALY, KNOWN
from anoseg_d2.utils.files import write_atomic
from anoseg_d2.utils.visualization import (
    fit_long_side,
    resize_image,
    resize_label,
    resize_score,
)

__all__ = [
    "FailureGallery",
    "KeptImages",
    "image_average_precision",
    "load_thumbnails",
    "save_thumbnails",
    "thumbnail_name",
]

_FLOAT16_MAX = 60000.0  # below 65504, where float16 becomes infinite


def image_average_precision(score: np.ndarray, label: np.ndarray) -> float | None:
    """Compute the average precision of one image, as scikit-learn defines it.

    Args:
        score: (H, W) float32.
        label: (H, W) uint8: 0 known, 1 anomaly, others left out.
    Returns:
        0..1, None for an image without anomaly pixels.
    """
    positives = np.sort(score[label == ANOMALY])
    if positives.size == 0:
        return None
    # Recall steps only at values that an anomaly pixel has; lower scores never count.
    thresholds, counts = np.unique(positives, return_counts=True)
    negatives = np.sort(score[(label == KNOWN) & (score >= thresholds[0])])
    true = positives.size - np.searchsorted(positives, thresholds)
    false = negatives.size - np.searchsorted(negatives, thresholds)
    return float((counts * (true / (true + false))).sum() / positives.size)


def thumbnail_name(image_id: str) -> str:
    """Return the file name of an image's thumbnails; ids may hold slashes."""
    return urllib.parse.quote(str(image_id), safe="") + ".npz"


def save_thumbnails(
    path, photo, label, sem_seg, scores: dict, long_side: int = 480, keep_scores: bool = False
) -> None:
    """Write what the report shows of one image.

    Args:
        path: npz file.
        photo: (H, W, 3) uint8 RGB.
        label: (H, W) uint8, 0/1/255.
        sem_seg: (H, W) integers of train ids, or None.
        scores: {name: (H, W) float32}.
        long_side: of the thumbnails, pixels.
        keep_scores: keep the other scores of an earlier file of the same size.
    """
    size = fit_long_side(*label.shape, long_side)
    arrays = {
        "photo": resize_image(photo, size),
        "label": resize_label(label, size, keep=1),  # a small anomaly must not vanish
        "size": np.array(label.shape),
    }
    if sem_seg is not None:
        arrays["sem_seg"] = resize_label(sem_seg.astype(np.uint8), size)
    if keep_scores and Path(path).is_file():
        for name, small in load_thumbnails(path)["scores"].items():
            if small.shape == size:  # another version may have made them larger or smaller
                arrays[f"score:{name}"] = small
    for name, score in scores.items():
        small = np.clip(resize_score(score, size), -_FLOAT16_MAX, _FLOAT16_MAX)
        arrays[f"score:{name}"] = small.astype(np.float16)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # in memory first: a file must not be half written
    write_atomic(path, buffer.getvalue())


def load_thumbnails(path) -> dict:
    """Read `save_thumbnails` back: photo, label, size, sem_seg or None, scores {name: float16}."""
    with np.load(Path(path), allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files}
    scores = {k.removeprefix("score:"): arrays.pop(k) for k in list(arrays) if ":" in k}
    return {"sem_seg": None, **arrays, "scores": scores}


class FailureGallery:
    """Keeps the worst mistakes of each score as crops at native size.

    Kinds: `false`, the highest-scoring known pixel of an image, at least `margin` pixels away from
    any labelled anomaly; `missed`, the labelled anomaly (8-connected) with the lowest mean score.
    At most one of a kind per image and score; the `keep` worst of a dataset stay.

    Args:
        keep: crops per score and kind.
        crop: side of the crops, pixels.
        margin: pixels.
    """

    def __init__(self, keep: int = 8, crop: int = 192, margin: int = 8):
        self.keep, self.crop, self.margin = keep, crop, margin
        self.entries: dict[tuple[str, str], list[dict]] = {}

    def update(self, image_id: str, photo, label, scores: dict) -> None:
        """Look at one image: photo (H, W, 3) uint8, label (H, W), scores {name: (H, W)}."""
        reach = np.ones((2 * self.margin + 1,) * 2, np.uint8)
        anomaly = (label == 1).astype(np.uint8)
        far_known = (label == 0) & (cv2.dilate(anomaly, reach) == 0)
        _, ids, stats, _ = cv2.connectedComponentsWithStats(anomaly, connectivity=8)
        places = np.flatnonzero(anomaly)
        objects = ids.reshape(-1)[places]
        for name, score in scores.items():
            if far_known.any():
                place = np.unravel_index(
                    np.argmax(np.where(far_known, score, -np.inf)), score.shape
                )
                self._offer(
                    "false", name, float(score[place]), place, image_id, photo, label, score
                )
            if len(stats) > 1:
                value, place = _least_noticed(objects, places, stats, score)
                self._offer("missed", name, value, place, image_id, photo, label, score)

    def _offer(self, kind, name, value, place, image_id, photo, label, score) -> None:
        kept = self.entries.setdefault((kind, name), [])
        worse_first = -value if kind == "false" else value
        if len(kept) == self.keep and worse_first >= kept[-1]["order"]:
            return
        window = _window(place, label.shape, self.crop)
        entry = {
            "order": worse_first,
            "image_id": image_id,
            "value": value,
            "place": [int(v) for v in place],
            # A crop is moved inside of the image, so that its centre need not be the place.
            "at": [int(v) - part.start for v, part in zip(place, window, strict=True)],
            "photo": photo[window].copy(),  # a view would keep the whole image in memory
            "label": label[window].copy(),
            "score": np.clip(score[window], -_FLOAT16_MAX, _FLOAT16_MAX).astype(np.float16),
        }
        self.entries[(kind, name)] = self._worst([*kept, entry])

    def _worst(self, entries: list[dict]) -> list[dict]:
        return sorted(entries, key=lambda e: (e["order"], e["image_id"]))[: self.keep]

    def merge(self, other: "FailureGallery") -> None:
        """Add what another gallery found on other images."""
        for key, entries in other.entries.items():
            self.entries[key] = self._worst([*self.entries.get(key, []), *entries])

    def save(self, folder) -> list[dict]:
        """Write the crops to `folder` and return their records, without the pixels."""
        records = []
        for (kind, name), entries in sorted(self.entries.items()):
            for rank, entry in enumerate(entries):
                file = f"{kind}-{urllib.parse.quote(name, safe='')}-{rank:02d}.npz"
                buffer = io.BytesIO()
                np.savez(buffer, **{k: entry[k] for k in ("photo", "label", "score")})
                write_atomic(Path(folder) / file, buffer.getvalue())
                fields = {k: entry[k] for k in ("image_id", "value", "place", "at")}
                records.append({"kind": kind, "score": name, "file": file, **fields})
        return records


def _least_noticed(objects, places, stats, score) -> tuple[float, tuple[int, int]]:
    """Return mean score and centre of the object with the lowest mean score.

    Args:
        objects: (N,) id of the object at each anomaly pixel.
        places: (N,) index of that pixel in the flat image.
        stats: of OpenCV, per object.
        score: (H, W) floats.
    """
    pixels = np.bincount(objects, minlength=len(stats))
    sums = np.bincount(objects, weights=score.reshape(-1)[places], minlength=len(stats))
    means = sums[1:] / pixels[1:]  # 0 is the background
    worst = 1 + int(np.argmin(means))
    left, top, width, height = stats[worst, :4]
    return float(means[worst - 1]), (int(top + height // 2), int(left + width // 2))


def _window(place, shape, side: int) -> tuple[slice, slice]:
    """Return a square around `place`, moved inside the image and cut if the image is smaller."""
    slices = []
    for centre, extent in zip(place, shape, strict=True):
        start = int(np.clip(centre - side // 2, 0, max(0, extent - side)))
        slices.append(slice(start, min(extent, start + side)))
    return tuple(slices)


class KeptImages:
    """Figures of every image, thumbnails, and crops of the worst mistakes.

    Args:
        folder: of the dataset's evaluation; None keeps only the figures.
        keep_scores: thumbnails of scores that an earlier evaluation left there are kept.
    """

    def __init__(self, folder: Path | None, keep_scores: bool = False):
        self._folder, self._keep_scores = folder, keep_scores
        self._gallery = FailureGallery()
        self.per_image: list[dict] = []

    def add(self, image_id: str, input_: dict, label: np.ndarray, output: dict, scores: dict):
        """Record one image.

        Args:
            image_id: its name in the report.
            input_: dataset dict, with or without its `image`.
            label: (H, W) uint8, 0 known, 1 anomaly, 255 void.
            output: of the model; only `sem_seg` is read.
            scores: {name: (H, W) floats}.
        """
        record = {
            "image_id": image_id,
            "file_name": input_["file_name"],
            "anomaly_pixels": int((label == 1).sum()),
            "ap": {name: image_average_precision(score, label) for name, score in scores.items()},
        }
        self.per_image.append(record)
        if self._folder is None:
            return
        photo, sem_seg = _photo(input_, label), output.get("sem_seg")
        sem_seg = None if sem_seg is None else to_numpy(sem_seg)
        path = self._folder / "images" / thumbnail_name(image_id)
        save_thumbnails(path, photo, label, sem_seg, scores, keep_scores=self._keep_scores)
        self._gallery.update(image_id, photo, label, scores)

    def gather(self) -> None:
        """Collect what all ranks kept on rank 0; every rank must call it."""
        records, galleries = comm.gather(self.per_image), comm.gather(self._gallery)
        if comm.is_main_process():
            found = (record for part in records for record in part)
            self.per_image = sorted(found, key=lambda record: record["image_id"])
            for other in galleries[1:]:
                self._gallery.merge(other)

    def save_failures(self) -> list[dict]:
        """Write the crops of the worst mistakes and return their records."""
        return [] if self._folder is None else self._gallery.save(self._folder / "failures")


def _photo(input_: dict, label: np.ndarray) -> np.ndarray:
    """Return the photograph at the label's size, from the input's tensor or else from its file."""
    image = input_.get("image")
    photo = read_image(input_["file_name"]) if image is None else to_numpy(image).transpose(1, 2, 0)
    if photo.shape[:2] != label.shape:
        photo = cv2.resize(photo, label.shape[::-1], interpolation=cv2.INTER_AREA)
    return photo
