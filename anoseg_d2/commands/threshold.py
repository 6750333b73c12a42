"""Find a threshold that promises a rate of false alarms, from normal photographs only.

    anoseg threshold runs/street --images normal_drive/ --alarm-rate 0.1
    anoseg threshold model_final.pth --images a.mp4 b.mp4 --alarm-rate 0.05 --block 25
    anoseg threshold hf://owner/name --images photos/ --alarm-rate 0.1 --output mine.pth
    anoseg threshold runs/street --images normal_drive/ --alarm-rate 0.1 --objects pasted.yaml

An image raises an alarm if a component of at least --min-size pixels has score >= threshold. At the
threshold that is found, at most the given fraction of further images like these raise one. No
anomaly is needed, and none may be in the images. The threshold is stored in the checkpoint, with
its settings; predict, app and export use it. docs/threshold.md says what the promise is worth.

The rate holds on average over all images that could have been taken, for images of different
scenes. Consecutive frames are no independent witnesses: --block 25 lets each 25 frames, of a video
or of the images in the order of their names, count as one, and the rate is then that of blocks.
--confidence 0.95 holds the rate for these very images with that probability, at a higher threshold.
--objects also says how many of the labelled objects of these cards, such as pasted ones, raise an
alarm at the threshold.
"""

import argparse
import contextlib
import dataclasses
from collections.abc import Iterable

import numpy as np

from anoseg_d2.commands.predict import MIN_SIZE, default_score
from anoseg_d2.data.dataset_card import find_card, read_card
from anoseg_d2.data.label_rules import load_label
from anoseg_d2.evaluation.alarm_rate import (
    alarm_level,
    alarm_threshold,
    block_levels,
    describe_alarm,
    found_objects,
)
from anoseg_d2.prediction.input_files import find_inputs
from anoseg_d2.prediction.job import PredictionJob
from anoseg_d2.utils import cli
from anoseg_d2.utils.constants import ANOMALY, SHIPPED_NAME
from anoseg_d2.utils.ranges import integer, number

OPTIONS = {
    "--alarm-rate": number(0.0001, 0.9999),
    "--confidence": number(0.5, 0.9999),
    "--min-size": integer(1),
    "--block": integer(1),
    "--temporal": number(0, 1, above=True),
}


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = cli.build_parser(__doc__, imports=True)
    add = parser.add_argument
    add("weights", help="checkpoint: file, run folder, hf://owner/name")
    add("--images", nargs="+", required=True, help="normal images, videos, folders or patterns")
    add("--alarm-rate", type=float, required=True, help="largest fraction of false alarms, 0..1")
    add("--score", help="scores, such as rba,anomaly; default: as for `anoseg predict`")
    add("--block", type=int, default=1, metavar="FRAMES", help="that count as one (1)")
    add("--confidence", type=float, metavar="P", help="hold the rate with probability P")
    add(
        "--min-size", type=int, default=MIN_SIZE, metavar="PIXELS", help="of an alarm (%(default)s)"
    )
    add("--temporal", type=float, metavar="ALPHA", help="of videos, as for `anoseg predict`")
    add("--objects", nargs="+", default=[], metavar="CARD", help="sets of labelled unknown objects")
    add("--output", help="checkpoint to write; default: the threshold is added to WEIGHTS")
    cli.add_config_options(parser)
    return parser


