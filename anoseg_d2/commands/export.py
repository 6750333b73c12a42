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

from anoseg_d2.data.image_io import read_image
from anoseg_d2.export.spec import (
    INPUTS,
    OPSET,
    Difference,
    ExportCheckError,
    ExportSpec,
)
from anoseg_d2.utils import cli
from anoseg_d2.utils.ranges import integer, number

logger = logging.getLogger(__name__)

OPTIONS = {"--image-size": integer(1, 16_384), "--tolerance": number(0, above=True)}


def main(arguments: list[str] | None = None) -> int:
    """Run the export; returns the exit status."""
    args = build_parser().parse_intermixed_args(arguments)
    return cli.run_command(lambda: export(args), "stopped; nothing was written", args.verbosity)


def export(args: argparse.Namespace) -> int:
    """Export, check, and print what was found; returns the exit status."""
    try:
        differences = run(args)
    except ExportCheckError as error:
        print_differences(error.differences)
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_differences(differences)
    print_written(Path(args.output))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = cli.build_parser(__doc__, imports=True)
    parser.add_argument("source", help="checkpoint: file, folder, run folder or hf://owner/name")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides")
    parser.add_argument("--output", help="file to write; default: next to the weights")
    parser.add_argument(
        "--config-file", help="build the model from this config instead of the checkpoint's own"
    )
    parser.add_argument(
        "--scores",
        help="names separated by commas, ensembles as rba+anomaly; default: rba, and anomaly "
        "where the model learned the class",
    )
    parser.add_argument(
        "--confidence", action="store_true", help="also the confidence of the classes, 0..1"
    )
    parser.add_argument(
        "--unit-scale",
        action="store_true",
        help="scores on a scale of 0..1 with the thresholds of `anoseg threshold` at 0.5",
    )
    parser.add_argument(
        "--one-byte",
        action="store_true",
        help="also every score on that scale in one byte, <score>_byte; the threshold is at 128",
    )
    parser.add_argument("--input", choices=INPUTS, default="uint8", help="default: uint8")
    parser.add_argument(
        "--batch", default="1", metavar="N|dynamic", help="with --image-size: images per run"
    )
    parser.add_argument("--image-size", type=int, nargs=2, metavar=("H", "W"), help="see above")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument(
        "--fp16", action="store_true", help="weights and network in float16; outputs stay float32"
    )
    precision.add_argument(
        "--int8",
        action="store_true",
        help="8-bit weights of the linear layers; smaller and, on CPUs with 8-bit "
        "instructions, faster; the printed table shows the differences",
    )
    parser.add_argument(
        "--results",
        help="results.json or run folder whose thresholds at 95 %% TPR go into the file; default: "
        "next to the weights",
    )
    parser.add_argument("--results-set", metavar="NAME", help="evaluated dataset for --results")
    parser.add_argument("--check-image", help="photograph for the check; default: a drawn image")
    parser.add_argument(
        "--tolerance",
        type=float,
        help="largest difference of a score; default: 1e-3, with --fp16 0.03, times the largest "
        "value of the score where that is over 1",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return parser


def run(args: argparse.Namespace) -> list[Difference]:
    """Load, export and check.

    Raises:
        ValueError, OSError, ModuleNotFoundError: wrong arguments or a missing package.
        ExportCheckError: the file differs from the model.
    """
    cli.check_options(args, OPTIONS)
    cli.import_modules(args.imports)
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
    predictor = load_predictor(args)
    model = predictor.model
    # Only now is it known whether the model learned the anomaly class.
    spec = make_spec(args, ("rba", "anomaly") if model.has_anomaly else ("rba",))
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
    return ExportSpec(
        scores=names or default_scores,
        input=args.input,
        batch=batch or None,
        image_size=tuple(args.image_size) if args.image_size else None,
        any_size=not args.image_size,
        confidence=args.confidence,
        unit_scale=args.unit_scale,
        one_byte=args.one_byte,
        half=args.fp16,
        int8=args.int8,
    )


def load_predictor(args: argparse.Namespace):
    """Load the checkpoint's model on the CPU, with the settings of the evaluation in --results."""
    from anoseg_d2.config import load_config
    from anoseg_d2.prediction.predictor import AnomalyPredictor
    from anoseg_d2.report.results import results_of_weights
    from anoseg_d2.report.thresholds import recorded_settings

    # The exporters trace on the CPU, and through no compiled block.
    overrides = ["MODEL.DEVICE", "cpu", "MODEL.EOMT.COMPILE", False]
    if args.results:
        settings = recorded_settings(results_of_weights(args.results, args.source))
        overrides += [part for pair in settings.items() for part in pair]
    overrides += args.opts
    if not args.config_file:
        return AnomalyPredictor.from_pretrained(args.source, overrides)
    cfg = load_config(args.config_file, [*overrides, "MODEL.WEIGHTS", args.source])
    return AnomalyPredictor(cfg)


def print_differences(differences: list[Difference]) -> None:
    """Print a table of the differences that the check found."""
    cli.say("| output | shape | values of the model | largest difference | allowed |")
    cli.say("|---|---|---|---|---|")
    for d in differences:
        shape = "x".join(map(str, d.shape))
        values, largest, allowed = (
            f"{d.low:.4g}..{d.high:.4g}",
            f"{d.largest:.2g}",
            f"{d.allowed:.2g}",
        )
        # Classes and levels differ or not: there is no size of a difference.
        if d.output == "sem_seg" or d.output.endswith("_byte"):
            largest, allowed = f"{d.largest:.4%} of pixels", f"{d.allowed:.1%}"
        if d.output == "sem_seg":
            values = f"classes {values}"
        cli.say(f"| {d.output} | {shape} | {values} | {largest} | {allowed} |")


def print_written(output: Path) -> None:
    """Print which files were written and how large they are."""
    cli.say(f"wrote {output}: {output.stat().st_size / 1e6:.1f} MB, ONNX opset {OPSET}")
    weights = output.with_name(f"{output.name}.data")
    if weights.exists():
        cli.say(
            f"wrote {weights}: {weights.stat().st_size / 1e6:.1f} MB of weights; keep both together"
        )
