"""The miniature: drawn road scenes, objects to cut out, and five anomaly benchmarks, on disk.

Layout under one folder: `cityscapes/` as Cityscapes has it, `coco/` with COCO annotations,
`benchmarks/` in the layouts of the public releases, and `miniature.json` that says how it was made.
Everything is made in a folder beside it and moved at the end, `miniature.json` last: without that
file the miniature is not whole.
"""

import hashlib
import json
import logging
import multiprocessing
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from anoseg_d2.data.image_io import write_image
from anoseg_d2.utils.files import write_atomic
from miniature.drawing.objects import OBJECTS
from miniature.sets import BENCHMARKS, draw_benchmark, draw_closed_set, draw_coco

__all__ = ["MANIFEST", "MiniatureOptions", "benchmark_files", "make_miniature", "read_manifest"]

logger = logging.getLogger(__name__)

MANIFEST = "miniature.json"
_PARTS = ("cityscapes", "coco", "benchmarks")
_FORMAT = 2  # raised when the same options would draw other pictures
_CITIES = {"train": ("brickton", "larkholm", "tannwald"), "val": ("millford", "ostwick")}
_SMALLEST = (128, 64)


@dataclass(frozen=True)
class MiniatureOptions:
    """What is drawn: seed, number of scenes and of COCO images, size (W, H) of scenes."""

    seed: int = 0
    train: int = 120
    val: int = 30
    coco: int = 96
    size: tuple[int, int] = (512, 256)

    def __post_init__(self):
        for key in ("train", "val", "coco"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; at least 1 image is needed")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more")
        if self.size[0] < _SMALLEST[0] or self.size[1] < _SMALLEST[1]:
            raise ValueError(f"size is {self.size[0]}x{self.size[1]}; at least 128x64 is needed")

    def manifest(self) -> dict:
        """Options, format and their hash, as `miniature.json` holds them."""
        options = {**asdict(self), "size": list(self.size), "format": _FORMAT}
        text = json.dumps(options, sort_keys=True)
        return {"options": options, "hash": hashlib.sha256(text.encode()).hexdigest()[:16]}


def read_manifest(folder) -> dict | None:
    """The manifest of a whole miniature, None where there is none.

    Raises:
        ValueError: the file is there and is no such manifest.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text())
        return {"options": dict(manifest["options"]), **manifest}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the manifest of a miniature: {error}") from error


def make_miniature(
    output,
    options: MiniatureOptions,
    *,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> bool:
    """Make the miniature, unless it is there already.

    Args:
        output: its folder; other things in it stay.
        options: what to draw. The same options give the same bytes, whatever `workers` is.
        workers: processes that draw.
        overwrite: remake one that was made with other options.
        progress: called with (images done, images in all).
    Returns:
        True when it was made, False when the one at hand is whole and as asked.
    Raises:
        ValueError: `output` holds a miniature of other options, or folders of these names that
            are not a miniature.
    """
    output = Path(output)
    if workers < 1:
        raise ValueError(f"workers is {workers}; at least 1 is needed")
    if _is_made(output, options, overwrite):
        return False
    partial = output.parent / f".{output.name}.making"
    waiting = read_manifest(partial) if partial.is_dir() else None
    if waiting != options.manifest():
        _check_free(output)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            _draw_all(partial, options, workers, progress)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    _install(partial, output)
    return True


def _is_made(output: Path, options: MiniatureOptions, overwrite: bool) -> bool:
    found, wanted = read_manifest(output), options.manifest()
    if found is None or overwrite:
        return False
    if found["options"] != wanted["options"]:
        keys = sorted({*found["options"], *wanted["options"]})
        different = [
            f"{key} {found['options'].get(key)} there, {wanted['options'].get(key)} asked for"
            for key in keys
            if found["options"].get(key) != wanted["options"].get(key)
        ]
        raise ValueError(
            f"{output} holds a miniature of other options: {'; '.join(different)}. "
            "Remake it with --overwrite, or choose another --output."
        )
    missing = [name for name in _expected(options) if not (output / name).is_file()]
    if missing:
        logger.warning("%s lacks %d files, first %s: made again", output, len(missing), missing[0])
    return not missing


def _check_free(output: Path) -> None:
    """Refuse to put a miniature over folders that are not one, such as the real Cityscapes."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; --output names a folder")
    foreign = [part for part in _PARTS if (output / part).exists()]
    if foreign and not (output / MANIFEST).is_file():
        raise ValueError(
            f"{output} holds {', '.join(foreign)} but no {MANIFEST}, so they are not taken for a "
            "miniature and are left alone. Choose another --output, or move them away."
        )


def _install(partial: Path, output: Path) -> None:
    """Move the parts to their place; the manifest goes first from there and comes last."""
    output.mkdir(parents=True, exist_ok=True)
    (output / MANIFEST).unlink(missing_ok=True)
    for part in _PARTS:
        if (partial / part).exists():  # else an interrupted run has moved it already
            shutil.rmtree(output / part, ignore_errors=True)
            (partial / part).rename(output / part)
    (partial / MANIFEST).rename(output / MANIFEST)
    shutil.rmtree(partial)


def _tasks(options: MiniatureOptions) -> list[tuple[str, int]]:
    counts = {"train": options.train, "val": options.val, "coco": options.coco}
    counts.update({name: plan.images for name, plan in BENCHMARKS.items()})
    return [(name, index) for name, count in counts.items() for index in range(count)]