@cli.command(build_parser, OPTIONS, "stopped; nothing was stored")
def main(args: argparse.Namespace) -> None:
    """Predict the normal images, choose the threshold, and store it."""
    files, missing = find_inputs(args.images)
    if missing:
        raise FileNotFoundError("\n  ".join(missing))
    images = [file for file in files if not file.is_video]
    if len(images) == len(files):  # too few are refused before any work
        alarm_threshold(np.zeros(len(images) // args.block), args.alarm_rate, args.confidence)
    sets = object_sets(args.objects)
    from anoseg_d2.checkpoint import read_checkpoint, save_weights
    from anoseg_d2.checkpoint.files import update_meta
    from anoseg_d2.modeling.inference import score_map_settings
    from anoseg_d2.prediction.predictor import AnomalyPredictor

    checkpoint = read_checkpoint(args.weights)
    if not args.output and ("://" in args.weights or args.weights == SHIPPED_NAME):
        raise ValueError(f"{args.weights} is not a file of yours: give --output")
    args.config_file = None
    names = [name.strip() for name in (args.score or default_score(args)).split(",")]
    overrides = ["TEST.ANOMALY.SCORES", names, *args.opts]
    predictor = AnomalyPredictor.from_pretrained(checkpoint, overrides)
    levels = {name: Levels(args.min_size) for name in names}
    job = PredictionJob(predictor, levels, temporal=args.temporal)
    job.images(images)
    for file in files:
        if file.is_video:
            job.video(str(file.path), file.name)
    if job.failed:
        raise ValueError(f"{job.failed} inputs could not be read; leave them out of --images")
    found = predictor.thresholds
    for name in names:
        # Each video is cut into blocks on its own, so that no block spans two of them.
        units = np.concatenate([block_levels(s, args.block) for s in levels[name].sequences])
        found[name] = {
            "threshold": alarm_threshold(units, args.alarm_rate, args.confidence),
            # With the threshold at 0.5, a typical normal image gives the scale of 0..1 its width.
            "median": float(np.mean(levels[name].medians)),
            "alarm_rate": args.alarm_rate,
            "confidence": args.confidence,
            "count": len(units),
            "block": args.block,
            "min_size": args.min_size,
            "temporal": args.temporal,
            "settings": score_map_settings(predictor.cfg),
        }
        cli.say(f"{name}: threshold {found[name]['threshold']:.6g}, {describe_alarm(found[name])}")
    for labelled in sets:
        say_found(predictor, {name: found[name] for name in names}, *labelled)
    if args.output:
        predictor.model.info = dataclasses.replace(predictor.model.info, thresholds=found)
        save_weights(predictor.model, args.output)
    else:
        update_meta(checkpoint.file, thresholds=found)
    cli.say(f"stored in {args.output or checkpoint.file}")


def object_sets(names: Iterable[str]) -> list[tuple[str, int, list[dict]]]:
    """Return name, id of objects in the labels, and images of the datasets of cards."""
    from anoseg_d2.data.builtin import datasets_root  # it imports torch: seconds

    found = []
    for name in names:
        for dataset in read_card(find_card(name)):
            marked = ANOMALY if dataset.evaluator_type == "anomaly" else dataset.anomaly_id
            if marked is None:
                raise ValueError(f"--objects {name}: the labels of {dataset.name} mark no objects")
            found.append((dataset.name, marked, dataset.load(datasets_root())))
    return found


def say_found(predictor, records, dataset: str, marked: int, images: list[dict]) -> None:
    """Predict a set of `object_sets`, and say how many of its objects raise an alarm."""
    counts = {name: np.zeros(2, int) for name in records}
    with cli.Progress("predicted", len(images)) as progress:
        for image in images:
            objects = load_label(image["sem_seg_file_name"], image["label_rule"]) == marked
            scores = predictor(image["file_name"])["scores"]
            for name, record in records.items():
                limits = record["threshold"], record["min_size"]
                counts[name] += found_objects(scores[name], objects, *limits)
            progress.update()
    for name, (hits, count) in counts.items():
        cli.say(f"{name}: {hits} of {count} objects of {dataset} raise an alarm at the threshold")


class Levels:
    """The alarm levels of images, and of the frames of videos; outputs of a `PredictionJob`.

    Args:
        min_size: pixels of a component that is an alarm.

    Attributes:
        sequences: levels in order, of all images, then of each video.
        medians: median score of each image and frame.
    """

    def __init__(self, min_size: int):
        self.min_size = min_size
        self.sequences: list[list[float]] = [[]]
        self.medians: list[float] = []

    def write_image(self, name, source, photo, score: np.ndarray, sem_seg) -> None:
        """Take the score of the next image."""
        self._take(self.sequences[0], score)

    @contextlib.contextmanager
    def video(self, name, file_name, fps):
        """Give a function that takes the frames of a video, as `ScoreOutputs.video` does."""
        levels: list[float] = []
        self.sequences.append(levels)
        yield lambda index, time, photo, score, sem_seg: self._take(levels, score)

    def _take(self, levels: list[float], score: np.ndarray) -> None:
        levels.append(alarm_level(score, self.min_size))
        self.medians.append(float(np.median(score)))
