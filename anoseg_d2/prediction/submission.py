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
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from anoseg_d2.data.image_io import IMAGE_EXTENSIONS
from anoseg_d2.evaluation.map_files import MapReader, write_map
from anoseg_d2.evaluation.map_folder import MapFolder
from anoseg_d2.prediction.input_files import InputFile
from anoseg_d2.utils.constants import CITYSCAPES_CLASSES
from anoseg_d2.utils.files import write_atomic
from anoseg_d2.utils.folders import walk_files

__all__ = [
    "TRACKS",
    "FishyscapesMaps",
    "TrackMaps",
    "convert_maps",
    "find_fishyscapes_images",
    "find_track_frames",
]


@dataclass(frozen=True)
class Track:
    """A track of SegmentMeIfYouCan.

    Args:
        folder: name of its folder in the release.
        stored: the name under which the benchmark's tool keeps its maps.
        frames: {split: number of frames}; only `test` and `validation` are always there.
        splits: (regular expression of a frame's name, its split); the first match wins.
    """

    folder: str
    stored: str
    frames: Mapping[str, int]
    splits: tuple[tuple[str, str], ...]

    def split(self, frame: str) -> str | None:
        """Return the split of a frame, or None if the track has no frame of this name."""
        return next((name for regex, name in self.splits if re.fullmatch(regex, frame)), None)


TRACKS = {
    "anomaly": Track(
        "dataset_AnomalyTrack",
        "AnomalyTrack-all",
        {"test": 100, "validation": 10},
        ((r"validation\d+", "validation"), (r".*", "test")),
    ),
    "obstacle": Track(
        "dataset_ObstacleTrack",
        "ObstacleTrack-all",
        {"test": 327, "validation": 30, "snowstorm": 55, "night": 30},
        (
            # In the release, but withdrawn by its authors: they show test scenes.
            (r"validation_(19|2[1-9])", "withdrawn"),
            (r"validation_.*", "validation"),
            (r"(curvy-street|one-way-street|motorway|paving|gravel)_.*", "test"),
            (r"(greyasphalt|darkasphalt2?)_.*", "test"),
            (r"snowstorm[12]_.*", "snowstorm"),
            (r"driveway_.*", "night"),
        ),
    ),
}
_ALWAYS_THERE = ("test", "validation")


def find_track_frames(root, track: Track, split: str = "all") -> list[InputFile]:
    """Find the frames of a track; labels are not needed.

    Args:
        root: the folder of the track, or one that it is in.
        track: one of `TRACKS`.
        split: "test", "validation", or "all" for every frame that the release contains.
    Returns:
        the frames, sorted by name.
    Raises:
        FileNotFoundError: the track is not there.
        ValueError: there are more or fewer frames than in the release, or frames of no known name.
    """
    folder = _image_folder(Path(root), track)
    files = _images(folder)
    names = [file.name for file in files]
    unknown = [name for name in names if track.split(name) is None]
    if unknown:
        raise ValueError(f"{folder} contains images that are not of this track: {_some(unknown)}")
    found = Counter(track.split(name) for name in names)
    # Snow and night are not in every copy; where they are, they must be whole.
    wanted = _ALWAYS_THERE if split == "all" else (split,)
    wrong = [
        f"{found[name]} {name} frames instead of {count}"
        for name, count in track.frames.items()
        if found[name] != count and (name in wanted or (split == "all" and found[name]))
    ]
    if wrong:
        raise ValueError(
            f"{folder} contains {', '.join(wrong)}. The benchmark needs all of them: unpack "
            "its archive again, or choose the frames with --split test or --split validation"
        )
    return [file for file in files if split in ("all", track.split(file.name))]


def _images(folder: Path) -> list[InputFile]:
    """List the images of a folder, whose names without extension must differ."""
    paths = list(walk_files(folder, IMAGE_EXTENSIONS, depth=0))
    twice = [name for name, count in Counter(path.stem for path in paths).items() if count > 1]
    if twice:
        raise ValueError(f"{folder} contains several images named {_some(twice)}")
    return [InputFile(path, path.stem, False) for path in paths]


def _image_folder(root: Path, track: Track) -> Path:
    places = [root / name / track.folder for name in ("", "SegmentMeIfYouCan", "smiyc")]
    if root.name == track.folder:
        places.insert(0, root)
    for place in places:
        if (place / "images").is_dir():
            return place / "images"
    looked = ", ".join(str(place / "images") for place in places)
    raise FileNotFoundError(
        f"the frames of {track.folder} were not found; looked in {looked}. Download them from "
        "https://segmentmeifyoucan.com/datasets, name the folder with --root, or leave the track "
        "out with --track"
    )


def _some(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


class TrackMaps:
    """Write the score maps of one track; `PredictionJob` takes it as outputs.

    Args:
        folder: `<output>/anomaly_p/<method>/<stored name of the track>`.
    """

    def __init__(self, folder):
        self.folder = Path(folder)

    def path(self, name: str) -> Path:
        """Return the file of a frame."""
        return self.folder / f"{name}.hdf5"

    def write_image(self, name: str, source: str, photo, score: np.ndarray, sem_seg) -> None:
        """Write the map of a frame.

        Raises:
            ValueError: the map is not of the frame's size, or cannot be stored in float16.
        """
        if score.shape != photo.shape[:2]:
            raise ValueError(f"{source} is {photo.shape[:2]} (HxW), its map is {score.shape}")
        write_map(self.path(name), score)


def convert_maps(
    folder, frames: list[InputFile], output: TrackMaps, reader: MapReader, pattern: str, progress
) -> None:
    """Write the maps of any method, in any format that `read_map` reads, as hdf5.

    Args:
        folder: of the maps; maps of other images are ignored.
        frames: of `find_track_frames`.
        output: where they go.
        reader: how they are read.
        pattern: see `MapFolder.find`.
        progress: called after each map.
    Raises:
        FileNotFoundError, ValueError: maps are missing, unreadable, or not of their frame's size.
    """
    images = [{"image_id": frame.name, "file_name": str(frame.path)} for frame in frames]
    maps = MapFolder.find(folder, images, pattern)
    # A missing map would count as a frame without anomalies.
    if maps.missing:
        raise ValueError(
            f"{len(maps.missing)} of {len(frames)} frames have no map in {folder}: "
            f"{_some(maps.missing)}"
        )
    for image, path in maps.pairs:
        with Image.open(image["file_name"]) as photo:  # reads only the header
            size = photo.size[::-1]
        write_map(output.path(image["image_id"]), reader(path, size))
        progress()


def find_fishyscapes_images(folder) -> list[InputFile]:
    """Find the images that Fishyscapes mounts for a container.

    Raises:
        FileNotFoundError: the folder is missing, or contains no image.
        ValueError: two images have one name.
    """
    folder = Path(folder)
    files = _images(folder) if folder.is_dir() else []
    if not files:
        raise FileNotFoundError(f"{folder} contains no images ({' '.join(IMAGE_EXTENSIONS)})")
    return files


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
        buffer = io.BytesIO()
        np.save(buffer, sem_seg.astype(np.uint8))
        write_atomic(self.folder / f"{name}_segmentation.npy", buffer.getvalue())