def _expected(options: MiniatureOptions) -> Iterator[str]:
    """Names of all files of a whole miniature, relative to its folder."""
    yield "coco/annotations/instances_train.json"
    yield "benchmarks/RoadAnomaly_jpg/frame_list.json"
    for name, index in _tasks(options):
        if name == "coco":
            yield f"coco/train/{_coco_name(index)}"
        else:
            yield from (
                _closed_files(name, index) if name in _CITIES else benchmark_files(name, index)
            )


def _draw_all(folder: Path, options: MiniatureOptions, workers: int, progress) -> None:
    tasks = [(str(folder), options, name, index) for name, index in _tasks(options)]
    found = {}
    with closing(_run(tasks, workers)) as results:  # ends the workers before anybody tidies up
        for done, (name, index, annotations) in enumerate(results, 1):
            if name == "coco":
                found[index] = annotations
            progress(done, len(tasks))
    _write_json(folder / "coco/annotations/instances_train.json", _coco_json(found))
    frames = [_frame(index) + ".jpg" for index in range(BENCHMARKS["road_anomaly"].images)]
    _write_json(folder / "benchmarks/RoadAnomaly_jpg/frame_list.json", frames)
    _write_json(folder / MANIFEST, options.manifest())


def _run(tasks, workers: int):
    if workers == 1:
        yield from map(_draw_one, tasks)
        return
    # spawn: a fork would inherit the locks of thread pools that OpenCV or torch may hold
    with multiprocessing.get_context("spawn").Pool(workers, _start_worker) as pool:
        yield from pool.imap_unordered(_draw_one, tasks, chunksize=2)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it ends the pool
    cv2.setNumThreads(1)


def _draw_one(task):
    """Draw and write one picture; returns (set, index, annotations of a COCO image)."""
    folder, options, name, index = task
    folder, annotations = Path(folder), None
    if name == "coco":
        image, annotations = draw_coco(options.seed, index)
        write_image(folder / "coco/train" / _coco_name(index), image, quality=93)
    elif name in _CITIES:
        pair = draw_closed_set(options.seed, name, index, options.size)
        for path, pixels in zip(_closed_files(name, index), pair, strict=True):
            write_image(folder / path, pixels, compress_level=4)
    else:
        _write_benchmark(
            folder, name, index, draw_benchmark(options.seed, name, index, options.size)
        )
    return name, index, annotations


def _closed_files(split: str, index: int) -> tuple[str, str]:
    city = _CITIES[split][index % len(_CITIES[split])]
    stem = f"{split}/{city}/{city}_{index:06d}_000019"
    return (
        f"cityscapes/leftImg8bit/{stem}_leftImg8bit.png",
        f"cityscapes/gtFine/{stem}_gtFine_labelIds.png",
    )


def _frame(index: int) -> str:
    return f"drawn{index:02d}_road_scene"


def benchmark_files(name: str, index: int) -> tuple[str, str]:
    """Image and label of one benchmark image, below the miniature, as the release names them."""
    static, found = (
        f"{index:04d}_millford_{index:06d}_000019",
        f"04_Larkholm_{index}_000000_{10 * index:06d}",
    )
    # In RoadObstacle21 frame 19 and 21..29 are withdrawn; small numbers stay clear of them.
    image, label = {
        "road_anomaly": (
            f"RoadAnomaly_jpg/frames/{_frame(index)}.jpg",
            f"RoadAnomaly_jpg/frames/{_frame(index)}.labels/labels_semantic.png",
        ),
        "road_anomaly21": (
            f"dataset_AnomalyTrack/images/validation{index:04d}.{('jpg', 'png')[index % 2]}",
            f"dataset_AnomalyTrack/labels_masks/validation{index:04d}_labels_semantic.png",
        ),
        "road_obstacle21": (
            f"dataset_ObstacleTrack/images/validation_{index + 1}.webp",
            f"dataset_ObstacleTrack/labels_masks/validation_{index + 1}_labels_semantic.png",
        ),
        "fishyscapes_lostandfound": (
            f"laf_images/{found}_leftImg8bit.png",
            f"fishyscapes_lostandfound/{index:04d}_{found}_labels.png",
        ),
        "fishyscapes_static": (
            f"fs_static_images_v1/{static}_rgb.png",
            f"fs_val_v1/{static}_labels.png",
        ),
    }[name]
    return f"benchmarks/{image}", f"benchmarks/{label}"


def _write_benchmark(folder: Path, name: str, index: int, drawn) -> None:
    image, label = benchmark_files(name, index)
    options = {".jpg": {"quality": 92}, ".webp": {"quality": 92}}.get(Path(image).suffix, {})
    write_image(folder / image, drawn.image, **options)
    stored = drawn.label
    if name == "road_anomaly":  # the release codes the anomaly as 2
        stored = np.where(stored == 1, 2, stored).astype(np.uint8)
    write_image(folder / label, stored)


def _coco_name(index: int) -> str:
    return f"{index + 1:012d}.jpg"


def _coco_json(found: dict[int, list[dict]]) -> dict:
    images, annotations = [], []
    for index in sorted(found):
        image_id = index + 1
        images.append({"id": image_id, "file_name": _coco_name(index), "width": 320, "height": 240})
        for annotation in found[index]:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
    categories = [
        {"id": key, "name": name, "supercategory": group}
        for key, (name, group, _) in OBJECTS.items()
    ]
    info = {"description": "drawn objects with COCO categories", "version": "1.0"}
    return {
        "info": info,
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _write_json(path: Path, content) -> None:
    write_atomic(path, json.dumps(content).encode())
