"""Measure how evaluation, generation and training grow with images, their size, and processes.

    python benchmarks/scaling.py --scales 1 2 --repeat 1 --json scaling.json
    python benchmarks/scaling.py --images 2 4 --repeat 1 --size 64 128 --crop 64 --jobs training

Each figure is a whole command in a process of its own, from its start to its exit, with one thread
per process: `train_net.py --eval-only` of a random ViT-S on a CPU with all scores,
`prepare_cut_paste.py` with an object in every scene, and `train_net.py` of the same ViT-S with
batches of two images, so that two processes take one each. `start` is the time for the fewest
images; the last column is what each further image takes. Wall-clock and processor seconds, medians
over the repetitions. `--scales` multiplies the sides of images and crops.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from cut_paste import write_objects, write_scenes

from anoseg_d2.data.image_io import write_image
from anoseg_d2.utils.files import write_json

ROOT = Path(__file__).resolve().parents[1]
BATCH = 2  # images of a training step, of all processes together
TRAINING_CARD = """name: scaling_training
root: ./
images: images/{id}.png
labels: labels/{id}.png
classes: [ground, object]
label_values: {0: ground, 1: object}
"""
CARD = """name: scaling_{number}
root: ./
kind: anomaly
images: images/{{id}}.png
labels: labels/{{id}}.png
expected_images: {number}
known: 0
anomaly: 1
void: 255
"""


def run_command(arguments: list) -> tuple[float, float]:
    """Run a script of the checkout; returns wall-clock and processor seconds.

    Raises:
        RuntimeError: the script failed; the message holds the end of what it printed.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as printed:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        _, ended, used = os.wait4(process.pid, 0)  # counts the processes that it waited for too
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(ended)
        if process.returncode:
            printed.seek(0)
            raise RuntimeError(printed.read().decode(errors="replace")[-2000:])
    return wall, used.ru_utime + used.ru_stime


def write_benchmark(folder: Path, number: int, size: tuple[int, int]) -> Path:
    """Write `number` noisy images with one anomaly each, and their card; returns its path."""
    card = folder / "card.yaml"
    card.parent.mkdir()
    card.write_text(CARD.format(number=number), encoding="utf-8")
    write_images(folder, number, size)
    return card


