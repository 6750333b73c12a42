"""Export a model to ONNX (opset 18), from a photograph to score maps and classes.

    anoseg export runs/street                      # writes runs/street/model.onnx
    anoseg export output/model_final.pth --output model.onnx --scores rba,anomaly --int8
    anoseg export output/model_final.pth --output model.onnx --image-size 1080 1920 --batch 2 --fp16
    anoseg export hf://tue-mps/cityscapes_semantic_eomt_large_1024 --output eomt.onnx

The photograph is RGB 0..255, (1, 3, H, W) of any size; normalisation, resizing, windows, merging
and the way back are inside, adapters are merged, and the outputs are those of AnomalyPredictor.
--image-size H W makes a file for one size, whose graph has only constant shapes, and takes batches.

The written file is run and compared with the model; if it differs too much, it is deleted.
Exit status: 0 written and checked, 1 the check failed, 2 wrong arguments. See docs/export.md.
"""

import argparse
import logging
import re
import sys
from pathlib import Path

from tabulate import tabulate

from anoseg_d2.commands.predict import build_predictor, scores_of_weights
from anoseg_d2.data.image_io import read_image
from anoseg_d2.export.spec import OPSET, Difference, ExportCheckError, ExportSpec
from anoseg_d2.report.results import results_of_weights
from anoseg_d2.utils import cli
from anoseg_d2.utils.options import add_arguments, options_from
from anoseg_d2.utils.ranges import integer, number

logger = logging.getLogger(__name__)

OPTIONS = {"--image-size": integer(1, 16_384), "--tolerance": number(0, above=True)}


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = cli.build_parser(__doc__, imports=True)
    add = parser.add_argument
    add("source", help="checkpoint: file, folder, run folder or hf://owner/name")
    add("opts", nargs="*", metavar="KEY VALUE", help="config overrides")
    add("--output", help="file to write; default: next to the weights")
    add("--overwrite", action="store_true", help="replace an existing output")
    add("--config-file", help="build the model from this config, not the checkpoint's own")
    add("--scores", help="such as rba,rba+anomaly; default: the weights' own, or rba and anomaly")
    add("--image-size", type=int, nargs=2, metavar=("H", "W"), help="see above")
    add("--batch", default="1", metavar="N|dynamic", help="with --image-size: images per run")
    add_arguments(parser, ExportSpec)
    add("--results", help="evaluation whose thresholds are stored; default: next to the weights")
    add("--results-set", metavar="NAME", help="evaluated dataset for --results")
    add("--check-image", help="photograph for the check; default: a drawn image")
    add("--tolerance", type=float, help="largest difference of a score; default: see the page")
    return parser


@cli.command(build_parser, OPTIONS, "stopped; nothing was written", mixed=True)
def main(args: argparse.Namespace) -> int:
    """Export, check, and print what was found; returns the exit status."""
    try:
        differences = run(args)
    except ExportCheckError as error:
        print_differences(error.differences)
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_differences(differences)
    output = Path(args.output)
    for path in (output, output.with_name(f"{output.name}.data")):  # the weights, if they are many
        if path.exists():
            cli.say(f"wrote {path}: {path.stat().st_size / 1e6:.1f} MB, ONNX opset {OPSET}")
    return 0


def run(args: argparse.Namespace) -> list[Difference]:
    """Load, export and check.

    Raises:
        ValueError, OSError, ModuleNotFoundError: wrong arguments or a missing package.
        ExportCheckError: the file differs from the model.
    """
    if not args.output:
        if "://" in args.source:
            raise ValueError(f"{args.source} is not a file of yours: give --output")
        source = Path(args.source)
        args.output = source / "model.onnx" if source.is_dir() else source.with_suffix(".onnx")
    output = Path(args.output)
    if output.suffix != ".onnx":
        raise ValueError(f"--output {output} must end in .onnx")
    if output.exists() and not args.overwrite:
        raise ValueError(f"{output} exists; remove it or pass --overwrite")
    spec = make_spec(args, ("rba",))  # report mistakes before a large model is read
    image = read_image(args.check_image) if args.check_image else None

    # Mistakes that need no torch came first, because importing torch takes seconds.
    import torch

    from anoseg_d2.checkpoint import read_checkpoint
    from anoseg_d2.export.write import export_model
    from anoseg_d2.report.thresholds import thresholds_of_weights

    checkpoint = read_checkpoint(args.source)
    if checkpoint.spec.architecture:
        raise ValueError(
            f"{args.source} is a memory on a bare backbone, which has no masks to export; predict "
            "with `anoseg predict` or AnomalyPredictor"
        )
    args.weights = args.source
    # The exporter traces on the CPU, and through no compiled block.
    args.opts = ["MODEL.DEVICE", "cpu", "MODEL.EOMT.COMPILE", False, *args.opts]
    # Only an evaluation that is named decides the settings; one that is found must have been at
    # those of the model.
    results = results_of_weights(args.results, args.source) if args.results else None
    predictor = build_predictor(args, [], results)
    model = predictor.model
    # Only now is it known whether the model learned the anomaly class.
    learned = ("rba", "anomaly") if model.has_anomaly else ("rba",)
    spec = make_spec(args, tuple(scores_of_weights(checkpoint)) or learned)
    thresholds, dataset = thresholds_of_weights(
        spec.scores, args.source, predictor, args.results, args.results_set
    )
    if (thresholds or model.info.thresholds) and (spec.half or spec.int8):
        logger.warning(
            "thresholds were measured with weights of 32 bits: check them on the file's own maps "
            "(anoseg maps)"
        )
    return export_model(
        model,
        output,
        spec,
        class_names=checkpoint.spec.class_names,
        thresholds=thresholds,
        threshold_dataset=dataset,
        check_image=None if image is None else torch.from_numpy(image).permute(2, 0, 1),
        tolerance=args.tolerance,
    )


def make_spec(args: argparse.Namespace, default_scores: tuple[str, ...]) -> ExportSpec:
    """Return the spec for the given options."""
    names = tuple(name.strip() for name in (args.scores or "").split(",") if name.strip())
    if args.scores is not None and not names:
        raise ValueError("--scores is empty; leave it out for the default")
    batch = int(args.batch) if re.fullmatch("[0-9]{1,4}", args.batch) else 0
    if args.batch != "dynamic" and not 1 <= batch <= 1024:
        raise ValueError(f"--batch is {args.batch!r}; give a number in 1..1024 or `dynamic`")
    return options_from(
        args,
        ExportSpec,
        scores=names or default_scores,
        batch=batch or None,
        image_size=tuple(args.image_size) if args.image_size else None,
        any_size=not args.image_size,
    )


def print_differences(differences: list[Difference]) -> None:
    """Print a table of the differences that the check found."""
    rows = []
    for d in differences:
        values, largest, allowed = f"{d.low:.4g}..{d.high:.4g}", f"{d.largest:.2g}", d.allowed
        # Classes and levels differ or not: there is no size of a difference.
        if d.output == "sem_seg" or d.output.endswith("_byte"):
            largest, allowed = f"{d.largest:.4%} of pixels", f"{d.allowed:.1%}"
        shape = "x".join(map(str, d.shape))
        rows.append([d.output, shape, values, largest, allowed])
    headers = ["output", "shape", "values of the model", "largest difference", "allowed"]
    cli.say(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
