#!/usr/bin/env python
"""Measure speed and memory of the cut-paste generator, compared with decoding and encoding only.

The ratio is the processor time for one image with objects on one core at 2048x1024, divided by the
time to read the same image and label and to write them again with the same codec. Images per second
(wall clock) follow for each number of workers, and peak memory for two numbers of images.

Example:
    python benchmarks/cut_paste.py --json cut_paste.json
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from anoseg_d2.data.cut_paste import CutPasteOptions
from anoseg_d2.data.cut_paste.coco import CocoObjects
from anoseg_d2.data.cut_paste.frames import SceneLabelReader, find_scenes
from anoseg_d2.data.cut_paste.job import CutPasteJob, run_job
from anoseg_d2.data.image_io import read_image, read_label, write_image
from anoseg_d2.data.label_rules import LABEL_RULES
from anoseg_d2.utils.cli import run_command
from anoseg_d2.utils.files import write_json

LIMIT = 1.6  # times the processor time of decoding and encoding only


def main(arguments=None) -> int:
    """Run the benchmark; return 1 if the generator is slower than the limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures here")
    parser.add_argument("--images", type=int, default=9, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048), metavar=("H", "W"))
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args(arguments)
    return run_command(lambda: run(args))


def run(args) -> int:
    """Measure, print and write the figures; return the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), args)
    print(json.dumps(figures, indent=1))
    if args.json:
        write_json(args.json, figures)
    return int(figures["ratio"] > LIMIT)


def measure(folder: Path, args) -> dict:
    """Return all figures; times are medians over rounds in which both sides take turns."""
    cv2.setNumThreads(1)
    write_scenes(folder / "scenes", args.images, tuple(args.size))
    write_objects(folder / "coco")
    recode_times, paste_times = [], []
    for _ in range(args.rounds):
        recode_times.append(_seconds(lambda: recode(folder), time.process_time) / args.images)
        paste_times.append(_seconds(lambda: paste(folder, 1), time.process_time) / args.images)
    pace = {
        workers: args.images / min(_seconds(lambda w=workers: paste(folder, w)) for _ in range(2))
        for workers in args.workers
    }
    few, many = (peak_memory(folder, number) for number in (args.images // 3, args.images))
    recoding, pasting = statistics.median(recode_times), statistics.median(paste_times)
    return {
        "size": list(args.size),
        "cpus": os.cpu_count(),
        "recode_seconds_per_image": round(recoding, 4),
        "paste_seconds_per_image": round(pasting, 4),
        "ratio": round(pasting / recoding, 3),
        "limit": LIMIT,
        "images_per_second_by_workers": {str(w): round(value, 3) for w, value in pace.items()},
        "peak_mib_by_images": {str(args.images // 3): few, str(args.images): many},
    }


def _seconds(work, clock=time.perf_counter) -> float:
    start = clock()
    work()
    return clock() - start


def recode(folder: Path) -> None:
    """Read and write every scene and its label."""
    out = folder / "recoded"
    for frame in find_scenes(folder / "scenes", None, "train")[0]:
        write_image(out / frame.image.name, read_image(frame.image), compress_level=3)
        write_image(out / frame.label.name, read_label(frame.label), compress_level=3)
    shutil.rmtree(out)


def paste(folder: Path, workers: int, number: int | None = None) -> None:
    """Make a set in which every image has objects."""
    source = CocoObjects(folder / "coco" / "instances.json", folder / "coco")
    job = CutPasteJob(
        frames=find_scenes(folder / "scenes", None, "train")[0][:number],
        reader=SceneLabelReader(LABEL_RULES["cityscapes"]),
        outliers=[source],
        controls=[],
        options=CutPasteOptions(ratio=1.0),
        seed=0,
        output=folder / "pasted",
    )
    for record in run_job(job, workers=workers):
        assert record["failed"] is None, record
    shutil.rmtree(job.output)


def peak_memory(folder: Path, number: int) -> float:
    """Return the peak resident MiB of a separate process that makes `number` images."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return round(pool.apply(_peak, (folder, number)), 1)


def _peak(folder: Path, number: int) -> float:
    paste(folder, 1, number)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def write_scenes(folder: Path, number: int, size: tuple[int, int]) -> None:
    """Write scenes that compress like photographs: smooth structure and sensor noise."""
    generator = np.random.default_rng(0)
    for index in range(number):
        coarse = generator.uniform(0, 255, (size[0] // 32, size[1] // 32, 3)).astype(np.float32)
        scene = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
        scene += generator.normal(0, 3, scene.shape)
        label = generator.integers(0, 34, coarse.shape[:2]).astype(np.uint8)
        label = cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST)
        stem = f"town_{index:06d}_000000"
        image_path = folder / "leftImg8bit/train/town" / f"{stem}_leftImg8bit.png"
        write_image(image_path, scene.clip(0, 255).astype(np.uint8), compress_level=1)
        write_image(folder / "gtFine/train/town" / f"{stem}_gtFine_labelIds.png", label)


def write_objects(folder: Path) -> None:
    """Write photographs of COCO's usual size, each with one object of 60 to 400 pixels."""
    generator = np.random.default_rng(1)
    images, annotations = [], []
    for number in range(24):
        coarse = generator.uniform(0, 255, (48, 64, 3)).astype(np.float32)
        photo = cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC)
        write_image(folder / f"{number}.jpg", photo.clip(0, 255).astype(np.uint8), quality=90)
        angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        radius = generator.uniform(30, 200) * generator.uniform(0.8, 1, 40)
        polygon = np.stack([320 + radius * np.cos(angle), 240 + radius * np.sin(angle)], 1)
        images.append({"id": number, "file_name": f"{number}.jpg", "height": 480, "width": 640})
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 17,
                "segmentation": [polygon.round(1).ravel().tolist()],
            }
        )
    categories = [{"id": 17, "name": "cat"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))


if __name__ == "__main__":
    sys.exit(main())
