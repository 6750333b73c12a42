"""Write score maps in the formats of leaderboards with hidden labels.

SegmentMeIfYouCan (arXiv:2104.14812) evaluates files. Its tool keeps all frames of a track in one
folder, whatever split they belong to, and reads::

    <output>/anomaly_p/<method>/AnomalyTrack-all/<frame>.hdf5     100 test, 10 validation frames
    <output>/anomaly_p/<method>/ObstacleTrack-all/<frame>.hdf5    327 test, 30 validation frames

Fishyscapes (arXiv:1904.03215) runs a container without network, which reads the images of one
folder and writes two files for each::

    <output>/<image>_anomaly.npy         (H, W) float32, higher is more anomalous
    <output>/<image>_segmentation.npy    (H, W) uint8, Cityscapes train ids
"""

import io
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from anoseg_d2.data.image_io import IMAGE_EXTENSIONS
from anoseg_d2.evaluation.map_files import write_map
from anoseg_d2.prediction.input_files import InputFile
from anoseg_d2.utils.constants import CITYSCAPES_CLASSES
from anoseg_d2.utils.files import write_atomic
from anoseg_d2.utils.folders import walk_files


class Track(NamedTuple):
    """A track of SegmentMeIfYouCan.

    folder: name of its folder in the release.
    stored: the name under which the benchmark's tool keeps its maps.
    frames: test and validation frames; some releases have more, of snow and night.
    """

    folder: str
    stored: str
    frames: int


TRACKS = {
    "anomaly": Track("dataset_AnomalyTrack", "AnomalyTrack-all", 110),
    "obstacle": Track("dataset_ObstacleTrack", "ObstacleTrack-all", 357),
}


def find_track_frames(root, track: Track) -> list[InputFile]:
    """Find the frames of a track, sorted by name; labels are not needed.

    Args:
        root: the folder of the track, or one that it is in.
        track: one of `TRACKS`.
    Raises:
        FileNotFoundError: the track is not there.
        ValueError: there are fewer frames than in the release.
    """
    root = Path(root)
    places = [root, *(root / name / track.folder for name in ("", "SegmentMeIfYouCan", "smiyc"))]
    places = [place / "images" for place in places if place.name == track.folder]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(
            f"the frames of {track.folder} were not found; looked in "
            f"{', '.join(map(str, places))}. Download them from "
            "https://segmentmeifyoucan.com/datasets, name the folder with --root, or leave the "
            "track out with --track"
        )
    files = find_images(folder)
    # A missing map would count as a frame without anomalies.
    if len(files) < track.frames:
        raise ValueError(
            f"{folder} contains {len(files)} of {track.frames} frames: unpack its archive again"
        )
    return files


def find_images(folder) -> list[InputFile]:
    """List the images of a folder.

    Raises:
        FileNotFoundError: the folder is missing, or contains no image.
        ValueError: two images have one name.
    """
    folder = Path(folder)
    paths = list(walk_files(folder, IMAGE_EXTENSIONS, depth=0)) if folder.is_dir() else []
    if not paths:
        raise FileNotFoundError(f"{folder} contains no images ({' '.join(IMAGE_EXTENSIONS)})")
    # The benchmark finds maps by the name of the image, without its ending.
    name, count = Counter(path.stem for path in paths).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{folder} contains several images named {name}")
    return [InputFile(path, path.stem, False) for path in paths]


class TrackMaps:
    """Write the score maps of one track; `PredictionJob` takes it as outputs.

    Args:
        folder: `<output>/anomaly_p/<method>/<stored name of the track>`.
    """

    def __init__(self, folder):
        self.folder = Path(folder)

    def write_image(self, name: str, source: str, photo, score: np.ndarray, sem_seg) -> None:
        """Write the map of a frame; ValueError where it cannot be stored in float16."""
        write_map(self.folder / f"{name}.hdf5", score)


class FishyscapesMaps:
    """Write the files that Fishyscapes reads of an image; `PredictionJob` takes it as outputs.

    Args:
        folder: where the files go.
        num_known: classes of the model, which must be Cityscapes' 19: the benchmark also evaluates
            the segmentation.
    Raises:
        ValueError: the model has other classes.
    """

    def __init__(self, folder, num_known: int):
        if num_known != len(CITYSCAPES_CLASSES):
            raise ValueError(
                f"Fishyscapes also compares the segmentation with Cityscapes' "
                f"{len(CITYSCAPES_CLASSES)} classes, but this model has {num_known}"
            )
        self.folder = Path(folder)

    def write_image(self, name: str, source: str, photo, score: np.ndarray, sem_seg) -> None:
        """Write score map and segmentation of an image."""
        write_map(self.folder / f"{name}_anomaly.npy", score)
        buffer = io.BytesIO()  # so that the file appears whole
        np.save(buffer, sem_seg.astype(np.uint8))
        write_atomic(self.folder / f"{name}_segmentation.npy", buffer.getvalue())
