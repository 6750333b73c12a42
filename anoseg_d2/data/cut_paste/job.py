"""Write a whole cut-paste dataset with any number of workers and machines, and resume it.

An image is finished when its record is in `progress/`: the record is written last, and every file
is written under a temporary name and then renamed. When all images are finished, the records become
`manifest.jsonl`. Image i depends only on (seed, i) and the inputs, so any split of the work gives
the same bytes.
"""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from anoseg_d2.data.cut_paste.frames import Frame, SceneLabelReader
from anoseg_d2.data.cut_paste.options import CutPasteOptions
from anoseg_d2.data.cut_paste.sampling import sample_and_paste
from anoseg_d2.data.cut_paste.sources import ObjectSource
from anoseg_d2.data.image_io import read_image, write_image
from anoseg_d2.utils.files import read_json, remove_abandoned, write_atomic

__all__ = ["CutPasteJob", "claim_output", "collect_manifest", "read_manifest", "run_job"]

# Options that no longer exist, as they were in every folder that can still be continued.
_FORMER_OPTIONS = {"blending": ["feather"], "blur": 0.0, "color_jitter": False, "noise": 0.0}
ALGORITHM = 1  # increased whenever the same options give other pixels
COMPRESS_LEVEL = 3  # of png files
CONFIG, INPUTS, MANIFEST, PROGRESS = (
    "cut_paste.json",
    "cut_paste_inputs.json",
    "manifest.jsonl",
    "progress",
)


@dataclass(frozen=True)
class CutPasteJob:
    """Description of the dataset to make.

    Args:
        frames: scenes; each is seeded by its index.
        reader: reads their labels.
        outliers, controls, closed_set: sources of unknown objects, of known objects, and of
            segments of the frames themselves.
        options: how objects are pasted.
        seed: 0 or more.
        output: folder to write.
        split: name of the split folder in the output.
        benchmark: write an anomaly benchmark (images/, labels_masks/ with 0, 1, 255) instead of a
            training set in Cityscapes layout.
    """

    frames: Sequence[Frame]
    reader: SceneLabelReader
    outliers: Sequence[ObjectSource]
    controls: Sequence[ObjectSource]
    options: CutPasteOptions
    seed: int
    output: Path
    split: str = "train"
    benchmark: bool = False
    closed_set: Sequence[ObjectSource] = ()

    def __post_init__(self):
        stems = Counter(frame.stem for frame in self.frames)
        twice = [stem for stem, number in stems.items() if number > 1]
        if self.benchmark and twice:
            raise ValueError(f"a benchmark keeps its images in one folder, but {twice} occur twice")

    @property
    def sources(self) -> list[ObjectSource]:
        """Every source of objects."""
        return [*self.outliers, *self.controls, *self.closed_set]

    def paths(self, frame: Frame) -> tuple[Path, Path]:
        """Return where an image and its label are written."""
        if self.benchmark:
            return (
                self.output / "images" / f"{frame.stem}.png",
                self.output / "labels_masks" / f"{frame.stem}_labels_semantic.png",
            )
        coding = "labelIds" if self.reader.is_cityscapes else "labelTrainIds"
        folder = Path(self.split, frame.group)
        return (
            self.output / "leftImg8bit" / folder / f"{frame.stem}_leftImg8bit.png",
            self.output / "gtFine" / folder / f"{frame.stem}_gtFine_{coding}.png",
        )

    def record_path(self, index: int) -> Path:
        """Return where the record of image `index` is until the manifest takes it."""
        return self.output / PROGRESS / f"{index:06d}.json"

    def record(self, index: int) -> dict | None:
        """Return the record of image `index`; None while it is not made."""
        path = self.record_path(index)
        return read_json(path) if path.is_file() else None

    def config(self) -> dict:
        """Return everything that the output depends on, except files, as plain json values."""
        sources = {
            role: [{"kind": type(source).__name__, **source.settings} for source in group]
            for role, group in self._roles()
        }
        # Through json, so that it can be compared with what an earlier run wrote.
        config = {
            "algorithm": ALGORITHM,
            "seed": self.seed,
            "split": self.split,
            "benchmark": self.benchmark,
            "compress_level": COMPRESS_LEVEL,
            "label_rule": self.reader.rule.name,
            "options": {**dataclasses.asdict(self.options), **_FORMER_OPTIONS},
            "sources": sources,
        }
        return json.loads(json.dumps(config))

    def _roles(self):
        roles = {"outliers": self.outliers, "controls": self.controls}
        # Sets from before there was this kind of source must still be continued.
        return (roles | ({"closed set": self.closed_set} if self.closed_set else {})).items()

    def inputs(self) -> dict[str, dict[str, int]]:
        """Return group of inputs -> file name -> size in bytes, -1 if missing.

        Names and sizes are compared, not paths, so the inputs may be moved between two runs.
        """
        groups = {
            "images": {frame.name: _size(frame.image) for frame in self.frames},
            "labels": {frame.name: _size(frame.label) for frame in self.frames},
        }
        for role, group in self._roles():
            for number, source in enumerate(group):
                groups[f"{role} {number}"] = dict(source.files)
        return groups


