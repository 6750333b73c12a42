"""Predict anomaly maps of images and videos: overlay, heat map, components, raw scores.

    anoseg predict street.jpg
    anoseg predict street.jpg --weights model_final.pth
    anoseg predict photos/ 'more/**/*.png' drive.mp4 --weights hf://owner/name --score rba,msp
    anoseg predict photos/ --weights run/model_final.pth --score anomaly --tpr 95
    anoseg predict drive.mp4 --weights model_final.pth --temporal 0.3 --threshold 0.5 --events
    anoseg predict drive.mp4 --weights model_final.pth --temporal 0.3 --unit-scale

Inputs are files, folders (without their subfolders), patterns and videos, in any mix. Outputs go to
OUTPUT/<score>/<kind>/ and are named like their input; those of an earlier run are replaced.
Unreadable inputs are reported and skipped.

Without weights, the model that ships is used; its backbone is downloaded once (44 MB). The
threshold is that of `anoseg threshold`, if the weights have one; --tpr 95 takes the one that finds
95 % of the anomalous pixels in an evaluation, with its settings. --unit-scale writes scores on
0..1 with the threshold at 0.5.

--outputs are overlay and heatmap, and contours and json where there is a threshold, unless it names
others. raw_png has 16 bits and states its scale (score = score_offset + score_scale * value, text
chunks); `anoseg maps` reads it and raw_npy. The colour scale is the score's natural range (rba
-tanh 1..0, uno -1..1; msp, entropy, rba_sum, anomaly 0..1), the same in every run; for a score
without one, the first image's 0.5 and 99.5 percentiles hold for all images of the run.

In videos --temporal averages scores along the optical flow (0.3 reduces flicker well, 1 changes
nothing), and --events links components over time, one number per thing: events.jsonl, and
pictures with the numbers in events/.

Exit status: 0 all inputs were predicted; 1 some were skipped; 2 none could be, because of a wrong
option, wrong weights or no input at all; 130 stopped by Ctrl-C, finished files are kept.
"""

import argparse
import contextlib
import functools
import os
import sys
import tempfile

from tqdm.contrib.logging import logging_redirect_tqdm

from anoseg_d2.evaluation.alarm_rate import describe_alarm
from anoseg_d2.prediction.input_files import find_inputs
from anoseg_d2.prediction.job import PredictionJob
from anoseg_d2.prediction.outputs import OUTPUTS, ScoreOutputs, check_outputs
from anoseg_d2.report.results import results_of_weights
from anoseg_d2.report.thresholds import holds_for, read_threshold, recorded_settings
from anoseg_d2.utils import cli
from anoseg_d2.utils.constants import SHIPPED_NAME
from anoseg_d2.utils.ranges import integer, number

