r"""Measure whether the thresholds of `anoseg threshold` hold their rate on real normal frames.

    python benchmarks/alarm_rate.py model_final.pth --images camvid/*.png --score rba \
        --calibrate 100 --block 10 --json alarm_rate.json

Every frame is predicted once. Then, --splits times, some frames give a threshold and the rest are
tested, in three ways:
    random        frames drawn at random: what the promise is about
    consecutive   a run of consecutive frames, each taken for one observation, which it is not
    blocks        the same runs, but each --block frames are one observation; rates are of blocks
Columns: mean realised rate, which should be at most the rate asked for, and the percentage of
splits in which the threshold of --confidence keeps it, which should be at least that. Both are
percent. A split with too few observations is not made ("-").
"""

import argparse
from pathlib import Path

import numpy as np
from tabulate import tabulate

from anoseg_d2.commands.threshold import Levels
from anoseg_d2.evaluation.alarm_rate import alarm_threshold, block_levels, units_needed
from anoseg_d2.prediction.input_files import find_inputs
from anoseg_d2.prediction.job import PredictionJob
from anoseg_d2.utils.files import write_json

WAYS = ("random", "consecutive", "blocks")


def splits(levels: np.ndarray, way: str, calibrate: int, block: int, count: int, seed: int = 0):
    """Yield levels to find a threshold on and levels to test it on.

    Args:
        levels: (n,) alarm levels of frames in order.
        way: one of `WAYS`.
        calibrate: frames that give the threshold.
        block: frames of a block.
        count: number of splits.
    """
    rng = np.random.default_rng(seed)
    for _ in range(count):
        if way == "random":
            order = rng.permutation(len(levels))
            yield levels[order[:calibrate]], levels[order[calibrate:]]
            continue
        start = rng.integers(len(levels) - calibrate + 1)
        length = block if way == "blocks" else 1
        # What is before and after the run is cut into blocks of its own.
        rest = (levels[:start], levels[start + calibrate :])
        rest = [block_levels(part, length) for part in rest if len(part) >= length]
        yield block_levels(levels[start : start + calibrate], length), np.concatenate(rest)


def measure(levels: np.ndarray, args) -> list[dict]:
    """Return one record per way and rate; figures in percent, None where units are too few."""
    records = []
    for way in WAYS:
        units = args.calibrate // (args.block if way == "blocks" else 1)
        for rate in args.rates:
            record = {
                "way": way,
                "rate": 100 * rate,
                "units": units,
                "realised": None,
                "kept": None,
            }
            options = (levels, way, args.calibrate, args.block, args.splits)
            if units >= units_needed(rate):
                found = [(t >= alarm_threshold(c, rate)).mean() for c, t in splits(*options)]
                record["realised"] = 100 * float(np.mean(found))
            if units >= units_needed(rate, args.confidence):
                kept = [
                    (t >= alarm_threshold(c, rate, args.confidence)).mean() <= rate
                    for c, t in splits(*options)
                ]
                record["kept"] = 100 * float(np.mean(kept))
            records.append(record)
    return records


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("weights")
    add("--images", nargs="+", required=True, help="normal frames, in the order of their names")
    add("--score", default="rba")
    add("--calibrate", type=int, default=100, metavar="N", help="frames that give the threshold")
    add("--splits", type=int, default=200)
    add("--rates", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    add("--confidence", type=float, default=0.95)
    add("--block", type=int, default=10, metavar="FRAMES")
    add("--min-size", type=int, default=50, metavar="PIXELS")
    add("--opts", nargs="*", default=[], metavar="KEY VALUE", help="config keys of the predictor")
    add("--json", type=Path, metavar="FILE")
    return parser


def main(argv=None) -> None:
    """Predict the frames, split them, and print the table."""
    args = build_parser().parse_args(argv)
    from anoseg_d2.prediction.predictor import AnomalyPredictor

    scores = ["TEST.ANOMALY.SCORES", [args.score]]
    predictor = AnomalyPredictor.from_pretrained(args.weights, [*args.opts, *scores])
    found = Levels(args.min_size)
    job = PredictionJob(predictor, {args.score: found})
    files, missing = find_inputs(args.images)
    job.images([file for file in files if not file.is_video])
    for file in files:
        if file.is_video:
            job.video(str(file.path), file.name)
    assert not missing and not job.failed, missing
    levels = np.concatenate([np.asarray(part) for part in found.sequences])
    records = measure(levels, args)
    print(tabulate(records, headers="keys", floatfmt=".1f", missingval="-", tablefmt="github"))
    if args.json:
        write_json(args.json, {**vars(args), "json": str(args.json), "frames": len(levels),
                               "levels": levels, "results": records})  # fmt: skip


if __name__ == "__main__":
    main()