def _size(path: Path | None) -> int:
    return path.stat().st_size if path is not None and path.is_file() else -1


def claim_output(job: CutPasteJob) -> str:
    """Write the config into a new output folder, or check that an existing folder has the same.

    Returns:
        hash of the options and inputs.
    Raises:
        ValueError: the folder was made differently or holds something else; the message names
            the differences.
    """
    remove_abandoned(job.output)
    config, inputs = job.config(), job.inputs()
    digest = hashlib.sha256(json.dumps([config, inputs], sort_keys=True).encode()).hexdigest()
    path = job.output / CONFIG
    if not path.is_file():
        # A run killed between these writes left one; shards that start at once see each other's.
        there = {p.name for p in job.output.glob("*") if not p.name.startswith(".anoseg-")}
        if there - {INPUTS, CONFIG}:
            names = ", ".join(sorted(there)[:5])
            raise ValueError(
                f"output folder {job.output} holds other things ({names}) and no {CONFIG}; "
                "choose an empty or new folder"
            )
        write_atomic(job.output / INPUTS, _pretty(inputs))
        write_atomic(path, _pretty({**config, "hash": digest}))
        return digest
    there, old_inputs = read_json(path), read_json(job.output / INPUTS)
    if not isinstance(there, dict) or there.pop("hash", None) != digest:
        differences = list(_differences(there, config))
        differences += list(_differences(old_inputs, inputs, "input "))
        raise ValueError(
            f"output folder {job.output} was made with other options or inputs:\n  "
            + "\n  ".join(differences[:12])
            + (f"\n  ... and {len(differences) - 12} more" if len(differences) > 12 else "")
            + "\nUse the same ones to continue, or choose another folder (or delete this one)."
        )
    return digest


def _pretty(content: dict) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _differences(there, now, name="") -> Iterator[str]:
    if isinstance(there, list) and isinstance(now, list):
        there, now = dict(enumerate(there)), dict(enumerate(now))
    if isinstance(there, dict) and isinstance(now, dict):
        for key in sorted(there.keys() | now.keys()):
            yield from _differences(there.get(key), now.get(key), f"{name}{key}: ")
    elif there != now:
        yield f"{name}{there} there, {now} now"


def run_job(job: CutPasteJob, shard: tuple[int, int] = (0, 1), workers: int = 1) -> Iterator[dict]:
    """Make the images that are not finished.

    Args:
        job: job whose output `claim_output` has claimed.
        shard: (I, N) makes the images i with i modulo N = I; I is 0..N-1.
        workers: number of processes.
    Yields:
        the record of each image of the shard; those of finished images come first.
    Raises:
        OSError: a file cannot be written, or a worker process died; finished images are kept.
    """
    mine = [frame.index for frame in job.frames if frame.index % shard[1] == shard[0]]
    finished = read_manifest(job.output)
    todo = []
    for index in mine:
        record = finished.get(index) or job.record(index)
        if record and not record["failed"] and all(map(Path.is_file, job.paths(job.frames[index]))):
            yield record
        else:
            todo.append(index)
    # A killed run may have left files half-written for the same images.
    folders = {path.parent for index in todo for path in job.paths(job.frames[index])}
    for folder in folders | {job.output / PROGRESS}:
        remove_abandoned(folder)
    if workers > 1:
        yield from _make_with(job, todo, workers)
        return
    for index in todo:
        yield _make(job, job.frames[index])


# Of a worker process: sent once, not with every image, because its sources can be large.
_job: CutPasteJob | None = None


