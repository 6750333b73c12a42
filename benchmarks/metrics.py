"""Time and memory of `PixelMetrics` against scikit-learn, on the same scores in one run.

    python benchmarks/metrics.py --json metrics.json
    python benchmarks/metrics.py --millions 1 --images 10 --size 1024 512

Both sides compute AUPRC, FPR95, AUROC and best F1; the column "two calls" is scikit-learn's
`average_precision_score` and `roc_curve` only. Times are seconds of processor time on one
thread, medians over `--repeat` runs, for taking in all pixels and computing the figures. Memory is
the peak of what Python and numpy allocate for it, the input left out. Each measurement has a
process of its own.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
import tracemalloc

import numpy as np

IMAGE = 2048 * 1024


def make_scores(kind: str, pixels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (pixels,) float32 and labels (pixels,) uint8 with 2 % anomalies.

    `rba` is saturated: most known pixels lie within 1e-3 of the floor -tanh(1); `gaussian` is not.
    """
    generator = np.random.default_rng(seed)
    labels = (generator.random(pixels, np.float32) < 0.02).astype(np.uint8)
    if kind == "gaussian":
        return generator.standard_normal(pixels, np.float32) + labels, labels
    claimed = 1 - np.minimum(generator.standard_exponential(pixels, np.float32) * 1e-4, 1)
    unsure = generator.random(pixels, np.float32) < np.where(labels, 0.93, 0.12)
    claimed[unsure] = generator.random(int(unsure.sum()), np.float32)
    return -np.tanh(claimed), labels


def run_ours(scores, labels) -> dict:
    from anoseg_d2.evaluation.metrics import PixelMetrics

    metrics = PixelMetrics()
    for start in range(0, scores.size, IMAGE):
        metrics.update(scores[start : start + IMAGE], labels[start : start + IMAGE])
    return metrics.compute()


def run_scikit_learn(scores, labels) -> dict:
    from sklearn import metrics

    precision, recall, _ = metrics.precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    del precision, recall
    fpr, tpr, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
    fpr95 = fpr[np.argmax(tpr >= 0.95)]
    del fpr, tpr
    return {
        "auprc": metrics.average_precision_score(labels, scores),
        "auroc": metrics.roc_auc_score(labels, scores),
        "fpr95": fpr95,
        "best_f1": f1.max(),
    }


def run_two_calls(scores, labels) -> dict:
    from sklearn import metrics

    fpr, tpr, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
    fpr95 = fpr[np.argmax(tpr >= 0.95)]
    del fpr, tpr
    return {"auprc": metrics.average_precision_score(labels, scores), "fpr95": fpr95}


SIDES = {"ours": run_ours, "scikit_learn": run_scikit_learn, "two_calls": run_two_calls}


def measure_side(side: str, kind: str, millions: float, repeat: int) -> dict:
    """Seconds, peak memory and figures of one side; runs in a process of its own."""
    few = make_scores(kind, 10_000, 0)
    SIDES[side](*few)  # imports and lazy set-up, on both sides
    scores, labels = make_scores(kind, int(millions * 1e6), 1)
    seconds = []
    tracemalloc.start()
    for _ in range(repeat):
        start = time.process_time()
        found = SIDES[side](scores, labels)
        seconds.append(time.process_time() - start)
    return {
        "seconds": statistics.median(seconds),
        "peak_mb": tracemalloc.get_traced_memory()[1] / 1e6,
        "figures": {n: found[n] for n in ("auprc", "fpr95", "auroc", "best_f1") if n in found},
        "bounds": {name: found[name] for name in found if name.endswith("_bounds")},
    }


def measure_growth(kind: str, images: int, pixels: int) -> dict:
    """Peak memory of a stream of images; runs in a process of its own."""
    from anoseg_d2.evaluation.metrics import PixelMetrics

    tracemalloc.start()
    metrics, spent, peak = PixelMetrics(), 0.0, 0
    for seed in range(images):
        image = make_scores(kind, pixels, seed)
        tracemalloc.reset_peak()
        start = time.process_time()
        metrics.update(*image)
        spent += time.process_time() - start
        peak = max(peak, tracemalloc.get_traced_memory()[1] - sum(part.nbytes for part in image))
    del image
    tracemalloc.reset_peak()
    start = time.process_time()
    found = metrics.compute()
    peak = max(peak, tracemalloc.get_traced_memory()[1])
    return {
        "images": images,
        "pixels": images * pixels,
        "peak_mb": peak / 1e6,
        "update_seconds": spent,
        "compute_seconds": time.process_time() - start,
        "auprc_width": float(np.diff(found["auprc_bounds"])[0]),
        "fpr95_width": float(np.diff(found["fpr95_bounds"])[0]),
    }


def _alone(function, *arguments):
    """The function's result from a new process with one thread."""
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def compare(kind: str, millions: float, repeat: int) -> dict:
    ours = _alone(measure_side, "ours", kind, millions, repeat)
    theirs = _alone(measure_side, "scikit_learn", kind, millions, repeat)
    two = _alone(measure_side, "two_calls", kind, millions, repeat)
    for name, value in theirs["figures"].items():
        low, high = ours["bounds"][f"{name}_bounds"]
        assert low <= value <= high, (name, low, value, high)
    return {
        "score": kind,
        "millions": millions,
        "ours": ours,
        "scikit_learn": theirs,
        "two_calls": two,
        "ratio": theirs["seconds"] / ours["seconds"],
        "ratio_two_calls": two["seconds"] / ours["seconds"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--millions", type=float, nargs="*", default=[1, 10, 50])
    parser.add_argument("--images", type=int, nargs="*", default=[10, 300])
    parser.add_argument("--size", type=int, nargs=2, default=[2048, 1024], metavar=("W", "H"))
    parser.add_argument("--scores", nargs="+", default=["rba"], choices=["rba", "gaussian"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()

    result = {
        "machine": platform.machine(),
        "numpy": np.__version__,
        "compared": [],
        "streamed": [],
    }
    for kind in args.scores:
        print(
            f"| {kind}, M pixels | ours s | scikit-learn s | ratio | two calls s | ratio "
            "| ours MB | scikit-learn MB |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for millions in args.millions:
            row = compare(kind, millions, args.repeat)
            result["compared"].append(row)
            ours, theirs = row["ours"], row["scikit_learn"]
            print(
                f"| {millions:g} | {ours['seconds']:.2f} | {theirs['seconds']:.2f} "
                f"| {row['ratio']:.1f} | {row['two_calls']['seconds']:.2f} "
                f"| {row['ratio_two_calls']:.1f} "
                f"| {ours['peak_mb']:.0f} | {theirs['peak_mb']:.0f} |",
                flush=True,
            )
        print("\n| images | peak MB | update s | compute s | AUPRC width | FPR95 width |")
        print("|---|---|---|---|---|---|")
        for images in args.images:
            row = _alone(measure_growth, kind, images, args.size[0] * args.size[1])
            result["streamed"].append({"score": kind, **row})
            print(
                f"| {images} | {row['peak_mb']:.0f} | {row['update_seconds']:.1f} "
                f"| {row['compute_seconds']:.1f} | {row['auprc_width']:.1e} "
                f"| {row['fpr95_width']:.1e} |",
                flush=True,
            )
    if args.json:
        with open(args.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
