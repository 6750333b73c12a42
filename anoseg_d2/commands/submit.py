"""Write score maps for the leaderboards with hidden labels.

    anoseg submit smiyc --weights output/model_final.pth --score rba --method MyMethod
    anoseg submit smiyc --maps my_maps/ --method MyMethod --track anomaly
    anoseg submit fishyscapes --weights model_final.pth --score rba --input /input --output /output

`smiyc` (SegmentMeIfYouCan) writes the hdf5 files that its own tool reads, of every public frame of
both tracks: from weights, or from the maps of any method in npy, npz, png, tiff or hdf5. The number
of frames and the size of every map are checked; labels are not needed. The same command continues
a run that was stopped.
`fishyscapes` is the command to run inside a container: it reads the images of a folder and writes
the score map and segmentation of each. docs/leaderboards.md explains how to pack and send both.

Exit status: 0 everything was written; 2 wrong arguments or a broken file (the message says which);
130 stopped by Ctrl-C.
"""

import argparse
from pathlib import Path

from anoseg_d2 import __version__
from anoseg_d2.commands.predict import add_model_options, build_predictor, make_output_folder
from anoseg_d2.evaluation.map_files import MapReader
from anoseg_d2.prediction.input_files import InputFile
from anoseg_d2.prediction.job import PredictionJob
from anoseg_d2.prediction.submission import (
    TRACKS,
    FishyscapesMaps,
    TrackMaps,
    convert_maps,
    find_fishyscapes_images,
    find_track_frames,
)
from anoseg_d2.report.results import results_of_weights
from anoseg_d2.report.thresholds import holds_for
from anoseg_d2.utils import cli
from anoseg_d2.utils.files import check_name, read_json, write_json

HOW_TO_SEND = """
To see the figures of SegmentMeIfYouCan's own tool on the validation frames (from a checkout of
https://github.com/SegmentMeIfYouCan/road-anomaly-benchmark):
  DIR_OUTPUTS={output} DIR_DATASETS={root} \\
    python -m road_anomaly_benchmark metric PixBinaryClass {method} {splits}
To send the maps, pack them, and follow https://segmentmeifyoucan.com/submit:
  tar -C {output} -czf {method}.tar.gz anomaly_p/{method}"""


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = cli.build_parser(__doc__)
    kinds = parser.add_subparsers(dest="benchmark", required=True, metavar="smiyc|fishyscapes")
    smiyc = kinds.add_parser("smiyc", help="SegmentMeIfYouCan: hdf5 files of both tracks")
    add = smiyc.add_argument
    add("--method", required=True, help="name of the method on the leaderboard and in paths")
    add("--track", choices=[*TRACKS, "both"], default="both", help="default: both")
    add(
        "--split",
        choices=["all", "test", "validation"],
        default="all",
        help="default: all frames, as the benchmark's tool expects",
    )
    add(
        "--root",
        help="folder of dataset_AnomalyTrack and dataset_ObstacleTrack; default: "
        "DETECTRON2_DATASETS",
    )
    add("--output", default="outputs", help="folder above anomaly_p/ (default: %(default)s)")
    _add_score_options(smiyc)
    add("--maps", help="folder of score maps of any method, instead of --weights")
    add("--pattern", default="{id}", help="name of a map without its extension (default: {id})")
    add("--key", help="array inside npz or hdf5 maps, when there are several")
    add("--negate", action="store_true", help="low scores in --maps mean anomaly")
    fishyscapes = kinds.add_parser("fishyscapes", help="Fishyscapes: npy files, for containers")
    add = fishyscapes.add_argument
    add("--input", default="/input", help="folder of images (default: %(default)s)")
    add("--output", default="/output", help="where the maps go (default: %(default)s)")
    _add_score_options(fishyscapes)
    return parser


