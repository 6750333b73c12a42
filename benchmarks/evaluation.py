"""CPU time of `AnomalyEvaluator` per image and score, by part.

    python benchmarks/evaluation.py --json evaluation.json
    python benchmarks/evaluation.py --size 512 256 --images 2 --scores 3

Every part that has been made faster is measured next to the slow readable version that it
replaced, in turns in one run, on the same maps; both must give the same bits. Times are seconds of
processor time on one thread, medians over images. Writing kept maps and thumbnails is a part of the
whole evaluator's time.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from anoseg_d2.data.image_io import read_label, write_image
from anoseg_d2.data.label_rules import LABEL_RULES
from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator
from anoseg_d2.evaluation.components import GroundTruth, component_overlaps
from anoseg_d2.evaluation.thumbnails import image_average_precision

NAME = "benchmark_evaluation"
SIDES = ("before", "now")


def make_label(height: int, width: int, generator) -> np.ndarray:
    """(H, W) uint8 with some objects, about 2 % of the pixels, and a void border."""
    label = np.zeros((height, width), np.uint8)
    side = max(4, int((0.02 * height * width / 6) ** 0.5))
    for _ in range(6):
        top, left = generator.integers(0, height - side), generator.integers(0, width - side)
        label[top : top + side, left : left + side] = 1
    label[-max(1, height // 20) :] = 255
    return label


def make_score(label: np.ndarray, generator) -> np.ndarray:
    """(H, W) float32 as smooth as a model's, with many components at its best threshold."""
    noise = generator.standard_normal(label.shape, np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 6)
    return -np.tanh(2 - 8 * smooth - (label == 1)).astype(np.float32) + 1e-4 * noise


def slow_components(label, predicted, min_predicted: int, min_truth: int):
    """`component_overlaps` on whole images, sorting all pairs of ids, as it was."""

    def components(mask, least):
        _, ids = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        small = np.bincount(ids.reshape(-1)) < least
        small[0] = False
        return ids, small[ids]

    truth, void = components(label == 1, min_truth)
    predicted, dropped = components(predicted & (label != 255), min_predicted)
    predicted[dropped] = 0
    counted = (label != 255) & ~void
    truth, predicted = truth[counted], predicted[counted]
    truth_size, predicted_size = np.bincount(truth), np.bincount(predicted)
    both = (truth > 0) & (predicted > 0)
    pairs, shared = np.unique(np.stack((truth[both], predicted[both])), axis=1, return_counts=True)
    covered = np.bincount(pairs[1], weights=shared, minlength=predicted_size.size)
    found = np.bincount(pairs[0], weights=shared, minlength=truth_size.size)
    sizes = np.bincount(pairs[0], weights=predicted_size[pairs[1]], minlength=truth_size.size)
    others = np.bincount(pairs[0], weights=covered[pairs[1]] - shared, minlength=truth_size.size)
    kept, seen = np.flatnonzero(truth_size[1:]) + 1, np.flatnonzero(predicted_size[1:]) + 1
    union = truth_size + sizes - found - others
    return found[kept] / union[kept], covered[seen] / predicted_size[seen]


def slow_average_precision(score: np.ndarray, label: np.ndarray) -> float:
    """`image_average_precision` by sorting all known pixels, as it was."""
    positives, negatives = np.sort(score[label == 1]), np.sort(score[label == 0])
    thresholds, counts = np.unique(positives, return_counts=True)
    true = positives.size - np.searchsorted(positives, thresholds)
    false = negatives.size - np.searchsorted(negatives, thresholds)
    return float((counts * (true / (true + false))).sum() / positives.size)


def check_parts(label, scores) -> dict:
    """Seconds of the fast and the slow version of each part, per image and score, in turns."""
    truth = GroundTruth.of(label, 100)
    seconds = {f"{part} {side}": [] for part in ("overlaps", "image AP") for side in SIDES}

    def timed(name, function, *arguments):
        start = time.process_time()
        found = function(*arguments)
        seconds[name].append(time.process_time() - start)
        return found

    for score in scores:
        cut = float(np.quantile(score, 0.97))
        fast = timed("overlaps now", component_overlaps, truth, score > cut, 500)
        slow = timed("overlaps before", slow_components, label, score > cut, 500, 100)
        assert all(np.array_equal(a, b) for a, b in zip(fast, slow, strict=True))
        fast = timed("image AP now", image_average_precision, score, label)
        slow = timed("image AP before", slow_average_precision, score, label)
        assert fast == slow
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        part: medians[f"{part} before"] / medians[f"{part} now"]
        for part in ("overlaps", "image AP")
    }
    return {"seconds": medians, "ratio": ratios}


def write_images(folder: Path, count: int, height: int, width: int, scores: int):
    """Register `count` images, and give the maps that a model would."""
    generator = np.random.default_rng(0)
    images, outputs = [], []
    for index in range(count):
        label = make_label(height, width, generator)
        photo = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
        write_image(folder / f"{index}.jpg", photo)
        write_image(folder / f"{index}.png", label)
        images.append(
            {
                "file_name": str(folder / f"{index}.jpg"),
                "sem_seg_file_name": str(folder / f"{index}.png"),
                "image_id": str(index),
            }
        )
        maps = {f"score{k}": make_score(label, generator) for k in range(scores)}
        outputs.append({"sem_seg": np.zeros((height, width), np.int64), "scores": maps})
    DatasetCatalog.register(NAME, lambda: images)
    MetadataCatalog.get(NAME).set(label_rule=LABEL_RULES["anomaly"], evaluator_type="anomaly")
    return images, outputs


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, nargs=2, default=[2048, 1024], metavar=("W", "H"))
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--scores", type=int, default=9)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    width, height = args.size
    with tempfile.TemporaryDirectory() as folder:
        images, outputs = write_images(Path(folder), args.images, height, width, args.scores)
        label = read_label(images[0]["sem_seg_file_name"])
        whole = []
        for turn in range(args.repeat):
            evaluator = AnomalyEvaluator(NAME, output_dir=Path(folder) / str(turn))
            evaluator.reset()
            start = time.process_time()
            evaluator.process(images, outputs)
            evaluator.evaluate()
            whole.append((time.process_time() - start) / args.images)
        parts = check_parts(label, list(outputs[0]["scores"].values()))
    result = {
        "machine": platform.machine(),
        "numpy": np.__version__,
        "size": args.size,
        "images": args.images,
        "scores": args.scores,
        "evaluator_seconds_per_image": statistics.median(whole),
        "evaluator_seconds_per_image_and_score": statistics.median(whole) / args.scores,
        "parts": parts,
    }
    print(
        f"evaluator, {width}x{height}, {args.scores} scores: "
        f"{result['evaluator_seconds_per_image']:.2f} s per image, "
        f"{result['evaluator_seconds_per_image_and_score']:.3f} s per score"
    )
    for part, ratio in parts["ratio"].items():
        before, now = (parts["seconds"][f"{part} {side}"] for side in SIDES)
        print(f"{part}: {1e3 * before:.1f} ms before, {1e3 * now:.1f} ms now, ratio {ratio:.1f}")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