def _start_worker(job: CutPasteJob) -> None:
    global _job
    _job = job
    # Ctrl-C reaches the whole group; the parent ends the workers when it has cleaned up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    """End this worker when its parent is killed; otherwise it would wait on its queue forever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _make_in_worker(index: int) -> dict:
    return _make(_job, _job.frames[index])


def _make_with(job, todo, workers) -> Iterator[dict]:
    # A forked child would inherit locks that thread pools of OpenCV or torch may hold, so spawn.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (job,))
    waiting, rest = set(), iter(todo)
    try:
        while True:
            # Only a few are submitted at a time, so memory does not grow with the number of images.
            while len(waiting) < 4 * workers and (index := next(rest, None)) is not None:
                waiting.add(pool.submit(_make_in_worker, index))
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker process was killed (out of memory?); finished images are kept, and the same "
            "command continues from there"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _make(job: CutPasteJob, frame: Frame) -> dict:
    """Make one image; write it, its label and, last, its record."""
    record = {"index": frame.index, "name": frame.name, "seed": [job.seed, frame.index]}
    try:
        if frame.label is None:
            raise FileNotFoundError(f"image without label: {frame.image}")
        image, label = read_image(frame.image, labelled=True), job.reader(frame.label)
        if image.shape[:2] != label.shape:
            raise ValueError(
                f"{frame.label} is {label.shape[1]}x{label.shape[0]}, its image "
                f"{image.shape[1]}x{image.shape[0]}"
            )
    except (OSError, ValueError) as error:
        record |= {"failed": str(error), "objects": [], "problems": []}
        write_atomic(job.record_path(frame.index), _pretty(record))
        return record
    generator = np.random.default_rng((job.seed, frame.index))
    sources = (job.outliers, job.controls, job.closed_set)
    image, label, objects, problems = sample_and_paste(
        image, label, generator, job.options, *sources, frame=frame.index
    )
    image_path, label_path = job.paths(frame)
    # An image without objects keeps its bytes: encoding it again would only cost time.
    if not objects and frame.image.suffix.lower() == ".png":
        write_atomic(image_path, frame.image.read_bytes())
    else:
        write_image(image_path, image, compress_level=COMPRESS_LEVEL)
    label = job.reader.to_benchmark(label) if job.benchmark else label
    write_image(label_path, label, compress_level=COMPRESS_LEVEL)
    record |= {"failed": None, "objects": objects, "problems": problems}
    write_atomic(job.record_path(frame.index), _pretty(record))
    return record


def read_manifest(output) -> dict[int, dict]:
    """Return index -> record of each image of a finished dataset; empty while it is unfinished.

    Each record holds `name`, `seed`, `failed` (None, or why it was not made), `problems`, and
    `objects` as `paste_objects` describes them.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    path = Path(output) / MANIFEST
    records: dict[int, dict] = {}
    if not path.is_file():
        return records
    try:
        for text in path.read_bytes().splitlines():
            line = json.loads(text)
            if line.pop("kind") == "image":
                records[line["index"]] = {**line, "objects": []}
            else:
                item = {key: value for key, value in line.items() if key not in ("index", "seed")}
                records[line["index"]]["objects"].append(item)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged: {error!r}. Delete it, and the same command makes the images again"
        ) from error
    return records


def collect_manifest(job: CutPasteJob) -> dict[int, dict] | None:
    """Join the records into `manifest.jsonl` when every image has one.

    Returns:
        index -> record, or None while other shards are unfinished.
    """
    records = read_manifest(job.output)
    for frame in job.frames:
        record = job.record(frame.index) or records.get(frame.index)
        if record is None:
            # Another shard may have finished at the same moment and collected the records.
            return read_manifest(job.output) or None
        records[frame.index] = record
    lines = []
    for index in sorted(records):
        # First the image, then its objects, each with what says where it belongs.
        record = records[index]
        image = {key: value for key, value in record.items() if key != "objects"}
        lines.append({"kind": "image", **image, "pasted": len(record["objects"])})
        origin = {key: record[key] for key in ("index", "name", "seed")}
        lines += [{"kind": "object", **origin, **item} for item in record["objects"]]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_atomic(job.output / MANIFEST, text.encode())
    for frame in job.frames:
        job.record_path(frame.index).unlink(missing_ok=True)
    folder = job.output / PROGRESS
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    return records
