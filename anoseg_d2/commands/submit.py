"""Write score maps for the leaderboards with hidden labels.

    anoseg submit smiyc --weights output/model_final.pth --score rba --method MyMethod
    anoseg submit fishyscapes --weights model_final.pth --score rba --input /input --output /output

`smiyc` (SegmentMeIfYouCan) writes the hdf5 files that its own tool reads, of every public frame of
both tracks. The number of frames is checked; labels are not needed.
`fishyscapes` is the command to run inside a container: it reads the images of a folder and writes
the score map and segmentation of each. docs/leaderboards.md explains how to pack and send both.

Exit status: 0 everything was written; 2 wrong arguments or a broken file (the message says which);
130 stopped by Ctrl-C.
"""

import argparse
from pathlib import Path

from anoseg_d2.commands.predict import add_model_options, build_predictor, make_output_folder
from anoseg_d2.prediction.input_files import InputFile
from anoseg_d2.prediction.job import PredictionJob
from anoseg_d2.prediction.submission import (
    TRACKS,
    FishyscapesMaps,
    TrackMaps,
    find_images,
    find_track_frames,
)
from anoseg_d2.utils import cli
from anoseg_d2.utils.files import check_name

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
    add("--root", help="folder of the tracks' releases; default: DETECTRON2_DATASETS")
    add("--output", default="outputs", help="folder above anomaly_p/ (default: %(default)s)")
    fishyscapes = kinds.add_parser("fishyscapes", help="Fishyscapes: npy files, for containers")
    add = fishyscapes.add_argument
    add("--input", default="/input", help="folder of images (default: %(default)s)")
    add("--output", default="/output", help="where the maps go (default: %(default)s)")
    for kind in (smiyc, fishyscapes):
        add_model_options(kind)
        kind.add_argument("--score", default="rba", help="default: %(default)s")
        cli.add_import_option(kind)
        # It may also precede the benchmark's name; a default here would overwrite that.
        cli.add_verbosity_options(kind, default=argparse.SUPPRESS)
    return parser


def smiyc(args) -> None:
    """Write the maps of the chosen tracks, and say how to send them."""
    from anoseg_d2.data.builtin import datasets_root  # needs detectron2

    method = check_name(args.method, "method")
    root = Path(args.root).expanduser() if args.root else datasets_root()
    # The benchmark's tool expects both tracks, but one can be submitted on its own.
    names = TRACKS if args.track == "both" else [args.track]
    # All tracks are found before the first map is predicted.
    frames = {name: find_track_frames(root, TRACKS[name]) for name in names}
    folder = Path(args.output, "anomaly_p", method)  # where the benchmark's tool looks
    make_output_folder(str(folder))
    predictor = load_predictor(args)
    for name, files in frames.items():
        output = TrackMaps(folder / TRACKS[name].stored)
        predict(predictor, args.score, output, files)
        cli.say(f"{output.folder}: {len(files)} maps")
    splits = ",".join(TRACKS[name].stored.replace("-all", "-validation") for name in names)
    cli.say(HOW_TO_SEND.format(output=args.output, root=root, method=method, splits=splits))


def fishyscapes(args) -> None:
    """Write the files that Fishyscapes reads, for every image of a folder."""
    files = find_images(args.input)
    make_output_folder(args.output)
    predictor = load_predictor(args)
    output = FishyscapesMaps(args.output, predictor.model.num_known)
    predict(predictor, args.score, output, files)
    cli.say(f"wrote score map and segmentation of {len(files)} images to {args.output}")


def load_predictor(args):
    """Build the model."""
    if not (args.weights or args.config_file):
        raise ValueError("give --weights, or a --config-file whose MODEL.WEIGHTS is set")
    return build_predictor(args, [args.score])


def predict(predictor, score: str, output, files: list[InputFile]) -> None:
    """Predict images into an output; ValueError if one of them cannot be read."""
    # Unlike a folder of pictures, a leaderboard takes all maps or none.
    job = PredictionJob(predictor, {score: output})
    job.images(files)
    if job.failed:
        raise ValueError(f"{job.failed} images could not be read, so the maps are incomplete")


@cli.command(build_parser, stopped="stopped; the maps are incomplete")
def main(args: argparse.Namespace) -> None:
    """Write the files of a leaderboard."""
    (smiyc if args.benchmark == "smiyc" else fishyscapes)(args)
