"""Write a whole cut-paste dataset with any number of workers and machines.

OUTPUT/
  leftImg8bit/, gtFine/  images and labels, as in Cityscapes (a benchmark: images/, labels_masks/)
  cut_paste.json         the settings; a folder made with other ones is refused
  progress/              one record per finished image, until all are finished
  manifest.jsonl         then, a line per image, followed by one per object
  summary.json           what was made, and what could not be used
  card.yaml              registers the set, wherever it is moved

Image i depends only on (seed, i) and the inputs, so any split of the work gives the same bytes. The
record of an image is written last, so that an interrupted run continues with the same command.
"""

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
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
from anoseg_d2.utils.files import read_json, write_atomic, write_json

ALGORITHM = 1  # increased whenever the same options give other pixels
COMPRESS_LEVEL = 3  # of png files
SETTINGS, MANIFEST, PROGRESS = "cut_paste.json", "manifest.jsonl", "progress"


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

    def settings(self) -> dict:
        """Return everything that the output depends on, as plain json values, and its hash."""
        # Names and sizes, not paths, so that the inputs may be moved between two runs.
        inputs = [(f.name, _size(f.image), _size(f.label)) for f in self.frames]
        inputs += [sorted(source.files.items()) for source in self.sources]
        roles = {"outliers": self.outliers, "controls": self.controls}
        roles["closed set"] = self.closed_set
        settings = {
            "algorithm": ALGORITHM,
            "seed": self.seed,
            "split": self.split,
            "benchmark": self.benchmark,
            "compress_level": COMPRESS_LEVEL,
            "label_rule": self.reader.rule.name,
            **dataclasses.asdict(self.options),
            **{
                role: [{"kind": type(source).__name__, **source.settings} for source in group]
                for role, group in roles.items()
            },
            "inputs": _digest(inputs),
        }
        # Through json, so that it can be compared with what an earlier run wrote.
        return {**json.loads(json.dumps(settings)), "hash": _digest(settings)}


def _size(path: Path | None) -> int:
    return path.stat().st_size if path is not None and path.is_file() else -1


def _digest(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def claim_output(job: CutPasteJob) -> str:
    """Write the settings into a new output folder, or check that an existing one has the same.

    Returns:
        hash of the settings and inputs.
    Raises:
        ValueError: the folder was made differently or holds something else; the message names
            the differences.
    """
    settings, path = job.settings(), job.output / SETTINGS
    if not path.is_file():
        # Hidden: a shard that starts at the same time may be writing its settings.
        there = sorted(p.name for p in job.output.glob("[!.]*") if p.name != SETTINGS)
        if there:
            raise ValueError(
                f"output folder {job.output} holds other things ({', '.join(there[:5])})"
            )
        write_json(path, settings)
        return settings["hash"]
    there = read_json(path)
    if there != settings:
        there = there if isinstance(there, dict) else {}
        different = [k for k in settings if k != "hash" and there.get(k) != settings[k]]
        raise ValueError(
            f"output folder {job.output} was made with other options or inputs: "
            + "; ".join(f"{k}: {there.get(k)} there, {settings[k]} now" for k in different)
            + ". Use the same ones to continue, or choose another folder (or delete this one)."
        )
    return settings["hash"]


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
    # Whoever made an image, this shard or another, it is not made again.
    finished, todo = _finished(job), []
    for frame in job.frames[shard[0] :: shard[1]]:
        record = finished.get(frame.index)
        if record and not record["failed"] and all(map(Path.is_file, job.paths(frame))):
            yield record
        else:
            todo.append(frame.index)
    if workers <= 1:
        yield from (_make(job, job.frames[index]) for index in todo)
        return
    # A forked child would inherit locks that thread pools of OpenCV or torch may hold, so spawn.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (job,)) as pool:
        try:
            yield from pool.map(_make_in_worker, todo)
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a worker was killed (out of memory?); the same command continues from there"
            ) from error


# Of a worker process: sent once, not with every image, because its sources can be large.
_job: CutPasteJob | None = None


def _start_worker(job: CutPasteJob) -> None:
    global _job
    _job = job
    # Ctrl-C reaches the whole group; the parent ends the workers when it has cleaned up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    # A killed parent cannot end its workers, and they would wait on its queue forever.
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _make_in_worker(index: int) -> dict:
    return _make(_job, _job.frames[index])


def _make(job: CutPasteJob, frame: Frame) -> dict:
    """Make one image; write it, its label and, last, its record."""
    record = {"index": frame.index, "name": frame.name, "seed": [job.seed, frame.index]}
    try:
        if frame.label is None:
            raise FileNotFoundError(f"image without label: {frame.image}")
        image, label = read_image(frame.image), job.reader(frame.label)
        if image.shape[:2] != label.shape:
            raise ValueError(
                f"{frame.label} is {label.shape[1]}x{label.shape[0]}, its image "
                f"{image.shape[1]}x{image.shape[0]}"
            )
    except (OSError, ValueError) as error:
        record |= {"failed": str(error), "objects": [], "problems": []}
        write_json(_record_path(job, frame), record)
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
    write_json(_record_path(job, frame), record)
    return record


def _record_path(job: CutPasteJob, frame: Frame) -> Path:
    return job.output / PROGRESS / f"{frame.index:06d}.json"


def _finished(job: CutPasteJob) -> dict[int, dict]:
    """Return index -> record of the images that are made, by this shard or another."""
    records = {}
    for path in (job.output / PROGRESS).glob("*.json"):
        with contextlib.suppress(FileNotFoundError):  # another shard is collecting them
            record = read_json(path)
            records[record["index"]] = record
    return {**read_manifest(job.output), **records}


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
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            if line.pop("kind") == "image":
                records[line["index"]] = {**line, "objects": []}
            else:
                item = {key: value for key, value in line.items() if key not in ("index", "seed")}
                records[line["index"]]["objects"].append(item)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged: {error!r}. Delete it, and the same command makes the images again"
        ) from error
    return records


def collect_manifest(job: CutPasteJob) -> dict[int, dict] | None:
    """Join the records into `manifest.jsonl` when every image has one.

    Returns:
        index -> record, or None while other shards are unfinished.
    """
    records = _finished(job)
    if any(frame.index not in records for frame in job.frames):
        return None
    lines = []
    for _, record in sorted(records.items()):
        # First the image, then its objects, each with what says where it belongs. Sorted, because
        # sources have entries of their own in an order of their own.
        image = {key: record[key] for key in sorted(record) if key not in ("objects", "pasted")}
        lines.append({"kind": "image", **image, "pasted": len(record["objects"])})
        origin = {key: record[key] for key in ("index", "name", "seed")}
        lines += [
            {"kind": "object", **origin, **dict(sorted(item.items()))} for item in record["objects"]
        ]
    write_atomic(job.output / MANIFEST, "".join(json.dumps(x) + "\n" for x in lines).encode())
    shutil.rmtree(job.output / PROGRESS, ignore_errors=True)
    return dict(sorted(records.items()))
