"""The miniature on disk.

One folder holds `cityscapes/` in the layout of Cityscapes, `coco/` with COCO annotations,
`benchmarks/` as the cards in this package describe them, and `miniature.json`, which says how it
was made. All of it is drawn in a folder next to it that takes its name at the end: a miniature is
whole or absent.
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

from anoseg_d2.data.image_io import write_image
from anoseg_d2.utils.files import read_json, write_json
from miniature.drawing.objects import OBJECTS
from miniature.sets import BENCHMARKS, COCO_SIZE, draw_benchmark, draw_closed_set, draw_coco

__all__ = ["MANIFEST", "MiniatureOptions", "make_miniature", "read_manifest"]

logger = logging.getLogger(__name__)

MANIFEST = "miniature.json"
_FORMAT = 3  # raised when the same options would draw other pictures
_CITIES = {"train": ("brickton", "larkholm", "tannwald"), "val": ("millford", "ostwick")}
_COCO_JSON = "coco/annotations/instances_train.json"


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
        width, height = self.size
        if not (128 <= width <= 8192 and 64 <= height <= 8192):
            raise ValueError(f"size is {width}x{height}; it must be 128x64 to 8192x8192")

    def manifest(self) -> dict:
        """Return options, format and their hash, as `miniature.json` holds them."""
        options = {**asdict(self), "size": list(self.size), "format": _FORMAT}
        text = json.dumps(options, sort_keys=True)
        return {"options": options, "hash": hashlib.sha256(text.encode()).hexdigest()[:16]}


def read_manifest(folder) -> dict | None:
    """Return the manifest of a miniature, None where there is none.

    Raises:
        ValueError: the file is there but is not such a manifest.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = read_json(path)
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
        output: its folder. What else is in it, such as outliers made from these scenes, goes when
            the miniature is made again.
        options: what to draw. The same options give the same bytes, whatever `workers` is.
        workers: processes that draw.
        overwrite: replace one that was made with other options.
        progress: called with (images done, images in all).
    Returns:
        True when it was made, False when the one at hand is whole and as asked.
    Raises:
        ValueError: `output` holds a miniature of other options, or something else.
    """
    output = Path(output)
    if workers < 1:
        raise ValueError(f"workers is {workers}; at least 1 is needed")
    if _is_made(output, options, overwrite):
        return False
    partial = output.parent / f".{output.name}.making"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _draw_all(partial, options, workers, progress)
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _is_made(output: Path, options: MiniatureOptions, overwrite: bool) -> bool:
    found, wanted = read_manifest(output), options.manifest()
    if found is None:
        if output.is_file() or (output.is_dir() and any(output.iterdir())):
            raise ValueError(
                f"{output} is there and has no {MANIFEST}, so it is not a miniature and is left "
                "alone. Choose another --output, or move it away."
            )
        return False
    if overwrite:
        return False
    if found["options"] != wanted["options"]:
        different = [
            f"{key} {found['options'].get(key)} there, {value} asked for"
            for key, value in wanted["options"].items()
            if found["options"].get(key) != value
        ]
        raise ValueError(
            f"{output} holds a miniature of other options: {'; '.join(different)}. "
            "Replace it with --overwrite, or choose another --output."
        )
    missing = [name for task in list_tasks(options) for name in _files(*task)]
    missing = [name for name in [_COCO_JSON, *missing] if not (output / name).is_file()]
    if missing:
        logger.warning("%s lacks %d files, first %s: made again", output, len(missing), missing[0])
    return not missing


def list_tasks(options: MiniatureOptions) -> list[tuple[str, int]]:
    counts = {"train": options.train, "val": options.val, "coco": options.coco}
    counts.update({name: plan.images for name, plan in BENCHMARKS.items()})
    return [(name, index) for name, count in counts.items() for index in range(count)]


def _files(name: str, index: int) -> tuple[str, ...]:
    """Return the image of a task and, except for COCO, its label; relative to the miniature."""
    if name == "coco":
        return (f"coco/train/{index + 1:012d}.jpg",)
    if name in BENCHMARKS:
        folder, suffix = f"benchmarks/{name}", BENCHMARKS[name].suffix
        return f"{folder}/images/{index:04d}{suffix}", f"{folder}/labels_masks/{index:04d}.png"
    city = _CITIES[name][index % len(_CITIES[name])]
    stem = f"{name}/{city}/{city}_{index:06d}_000019"
    return (
        f"cityscapes/leftImg8bit/{stem}_leftImg8bit.png",
        f"cityscapes/gtFine/{stem}_gtFine_labelIds.png",
    )


def _draw_all(folder: Path, options: MiniatureOptions, workers: int, progress) -> None:
    tasks = [(folder, options, name, index) for name, index in list_tasks(options)]
    annotations = {}
    with closing(_run(tasks, workers)) as results:  # ends the workers before anybody tidies up
        for done, (name, index, found) in enumerate(results, 1):
            if name == "coco":
                annotations[index] = found
            progress(done, len(tasks))
    write_json(folder / _COCO_JSON, _coco_json(annotations))
    write_json(folder / MANIFEST, options.manifest())


def _run(tasks, workers: int) -> Iterator:
    if workers == 1:
        yield from map(_draw_one, tasks)
        return
    # spawn: a fork would inherit the locks of thread pools that OpenCV or torch may hold
    with multiprocessing.get_context("spawn").Pool(workers, _start_worker) as pool:
        yield from pool.imap_unordered(_draw_one, tasks, chunksize=2)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the pool
    cv2.setNumThreads(1)


def _draw_one(task):
    """Draw and write one picture; return (set, index, annotations of a COCO image)."""
    folder, options, name, index = task
    annotations, files = None, _files(name, index)
    if name == "coco":
        image, annotations = draw_coco(options.seed, index)
    else:
        draw = draw_benchmark if name in BENCHMARKS else draw_closed_set
        image, label = draw(options.seed, name, index, options.size)
        write_image(folder / files[1], label)
    lossy = not files[0].endswith(".png")
    write_image(folder / files[0], image, **({"quality": 92} if lossy else {"compress_level": 4}))
    return name, index, annotations


def _coco_json(found: dict[int, list[dict]]) -> dict:
    width, height = COCO_SIZE
    images, annotations = [], []
    for index in sorted(found):  # workers finish in any order
        name = Path(_files("coco", index)[0]).name
        image = {"id": index + 1, "file_name": name, "width": width, "height": height}
        images.append(image)
        for annotation in found[index]:
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **annotation})
    categories = [
        {"id": key, "name": name, "supercategory": group}
        for key, (name, group, _) in OBJECTS.items()
    ]
    return {"images": images, "annotations": annotations, "categories": categories}
