"""Processor time of `AnomalyEvaluator` per image and score, before and now.

    python benchmarks/evaluation.py --json evaluation.json
    python benchmarks/evaluation.py --size 512 256 --images 2 --scores 3

Everything that has been made faster is kept here in the slow readable version that it replaced.
Whole evaluations with either version run in turns, on the same maps, and so do two of the parts.
Times are seconds of processor time, medians over the repetitions; keeping maps and writing
thumbnails is a part of them. Every figure and component must be equal to the last bit to
what the slow version finds when it counts every score. (As it was, it counted in tables of bounded
error after the first quarter of a million scores; this is the version that is timed.)
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from anoseg_d2.data.image_io import read_label, write_image
from anoseg_d2.data.label_rules import LABEL_RULES
from anoseg_d2.evaluation import set_figures, thumbnails
from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator
from anoseg_d2.evaluation.components import ComponentMetrics, GroundTruth, component_overlaps
from anoseg_d2.evaluation.metrics import PixelMetrics
from anoseg_d2.evaluation.set_figures import TPR_LEVELS, SetFigures
from anoseg_d2.evaluation.streaming.counts import Budget
from anoseg_d2.evaluation.thumbnails import image_average_precision
from anoseg_d2.utils.files import read_json

NAME = "benchmark_evaluation"
SIDES = ("before", "now")
PARTS = ("overlaps", "image AP")


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
    """`component_overlaps` on whole images, sorting all pairs of ids."""

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


def slow_average_precision(score: np.ndarray, label: np.ndarray) -> float | None:
    """`image_average_precision` by sorting all known pixels."""
    if not (label == 1).any():
        return None
    positives, negatives = np.sort(score[label == 1]), np.sort(score[label == 0])
    thresholds, counts = np.unique(positives, return_counts=True)
    true = positives.size - np.searchsorted(positives, thresholds)
    false = negatives.size - np.searchsorted(negatives, thresholds)
    return float((counts * (true / (true + false))).sum() / positives.size)


def slow_false_component(label, score, predicted, min_predicted: int) -> dict | None:
    """`largest_false_component` by looking at the whole image."""
    mask = predicted & (label != 255)
    _, ids = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    sizes = np.bincount(ids.reshape(-1))
    sizes[0] = 0
    sizes[np.unique(ids[label == 1])] = 0
    worst = int(sizes.argmax())
    if sizes[worst] < max(1, min_predicted):
        return None
    rows, columns = np.nonzero(ids == worst)
    top, left = int(rows.min()), int(columns.min())
    return {
        "box": [top, left, int(rows.max()) + 1 - top, int(columns.max()) + 1 - left],
        "area": int(sizes[worst]),
        "mean_score": float(score[ids == worst].mean(dtype=np.float64)),
    }


class SlowComponents(ComponentMetrics):
    """Finds the ground truth again for every score, and looks at whole images."""

    def update(self, score, label, threshold, **options) -> dict:
        predicted, limits = score > threshold, self.track
        siou, ppv = slow_components(label, predicted, limits.min_predicted, limits.min_truth)
        self._siou.extend(siou.tolist())
        self._ppv.extend(ppv.tolist())
        self.images += 1
        return {"false": slow_false_component(label, score, predicted, limits.min_predicted)}


class SlowPixels(PixelMetrics):
    """Sorts the scores of every piece of an image, and walks the curves once per result."""

    def compute_with_curve(self, max_points: int = 1000):
        return self.compute(), super().compute_with_curve(max_points)[1]


class SlowFigures(SetFigures):
    """Counts scores in tables: `runs` distinct ones are exact, beyond are bounds."""

    runs = Budget().runs

    def new_pixels(self) -> PixelMetrics:
        return SlowPixels(tpr=TPR_LEVELS, budget=Budget(kept_pixels=0, runs=self.runs))


class ExactFigures(SlowFigures):
    """Counts every distinct score."""

    runs = 1 << 30


class SlowEvaluator(AnomalyEvaluator):
    """The evaluator as it was."""

    figures_type = SlowFigures

    def process(self, inputs, outputs):
        with patch.object(thumbnails, "image_average_precision", slow_average_precision):
            super().process(inputs, outputs)

    def evaluate(self):
        with patch.object(set_figures, "ComponentMetrics", SlowComponents):
            return super().evaluate()


def seconds_of(evaluator, images, outputs) -> float:
    """Processor time of one evaluation from reset to results."""
    evaluator.reset()
    start = time.process_time()
    evaluator.process(images, outputs)
    evaluator.evaluate()
    return time.process_time() - start


def found_in(folder: Path) -> dict:
    """All that an evaluation wrote but its curves, which are thinned to other points."""
    record = read_json(folder / "inference" / NAME / "result.json")
    return {key: value for key, value in record.items() if key != "curves"}


def measure(folder: Path, images, outputs, repeat: int) -> dict[str, list[float]]:
    """Seconds of whole evaluations before and now, in turns.

    Raises:
        AssertionError: a figure differs in its last bit from that of counting every score.
    """
    seconds = {side: [] for side in SIDES}
    for turn in range(repeat):
        for side, kind in zip(SIDES, (SlowEvaluator, AnomalyEvaluator), strict=True):
            place = folder / f"{side}{turn}"
            evaluator = kind(NAME, output_dir=place)
            seconds[side].append(seconds_of(evaluator, images, outputs))
    exact = SlowEvaluator(NAME, output_dir=folder / "exact")
    exact.figures_type = ExactFigures
    seconds_of(exact, images, outputs)
    assert found_in(folder / "exact") == found_in(place), "figures differ"
    return seconds


def measure_parts(label, scores) -> dict[str, list[float]]:
    """Seconds of both versions of each part, per image and score, in turns; the same bits."""
    truth = GroundTruth.of(label, 100)
    seconds = {f"{part} {side}": [] for part in PARTS for side in SIDES}

    def timed(name, function, *arguments):
        start = time.process_time()
        found = function(*arguments)
        seconds[name].append(time.process_time() - start)
        return found

    for score in scores:
        cut = float(np.quantile(score, 0.97))
        slow = timed("overlaps before", slow_components, label, score > cut, 500, 100)
        fast = timed("overlaps now", component_overlaps, truth, score > cut, 500)
        assert all(np.array_equal(a, b) for a, b in zip(fast, slow, strict=True))
        slow = timed("image AP before", slow_average_precision, score, label)
        fast = timed("image AP now", image_average_precision, score, label)
        assert fast == slow
    return seconds


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


def summary(seconds: dict[str, list[float]], name: str = "") -> dict:
    """Medians of both sides, all values, and the ratio of the medians."""
    before, now = (seconds[f"{name} {side}".strip()] for side in SIDES)
    medians = statistics.median(before), statistics.median(now)
    return {
        "before": medians[0],
        "now": medians[1],
        "ratio": medians[0] / medians[1],
        "all_before": before,
        "all_now": now,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, nargs=2, default=[2048, 1024], metavar=("W", "H"))
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--scores", type=int, default=9)
    parser.add_argument("--repeat", type=int, default=5, help="evaluations of each side")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    width, height = args.size
    with tempfile.TemporaryDirectory() as folder:
        images, outputs = write_images(Path(folder), args.images, height, width, args.scores)
        whole = measure(Path(folder), images, outputs, args.repeat)
        label = read_label(images[0]["sem_seg_file_name"])
        parts = measure_parts(label, list(outputs[0]["scores"].values()))
    per_image = {side: [s / args.images for s in whole[side]] for side in SIDES}
    per_score = {side: [s / args.scores for s in per_image[side]] for side in SIDES}
    result = {
        "machine": platform.machine(),
        "numpy": np.__version__,
        "size": args.size,
        "images": args.images,
        "scores": args.scores,
        "seconds_per_image": summary(per_image),
        "seconds_per_image_and_score": summary(per_score),
        **{f"{part}, seconds per image and score": summary(parts, part) for part in PARTS},
        "figures": "equal to the last bit",
    }
    print(f"{width}x{height}, {args.images} image(s), {args.scores} scores, processor time")
    for name, found in result.items():
        if isinstance(found, dict):
            times = f"{found['before']:.4f} before, {found['now']:.4f} now"
            print(f"{name.replace('_', ' ')}: {times}, ratio {found['ratio']:.1f}")
    print("every figure is equal to the last bit")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
