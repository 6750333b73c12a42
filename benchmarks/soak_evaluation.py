"""Evaluate many tiny images, and show that memory, open files and disk do not grow.

    python benchmarks/soak_evaluation.py --images 10000 --json soak.json

One process evaluates the images with component figures, as `train_net.py --eval-only` does, and
notes every `--every` images its resident memory, its open files, and the bytes in the run's
folder. The slopes are least-squares fits over the second half of the run. Two things do grow for a
while, as they should: the score maps kept on disk until the evaluation ends, which are stated
apart, and the pixels that `PixelMetrics` keeps in memory, 4 bytes each, up to 40 MB per score.
Images of the default size reach that limit after 4,341, before the second half; tables take over,
which with all else stay under 128 MB per score. Their memory becomes resident as scores fall into
them: at once for scores in [0.5, 1), which this script draws, and more slowly for scores with long
tails. Each image also leaves a record of under a kilobyte for result.json, which is the growth
that remains. Linux only (/proc).
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from anoseg_d2.data.image_io import write_image
from anoseg_d2.data.label_rules import LABEL_RULES
from anoseg_d2.evaluation.anomaly_evaluation import KEPT_PREFIX, AnomalyEvaluator

NAME = "soak_evaluation"


def write_images(folder: Path, count: int, side: int) -> list[dict]:
    """Write one photograph and one label, and register `count` images that share them."""
    label = np.zeros((side, side), np.uint8)
    label[: side // 4, : side // 4] = 1
    write_image(folder / "photo.png", np.zeros((side, side, 3), np.uint8))
    write_image(folder / "label.png", label)
    images = [
        {
            "file_name": str(folder / "photo.png"),
            "sem_seg_file_name": str(folder / "label.png"),
            "image_id": f"{index:06d}",
        }
        for index in range(count)
    ]
    DatasetCatalog.register(NAME, lambda: images)
    MetadataCatalog.get(NAME).set(label_rule=LABEL_RULES["anomaly"], evaluator_type="anomaly")
    return images


def look(folder: Path) -> dict:
    """Resident memory, open files and disk of this process's run, at this moment."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    kept = other = 0
    folders = [folder]
    while folders:  # entry by entry: a list of all kept maps would take memory that grows
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.path)
                elif KEPT_PREFIX in entry.path:
                    kept += entry.stat().st_size
                else:
                    other += entry.stat().st_size
    return {
        "memory_mb": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        "open_files": len(os.listdir("/proc/self/fd")),
        "kept_maps_mb": kept / 1e6,
        "disk_mb": other / 1e6,
    }


def slopes(seen: list[dict]) -> dict:
    """Growth per 1,000 images over the second half of the run."""
    half = seen[len(seen) // 2 :]
    images = [row["images"] for row in half]
    names = [name for name in half[0] if name != "images"]
    if len(half) < 2:
        return dict.fromkeys(names)
    return {n: 1000 * float(np.polyfit(images, [r[n] for r in half], 1)[0]) for n in names}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=48)
    parser.add_argument("--scores", type=int, default=2)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--images-kept", action="store_true", help="keep images for the report")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    generator, seen = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, run = write_images(folder, args.images, args.side), folder / "run"
        evaluator = AnomalyEvaluator(NAME, output_dir=run, keep_images=args.images_kept)
        evaluator.reset()
        print("| images | memory MB | open files | kept maps MB | other disk MB |")
        print("|---|---|---|---|---|")
        for done, image in enumerate(images, 1):
            shape = (args.scores, args.side, args.side)
            maps = 0.5 + generator.random(shape, np.float32) / 2
            scores = {f"score{k}": score for k, score in enumerate(maps)}
            evaluator.process([image], [{"scores": scores}])
            if done % args.every == 0:
                row = {"images": done, **look(run)}
                seen.append(row)
                print(
                    f"| {done} | {row['memory_mb']:.1f} | {row['open_files']} "
                    f"| {row['kept_maps_mb']:.1f} | {row['disk_mb']:.1f} |",
                    flush=True,
                )
        evaluator.evaluate()
        after = look(run)
    grown = slopes(seen)
    print(f"growth per 1,000 images, second half: {grown}")
    print(f"after the evaluation: {after}")
    if args.json:
        result = {"arguments": vars(args), "seen": seen, "slopes": grown, "after": after}
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