def _add_score_options(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    parser.add_argument("--score", default="rba", help="default: %(default)s")
    cli.add_import_option(parser)
    # It may also precede the benchmark's name; a default here would overwrite that.
    cli.add_verbosity_options(parser, default=argparse.SUPPRESS)


def main(argv=None) -> int:
    """Run the command; returns the exit status."""
    args = build_parser().parse_args(argv)
    work = smiyc if args.benchmark == "smiyc" else fishyscapes
    return cli.run_command(
        lambda: work(args),
        "stopped; finished maps are kept, run the same command again to continue",
        args.verbosity,
    )


def smiyc(args) -> None:
    """Write the maps of the chosen tracks, and say how to send them."""
    from anoseg_d2.data.builtin import datasets_root  # needs detectron2

    cli.import_modules(args.imports)
    method = check_name(args.method, "method")
    # Maps are either predicted here or supplied; a submission must not mix both.
    from_weights = bool(args.weights or args.config_file)
    if from_weights == bool(args.maps):
        raise ValueError("give --weights (or --config-file), or else --maps")
    root = Path(args.root).expanduser() if args.root else datasets_root()
    # The benchmark's tool expects both tracks, but one can be submitted on its own.
    names = TRACKS if args.track == "both" else [args.track]
    # All tracks are found before the first map is predicted.
    frames = {name: find_track_frames(root, TRACKS[name], args.split) for name in names}
    folder = Path(args.output, "anomaly_p", method)  # where the benchmark's tool looks
    make_output_folder(str(folder))
    outputs = {name: TrackMaps(folder / TRACKS[name].stored) for name in names}
    if from_weights:
        predict_tracks(args, frames, outputs, folder / "submission.json")
    else:
        source = {"maps": str(Path(args.maps).resolve()), "key": args.key, "negate": args.negate}
        claim(folder / "submission.json", source, {"anoseg_d2": __version__})
        reader = MapReader(args.key, args.negate)
        with cli.Progress("written", sum(map(len, frames.values())), "maps") as progress:
            for name, output in outputs.items():
                convert_maps(args.maps, frames[name], output, reader, args.pattern, progress.update)
    for name, output in outputs.items():
        cli.say(f"{output.folder}: {len(frames[name])} maps, {_splits(name, frames[name])}")
    splits = ",".join(TRACKS[name].stored.replace("-all", "-validation") for name in names)
    cli.say(HOW_TO_SEND.format(output=args.output, root=root, method=method, splits=splits))


def _splits(name: str, frames: list[InputFile]) -> str:
    found = [TRACKS[name].split(frame.name) for frame in frames]
    return ", ".join(f"{found.count(split)} {split}" for split in dict.fromkeys(found))


def predict_tracks(args, frames: dict, outputs: dict, record: Path) -> None:
    """Predict every frame that has no map yet."""
    from anoseg_d2.checkpoint import describe_weights  # needs torch

    predictor = load_predictor(args)
    identity = {
        "score": args.score,
        "weights_sha256": describe_weights(predictor.model)["weights_sha256"],
        "config": predictor.cfg.TEST.dump(),
    }
    claim(record, identity, {"weights": args.weights, "anoseg_d2": __version__})
    for name, output in outputs.items():
        missing = [frame for frame in frames[name] if not output.path(frame.name).is_file()]
        predict(predictor, args.score, output, missing)


def claim(record: Path, identity: dict, about: dict) -> None:
    """Record next to the maps where they come from.

    Raises:
        ValueError: the folder holds maps from elsewhere, which must not be mixed with these.
    """
    # Maps that an interrupted run left are kept only if these would be the same.
    known = read_json(record) if record.is_file() else None
    if known is not None and any(known.get(key) != value for key, value in identity.items()):
        raise ValueError(
            f"{record.parent} holds maps from another source (model, score, TEST setting or "
            f"folder of maps, see {record.name}); delete it, or choose another --method or --output"
        )
    write_json(record, {**identity, **about})


def load_predictor(args):
    """Build the model; warn if an evaluation next to the weights used other settings."""
    predictor = build_predictor(args, [args.score])
    results = results_of_weights(None, args.weights or predictor.cfg.MODEL.WEIGHTS)
    if results is not None:
        holds_for(results, predictor, named=False)
    return predictor


def predict(predictor, score: str, output, files: list[InputFile]) -> None:
    """Predict images into an output; ValueError if one of them cannot be read."""
    # Unlike a folder of pictures, a leaderboard takes all maps or none.
    job = PredictionJob(predictor, {score: output})
    job.images(files)
    if job.failed:
        raise ValueError(f"{job.failed} images could not be read, so the maps are incomplete")


def fishyscapes(args) -> None:
    """Write the files that Fishyscapes reads, for every image of a folder."""
    cli.import_modules(args.imports)
    if not (args.weights or args.config_file):
        raise ValueError("give --weights, or a --config-file whose MODEL.WEIGHTS is set")
    files = find_fishyscapes_images(args.input)
    make_output_folder(args.output)
    predictor = load_predictor(args)
    output = FishyscapesMaps(args.output, predictor.model.num_known)
    predict(predictor, args.score, output, files)
    cli.say(f"wrote score map and segmentation of {len(files)} images to {args.output}")