MIN_SIZE = 50  # pixels; of components where nothing says another
OPTIONS = {
    "--range": number(),
    "--temporal": number(0, 1, above=True),
    "--max-frames": integer(1),
    "--tpr": number(0, 100),
    "--min-size": integer(1),
}


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = cli.build_parser(__doc__, imports=True)
    add = parser.add_argument
    add("inputs", nargs="*", help="image, video, folder or quoted pattern ('in/**/*.png')")
    add("--output", default="output/demo", help="output folder (default: %(default)s)")
    add_model_options(parser)
    add("--score", help="such as rba,anomaly; default: what the weights ask for, or rba or memory")
    add("--outputs", help=f"of {','.join(OUTPUTS)}")
    add("--threshold", help="a pixel is anomalous from here on: 0.5, or rba=-0.3,anomaly=0.5")
    add("--tpr", type=float, metavar="PERCENT", help="80, 90, 95 or 99: see above")
    add("--results", help="results.json or run folder for --tpr; default: next to the weights")
    add("--results-set", metavar="NAME", help="evaluated dataset for --tpr, if there are several")
    add("--min-size", type=int, metavar="PIXELS", help="ignore smaller components (50)")
    add("--unit-scale", action="store_true", help="write scores on 0..1")
    add("--range", nargs=2, type=float, metavar=("LO", "HI"), help="ends of the colour scale")
    add("--temporal", type=float, metavar="ALPHA", help="videos: weight of the current frame, 0..1")
    add("--events", action="store_true", help="videos: link components over time")
    add("--max-frames", type=int, metavar="N", help="read at most N frames of a video")
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `build_predictor` reads."""
    add = parser.add_argument
    add("--weights", help=f"checkpoint, hf://owner/name or .onnx file; default: {SHIPPED_NAME}")
    add("--config-file", help="build the model from this yaml instead; --weights overrides its own")
    cli.add_config_options(parser)


@cli.command(build_parser, OPTIONS, "stopped; finished outputs are in {output}", mixed=True)
@logging_redirect_tqdm()
def main(args: argparse.Namespace) -> int:
    """Predict all inputs; returns the exit status."""
    args.weights = args.weights or (None if args.config_file else SHIPPED_NAME)
    if not args.inputs:
        raise ValueError("give an input: images, videos, folders or patterns")
    asked = default_score(args) if args.score is None else args.score
    names = list(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip()))
    if not names:
        raise ValueError("--score is empty")
    results, thresholds = choose_thresholds(args, names)  # before the model, which takes seconds
    kinds = None if args.outputs is None else [k.strip() for k in args.outputs.split(",")]
    if kinds is not None:
        check_outputs(kinds)
    files, missing = find_inputs(args.inputs)
    # One wrong name among many is reported and skipped; it is an error only if all are wrong.
    if not files:
        raise FileNotFoundError("no input found\n  " + "\n  ".join(missing))
    for option, given in (("--temporal", args.temporal is not None), ("--events", args.events)):
        if given and not any(file.is_video for file in files):
            print(f"{option} has no effect: there are no videos among the inputs", file=sys.stderr)
    predictor = build_predictor(args, names, results)
    if results is not None:
        holds_for(results, predictor, named=True)
    if kinds and "segmentation" in kinds and not predictor.class_names:
        raise ValueError("--outputs segmentation: a memory on a bare backbone knows no classes")
    options = output_options(args, kinds, thresholds, predictor.thresholds)
    outputs = {
        name: ScoreOutputs(args.output, name, palette=predictor.palette, **options[name])
        for name in names
    }
    make_output_folder(args.output)
    job = PredictionJob(predictor, outputs, temporal=args.temporal, max_frames=args.max_frames)
    # Each score writes its json when the block ends, also after Ctrl-C.
    with contextlib.ExitStack() as stack:
        for output in outputs.values():
            stack.enter_context(output)
        for sentence in missing:
            job.fail(sentence)
        job.images([file for file in files if not file.is_video])
        for file in files:
            if file.is_video:
                job.video(str(file.path), file.name)
    rate = job.done / max(job.seconds, 1e-9)
    cli.say(f"{job.done} images in {job.seconds:.1f} s ({rate:.2f} images/s): {args.output}")
    if job.failed:
        print(f"skipped inputs: {job.failed}", file=sys.stderr)
    return 1 if job.failed else 0


def make_output_folder(path: str) -> None:
    """Make the folder, so that a folder that cannot be written is reported before any work.

    Raises:
        OSError: it is a file, or it cannot be written.
    """
    try:
        os.makedirs(path, exist_ok=True)
        # Permissions are not enough: the disk may be full or mounted read-only.
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"--output {path} is not a folder that can be written: {reason}") from error


def default_score(args) -> str:
    """Return what the weights ask for, `memory` without a segmentation network, or `rba`."""
    if args.weights and args.weights.endswith(".onnx"):
        return ",".join(open_exported(args.weights).score_names)
    if args.config_file or not (args.weights == SHIPPED_NAME or os.path.exists(args.weights)):
        return "rba"
    from anoseg_d2.checkpoint import read_checkpoint  # it imports torch: seconds

    checkpoint = read_checkpoint(args.weights)
    own = scores_of_weights(checkpoint)
    return ",".join(own or ["memory" if checkpoint.spec.architecture else "rba"])


def scores_of_weights(checkpoint) -> list[str]:
    """Return the scores that a checkpoint asks for, if any."""
    from anoseg_d2.checkpoint.from_config import inference_overrides

    stored = inference_overrides(checkpoint)
    return dict(zip(stored[::2], stored[1::2], strict=True)).get("TEST.ANOMALY.SCORES") or []


@functools.cache
def open_exported(path: str):
    """Return the predictor of an exported file; it is asked for its scores first."""
    from anoseg_d2.prediction.predictor import AnomalyPredictor

    return AnomalyPredictor.from_exported(path)


def build_predictor(args, names: list[str], results=None):
    """Return the `AnomalyPredictor` that the weights describe, or that of the config file.

    Args:
        args: with the options of `add_model_options`.
        names: of scores.
        results: results.json of an evaluation; its settings are taken unless --opts has others.
    """
    if args.weights and args.weights.endswith(".onnx"):
        if args.config_file or args.opts or results is not None:
            raise ValueError(
                f"{args.weights} has its settings inside: drop --config-file, --opts, --device "
                "and --tpr"
            )
        predictor = open_exported(args.weights)
        if missing := [name for name in names if name not in predictor.score_names]:
            raise ValueError(
                f"{args.weights} does not give {', '.join(missing)}, but "
                f"{', '.join(predictor.score_names)}: export it with --scores"
            )
        return predictor

    from anoseg_d2.config import load_config
    from anoseg_d2.modeling.inference import score_map_settings
    from anoseg_d2.prediction.predictor import AnomalyPredictor  # it imports torch: seconds

    # A threshold holds only at the settings that it was measured with.
    settings = recorded_settings(results) if results is not None else {}
    defaults = score_map_settings(load_config()) if settings else {}
    if changed := [f"{key} {value}" for key, value in settings.items() if value != defaults[key]]:
        cli.say(f"as in {results}: {', '.join(changed)}")
    taken = [part for pair in settings.items() for part in pair]
    if not args.config_file:
        overrides = ["TEST.ANOMALY.SCORES", names, *taken, *args.opts]
        return AnomalyPredictor.from_pretrained(args.weights, overrides)
    cfg = load_config(args.config_file, [*taken, *args.opts])
    cfg.TEST.ANOMALY.SCORES = names
    cfg.MODEL.WEIGHTS = args.weights or cfg.MODEL.WEIGHTS
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(f"{args.config_file}: MODEL.WEIGHTS is empty; give --weights")
    return AnomalyPredictor(cfg)


def choose_thresholds(args, names: list[str]):
    """Return the results.json that --tpr reads, if it is given, and what the options ask for.

    Returns:
        path or None; {score: threshold, None where none was asked for}.
    """
    if args.tpr is not None:
        if args.threshold is not None:
            raise ValueError("--threshold and --tpr cannot be given together")
        results = results_of_weights(args.results, args.weights)
        if results is None:
            raise ValueError("--tpr reads its threshold from an evaluation: give --results")
        rest = args.tpr, args.results_set
        return results, {name: read_threshold(results, name, *rest) for name in names}
    if args.threshold is None:
        return None, dict.fromkeys(names)
    # A plain number is enough for one score; with several, each needs its own.
    plain = "=" not in args.threshold and len(names) == 1
    text = f"{names[0]}={args.threshold}" if plain else args.threshold
    try:
        parts = [part.partition("=") for part in text.split(",")]
        given = {name.strip(): float(value) for name, _, value in parts}
    except ValueError:
        parts, given = [], {}
    for value in given.values():
        number().check("--threshold", value)
    if set(given) != set(names) or len(parts) > len(given):
        wanted = ",".join(f"{name}=NUMBER" for name in names)
        raise ValueError(f"--threshold {text} does not fit; the scores need {wanted}")
    return None, given


def output_options(args, kinds, thresholds, stored) -> dict[str, dict]:
    """Return the options of `ScoreOutputs` for each score, and say where thresholds are from.

    Args:
        kinds: of outputs that are asked for; None for the default.
        thresholds: by score; None takes the stored one.
        stored: of `anoseg threshold`, by score.
    """
    if args.range and len(thresholds) > 1:
        raise ValueError(f"--range is for one score, --score names {', '.join(thresholds)}")
    if args.range and not args.range[0] < args.range[1]:
        raise ValueError("--range must go from low to high, not {:g} {:g}".format(*args.range))
    options = {}
    for name, threshold in thresholds.items():
        record, min_size = stored.get(name), args.min_size
        if args.tpr is not None:
            cli.say(f"{name}: threshold {threshold:.6g} at {args.tpr:g} % TPR")
        elif threshold is None and record:
            threshold = record["threshold"]
            min_size = min_size or record["min_size"]
            cli.say(f"{name}: threshold {threshold:.6g}, {describe_alarm(record)}")
            if args.temporal != record["temporal"]:
                cli.say(f"{name}: it was found with --temporal {record['temporal']}")
        if args.unit_scale and not record:
            raise ValueError(f"--unit-scale: {name} has no threshold of `anoseg threshold`")
        # Components need a threshold, so they are drawn only where there is one.
        drawn = ["contours", "json"] if threshold is not None else []
        events = ["events"] if args.events and "events" not in (kinds or ()) else []
        options[name] = {
            "kinds": [*(kinds or ["overlay", "heatmap", *drawn]), *events],
            "threshold": threshold,
            "min_size": min_size or MIN_SIZE,
            "value_range": tuple(args.range) if args.range else None,
            "unit_scale": record if args.unit_scale else None,
            "info": {"weights": args.weights, "config_file": args.config_file},
        }
    return options
