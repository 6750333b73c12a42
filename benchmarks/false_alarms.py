r"""Count the false alarms per minute on a video that shows nothing unknown.

    python benchmarks/false_alarms.py drive.mp4 --weights run/model_final.pth run/with_memory.pth \
        --scores anomaly memory anomaly+memory --results-set camvid_drives_anomaly \
        --temporal 0.3 --json alarms.json

The threshold of each score is the one that found 95 % of the anomalous pixels in the evaluation of
its weights (results.json next to them, or --results, one for each of --weights). An alarm is an
8-connected component of at least --min-size pixels with score >= threshold. Three figures per row:
    components    per minute, every component of every frame
    alarms        per minute, components that touch none of the frame before: what a driver hears
    alarming      percent of the frames that have any component

Each score has a row without and, with --temporal, one with the temporal filter, from the same
predictions. Scores that a model does not have are left out of its rows, and named. The threshold
is that of unfiltered scores in both.
"""

import argparse
import dataclasses
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from anoseg_d2.modeling import scores
from anoseg_d2.prediction.detections import find_detections
from anoseg_d2.prediction.predictor import AnomalyPredictor
from anoseg_d2.prediction.temporal import TemporalFilter
from anoseg_d2.prediction.video import open_video
from anoseg_d2.report.thresholds import read_threshold
from anoseg_d2.utils.cli import Progress
from anoseg_d2.utils.files import write_json


class AlarmCounter:
    """Counts the alarms of one score over the frames of a video.

    Args:
        threshold: a pixel is anomalous where score >= threshold.
        min_size: components of fewer pixels are no alarm.
    """

    def __init__(self, threshold: float, min_size: int):
        self.threshold, self.min_size = threshold, min_size
        self.components = self.alarms = self.alarming = self.frames = 0
        self._before: np.ndarray | None = None

    def add(self, score: np.ndarray) -> None:
        """Count the components of the next frame's score, (H, W)."""
        found = find_detections(score, self.threshold, self.min_size)
        marked = np.zeros(score.shape, bool)
        for detection in found:
            x, y, width, height = detection.box
            box = np.s_[y : y + height, x : x + width]
            if self._before is None or not (self._before[box] & detection.mask).any():
                self.alarms += 1
            marked[box] |= detection.mask
        self.components += len(found)
        self.alarming += bool(found)
        self.frames += 1
        self._before = marked

    def figures(self, fps: float) -> dict[str, float]:
        """Return the figures of all frames so far, at a rate of `fps` frames per second."""
        minutes = self.frames / fps / 60
        return {
            "components": self.components / minutes,
            "alarms": self.alarms / minutes,
            "alarming": 100 * self.alarming / self.frames,
        }


def count_alarms(
    frames: Iterable[np.ndarray],
    fps: float,
    predictor,
    thresholds: dict[str, float],
    temporal: float | None,
    min_size: int,
) -> list[dict]:
    """Predict the frames of a video once and count the alarms of every score.

    Args:
        frames: (H, W, 3) uint8 BGR each.
        fps: frames per second.
        predictor: `AnomalyPredictor`, or a callable with the same results.
        thresholds: {score: threshold}.
        temporal: weight of the current frame for `TemporalFilter`; None to go without.
        min_size: see `AlarmCounter`.
    Returns:
        a row per score and filter.
    """
    filters = {"-": None} | ({f"{temporal:g}": TemporalFilter(temporal)} if temporal else {})
    counters = {
        (name, label): AlarmCounter(threshold, min_size)
        for name, threshold in thresholds.items()
        for label in filters
    }
    for frame in frames:
        maps = predictor(frame)["scores"]
        for label, function in filters.items():
            shown = maps if function is None else function(frame, maps)
            for name in thresholds:
                counters[name, label].add(shown[name])
    return [
        {
            "score": name,
            "temporal": label,
            "threshold": counter.threshold,
            "frames": counter.frames,
            **counter.figures(fps),
        }
        for (name, label), counter in counters.items()
    ]


def find_thresholds(args, weights: str, results: str, predictor) -> dict[str, float]:
    """Return the threshold at 95 % TPR of the scores that a model has and that were asked for."""
    model, thresholds = predictor.model, {}
    for name in args.scores:
        try:
            scores.check_statistics(model.check_scores([name]), model.info.score_statistics)
        except ValueError as error:
            print(f"{weights}: without {name}: {error}")
            continue
        thresholds[name] = read_threshold(results, name, 95, args.results_set)
    return thresholds


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("video", help="video without anything unknown")
    add("--weights", nargs="+", required=True, help="checkpoints, evaluated")
    add("--results", nargs="+", help="results.json or run folder of each; default: next to it")
    add("--results-set", metavar="NAME", help="evaluated dataset, if there are several")
    add("--scores", nargs="+", default=["anomaly"])
    add("--temporal", type=float, metavar="ALPHA", help="weight of the current frame")
    add("--min-size", type=int, default=50, metavar="PIXELS")
    add("--max-frames", type=int, metavar="N")
    add("--threads", type=int, default=1)
    add("--json", help="write the figures to this file")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config, last")
    return parser


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    results = args.results or args.weights
    if len(results) != len(args.weights):
        parser.error(f"--results names {len(results)} files for {len(args.weights)} --weights")
    torch.set_num_threads(args.threads)
    rows = []
    for weights, evaluated in zip(args.weights, results, strict=True):
        predictor = AnomalyPredictor.from_pretrained(weights, ["MODEL.DEVICE", "cpu", *args.opts])
        thresholds = find_thresholds(args, weights, evaluated, predictor)
        model = predictor.model
        model.inference = dataclasses.replace(model.inference, scores=list(thresholds))
        with open_video(args.video) as reader:
            total = min(filter(None, (reader.frames, args.max_frames)), default=0)
            with Progress(Path(weights).name, total) as progress:

                def counted(reader=reader, progress=progress):
                    for frame, _ in islice(reader, args.max_frames):
                        yield frame
                        progress.update()

                options = (predictor, thresholds, args.temporal, args.min_size)
                found = count_alarms(counted(), reader.fps, *options)
        rows += [{"weights": weights, **row} for row in found]
        if args.json:  # after every model, so that a later one that fails takes nothing with it
            write_json(args.json, {"options": vars(args), "rows": rows})
    columns = ("weights", "score", "temporal", "frames", "components", "alarms", "alarming")
    print("| weights | score | temporal | frames | components/min | alarms/min | alarming % |")
    print("|---" * len(columns) + "|")
    for row in rows:
        cells = [f"{row[c]:,.1f}" if isinstance(row[c], float) else str(row[c]) for c in columns]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