def write_images(folder: Path, number: int, size: tuple[int, int]) -> None:
    """Write noisy images, and labels of 0 with an object of 1."""
    generator = np.random.default_rng(0)
    label = np.zeros(size, np.uint8)
    label[size[0] // 2 :, : size[1] // 8] = 1
    for index in range(number):
        image = generator.integers(0, 255, (*size, 3), dtype=np.uint8)
        write_image(folder / "images" / f"{index:04d}.png", image, compress_level=1)
        write_image(folder / "labels" / f"{index:04d}.png", label)


def write_model(path: Path, crop: int) -> None:
    """Write a checkpoint of a random ViT-S whose window has sides of `crop` pixels."""
    from anoseg_d2.checkpoint import save_weights
    from anoseg_d2.config import load_config
    from anoseg_d2.modeling.eomt import EoMT

    sizes = ["MODEL.EOMT.SIZE", "S", "INPUT.CROP_SIZE", (crop, crop)]
    model = EoMT(load_config("", [*sizes, "MODEL.EOMT.ANOMALY_CLASS", True]))
    save_weights(model, path)


def evaluate(
    folder: Path, number: int, processes: int, size: tuple[int, int], crop: int
) -> tuple[float, float]:
    """Evaluate a random model on `number` images."""
    data = folder / f"images_{number}"
    if not data.exists():
        write_benchmark(data, number, size)
    weights = folder / "model.pth"
    if not weights.exists():
        write_model(weights, crop)
    keys = {
        "MODEL.WEIGHTS": weights,
        "MODEL.EOMT.ANOMALY_CLASS": True,
        "DATASETS.CARDS": f"['{data / 'card.yaml'}']",
        "DATASETS.TEST": f"('scaling_{number}',)",
    }
    return run_training_script(folder, processes, crop, keys, "--eval-only")


def train(
    folder: Path, number: int, processes: int, size: tuple[int, int], crop: int
) -> tuple[float, float]:
    """Train a random model on `number` images, in batches of two."""
    data = folder / "training"
    if not data.exists():
        write_images(data, 10, size)
        (data / "card.yaml").write_text(TRAINING_CARD, encoding="utf-8")
    keys = {
        "MODEL.EOMT.NUM_CLASSES": 2,
        "DATASETS.CARDS": f"['{data / 'card.yaml'}']",
        "DATASETS.TRAIN": "('scaling_training',)",
        "DATASETS.TEST": "()",
        "SOLVER.IMS_PER_BATCH": BATCH,
        "SOLVER.MAX_ITER": -(-number // BATCH),
    }
    return run_training_script(folder, processes, crop, keys)


def run_training_script(folder: Path, processes: int, crop: int, keys: dict, *options: str):
    """Run `train_net.py` of a ViT-S on the CPU; returns wall-clock and processor seconds."""
    keys = {
        "OUTPUT_DIR": tempfile.mkdtemp(dir=folder),
        "MODEL.DEVICE": "cpu",
        "MODEL.EOMT.SIZE": "S",
        "INPUT.CROP_SIZE": f"({crop}, {crop})",
        "DATALOADER.NUM_WORKERS": 0,
        **keys,
    }
    pairs = [word for pair in keys.items() for word in pair]
    return run_command(["train_net.py", *options, "--num-gpus", processes, *pairs])


def generate(
    folder: Path, number: int, processes: int, size: tuple[int, int], crop: int
) -> tuple[float, float]:
    """Paste objects into `number` scenes."""
    scenes = folder / f"scenes_{number}"
    if not scenes.exists():
        write_scenes(scenes, number, size)
    coco = folder / "coco"
    if not coco.exists():
        write_objects(coco)
    return run_command(
        [
            *("datasets/prepare_cut_paste.py", "--cityscapes", scenes),
            *("--coco-json", coco / "instances.json", "--coco-images", coco),
            *("--output", tempfile.mkdtemp(dir=folder), "--workers", processes, "--ratio", 1),
        ]
    )


JOBS = {"evaluation": evaluate, "generation": generate, "training": train}


def measure(job: str, scale: int, folder: Path, args: argparse.Namespace) -> list[dict]:
    """Run one job with every number of images and processes; prints and returns the rows."""
    size, crop = (scale * args.size[0], scale * args.size[1]), scale * args.crop
    seen = "" if job == "generation" else f", crops of {crop}"
    print(f"\n{job}, {size[0]}x{size[1]}{seen}, {os.cpu_count()} CPUs\n")
    print("| images | processes | wall s | CPU s | wall s of each further image |")
    print("|---|---|---|---|---|")
    rows: list[dict] = []
    first: dict[int, tuple[int, float]] = {}
    for number in args.images:
        if job == "training":
            number = -(-number // BATCH) * BATCH
        for processes in args.processes:
            runs = [JOBS[job](folder, number, processes, size, crop) for _ in range(args.repeat)]
            wall, cpu = (statistics.median(side) for side in zip(*runs, strict=True))
            least, start = first.setdefault(processes, (number, wall))
            more = (wall - start) / (number - least) if number > least else None
            row = {"job": job, "scale": scale, "images": number, "processes": processes}
            rows.append(row | {"wall_seconds": wall, "cpu_seconds": cpu, "more": more})
            each = "-" if more is None else f"{more:.3f}"
            print(f"| {number} | {processes} | {wall:.2f} | {cpu:.2f} | {each} |", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--jobs", nargs="+", default=list(JOBS), choices=JOBS)
    add("--images", nargs="+", type=int, default=[1, 10, 100])
    add("--processes", nargs="+", type=int, default=[1, 2])
    add("--size", nargs=2, type=int, default=[360, 480], metavar=("H", "W"))
    add("--crop", type=int, default=160, help="side of the crops that the model sees")
    add("--scales", nargs="+", type=int, default=[1], help="multiply size and crop by each of them")
    add("--repeat", type=int, default=3)
    add("--json", help="write the figures to this file")
    args = parser.parse_args()
    rows = []
    for scale in args.scales:
        for job in args.jobs:
            with tempfile.TemporaryDirectory() as folder:
                rows += measure(job, scale, Path(folder), args)
    if args.json:
        about = {"machine": platform.machine(), "cpus": os.cpu_count()}
        write_json(args.json, {**about, "options": vars(args), "rows": rows})


if __name__ == "__main__":
    main()
