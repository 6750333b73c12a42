#!/usr/bin/env python
"""Let the cut-paste generator make many tiny images, and see whether anything grows.

Resident memory, open file descriptors, temporary files and the disk space per image are taken at
even distances; their slopes over the second half, per 1,000 images, should be near zero.

Example:
    python benchmarks/soak_cut_paste.py --images 10000 --json soak_cut_paste.json
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from anoseg_d2.data.cut_paste import ClosedSetObjects, CutPasteOptions
from anoseg_d2.data.cut_paste.frames import Frame, SceneLabelReader
from anoseg_d2.data.cut_paste.job import CutPasteJob, claim_output, collect_manifest, run_job
from anoseg_d2.data.cut_paste.sources import CutOutFolder
from anoseg_d2.data.image_io import write_image
from anoseg_d2.data.label_rules import LABEL_RULES
from anoseg_d2.utils.cli import Progress, run_command
from anoseg_d2.utils.files import write_json

SIZE = (64, 96)
SCENES = 50  # distinct ones; the job reads them again and again
MEBIBYTE = 2**20


def main(argv=None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10_000, help="(default: %(default)s)")
    parser.add_argument("--samples", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures here")
    args = parser.parse_args(argv)
    return run_command(lambda: soak(args))


def soak(args: argparse.Namespace) -> int:
    """Make the images and print the figures."""
    if args.images < args.samples or args.samples < 4:
        raise ValueError("--samples must be 4 or more, and --images at least as many")
    with tempfile.TemporaryDirectory() as folder:
        job = build_job(Path(folder), args.images)
        claim_output(job)
        samples, period = [], args.images // args.samples
        with Progress("made", args.images) as progress:
            for made, record in enumerate(run_job(job), 1):
                assert record["failed"] is None, record
                if made % period == 0:
                    samples.append(measure(job.output, made))
                progress.update()
        records = collect_manifest(job)
        left = [path.name for path in job.output.rglob(".*.tmp")]
    figures = {
        "images": len(records),
        "size": list(SIZE),
        "pasted": sum(len(record["objects"]) for record in records.values()),
        "temporary_files_left": len(left),
        "slopes_per_1000_images": slopes(samples),
        "samples": samples,
    }
    print(json.dumps({key: figures[key] for key in figures if key != "samples"}, indent=1))
    if args.json:
        write_json(args.json, figures)
    return 0


def build_job(folder: Path, images: int) -> CutPasteJob:
    """Write scenes and objects, and describe a job that pastes into every image."""
    generator = np.random.default_rng(0)
    for number in range(SCENES):
        write_image(folder / f"{number}.png", generator.integers(0, 256, (*SIZE, 3), np.uint8))
        ids = np.full(SIZE, 11, np.uint8)
        ids[SIZE[0] // 2 :], ids[10:30, 20:50] = 7, 26
        write_image(folder / f"{number}_gtFine_labelIds.png", ids)
        cutout = np.zeros((40, 40, 4), np.uint8)
        cutout[5:35, 5:35] = generator.integers(0, 256, 4, np.uint8)
        cutout[5:35, 5:35, 3] = 255
        write_image(folder / "cutouts" / f"{number}.png", cutout)
    frames = [
        Frame(
            index,
            "town",
            f"{index:06d}",
            folder / f"{index % SCENES}.png",
            folder / f"{index % SCENES}_gtFine_labelIds.png",
        )
        for index in range(images)
    ]
    reader = SceneLabelReader(LABEL_RULES["cityscapes"])
    pairs = [(frame.image, frame.label) for frame in frames[:SCENES]]
    return CutPasteJob(
        frames=frames,
        reader=reader,
        outliers=[CutOutFolder(folder / "cutouts")],
        controls=[],
        closed_set=[ClosedSetObjects(pairs, reader, reader.known())],
        options=CutPasteOptions(ratio=1.0, closed_set_count=(0, 2), min_side=8),
        seed=0,
        output=folder / "made",
    )


def measure(output: Path, made: int) -> dict:
    """Take one sample of what this process holds."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    size = temporary = 0
    folders = [output]
    while folders:  # entry by entry: a list of all files would take memory that grows
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.path)
                else:
                    size += entry.stat().st_size
                    temporary += entry.name.endswith(".tmp")
    return {
        "images": made,
        "resident_mib": round(resident / MEBIBYTE, 2),
        "file_descriptors": len(os.listdir("/proc/self/fd")),
        "temporary_files": temporary,
        "disk_kib_per_image": round(size / made / 1024, 3),
    }


def slopes(samples: list[dict]) -> dict[str, float]:
    """Return the growth of each figure per 1,000 images, over the second half."""
    half = samples[len(samples) // 2 :]
    images = [sample["images"] / 1000 for sample in half]
    names = [name for name in half[0] if name != "images"]
    return {
        name: round(float(np.polyfit(images, [s[name] for s in half], 1)[0]), 4) for name in names
    }


if __name__ == "__main__":
    sys.exit(main())
