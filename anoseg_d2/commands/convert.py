"""Convert a checkpoint of any known format into another.

    anoseg convert hf://tue-mps/cityscapes_semantic_eomt_large_1024 \\
        --to anoseg --output eomt_large.safetensors
    anoseg convert output/model_final.pth --to huggingface --output my_eomt/ \\
        --license apache-2.0
    anoseg convert lora/model_final.pth --to adapter --output lora.safetensors
    anoseg convert lora.safetensors --base stage3/model_final.pth \\
        --to anoseg --output whole.pth

A folder for Hugging Face gets a model card (README.md) with the figures of the results.json next to
the weights; `hf upload OWNER/NAME my_eomt/` publishes it.
`--merge` adds LoRA adapters into their weights, which leaves the outputs the same up to rounding;
huggingface is always merged. Every tensor is accounted for, and anything
that the other format cannot hold is refused.

Exit status: 0 written; 2 wrong arguments or a broken file (one message says which).
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from anoseg_d2.report.results import read_results, results_of_weights
from anoseg_d2.utils import cli
from anoseg_d2.utils.ranges import integer

# torch comes with whatever reads or writes a checkpoint; it is imported where that happens, so that
# help and mistakes in the call are answered at once.
if TYPE_CHECKING:
    from anoseg_d2.checkpoint import Checkpoint

OPTIONS = {
    "--num-blocks": integer(1, 1000),
    "--num-heads": integer(1, 1000),
    "--image-size": integer(1, 16_384),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the conversion; returns the exit status, 2 after a user's mistake."""
    args = build_parser().parse_args(arguments)
    return cli.run_command(lambda: convert(args), verbosity=args.verbosity)


def convert(args: argparse.Namespace) -> None:
    """Read, complete and write a checkpoint, and print what was done.

    Raises:
        ValueError, OSError: wrong arguments or a broken file.
    """
    cli.check_options(args, OPTIONS)
    cli.import_modules(args.imports)
    check_output(Path(args.output), args)

    from anoseg_d2.checkpoint import read_checkpoint
    from anoseg_d2.checkpoint.adapters import join_adapter, merge_adapters
    from anoseg_d2.checkpoint.from_config import add_delta
    from anoseg_d2.checkpoint.transfer import warn_of_delta

    checkpoint = read_checkpoint(args.source, allow_pickle=args.allow_pickle)
    if args.delta_base:
        checkpoint = add_delta(checkpoint, read_checkpoint(args.delta_base))
    # Of a whole checkpoint, --base names the ViT that an adapter file of it shall be joined with.
    if args.base and not (args.to == "adapter" and checkpoint.format != "anoseg_adapter"):
        checkpoint = join_adapter(checkpoint, read_checkpoint(args.base))
    if args.merge:
        count = len(checkpoint.spec.adapters)
        checkpoint = merge_adapters(checkpoint)
        cli.say(f"merged {count} adapters")
    warn_of_delta(checkpoint)
    # After the file has been read, so that an option contradicts it by name.
    checkpoint.spec.complete(args.num_blocks, args.num_heads, args.image_size)
    written = WRITERS[args.to](checkpoint, Path(args.output), args)
    sizes = checkpoint.spec.known()
    sizes.pop("adapters", None)  # one line per layer
    cli.say(f"read {checkpoint.format}, {len(checkpoint.state_dict)} tensors: {sizes}")
    for name, reason in checkpoint.ignored:
        cli.say(f"left out {name}: {reason}")
    cli.say(f"wrote {written}")


def build_parser() -> argparse.ArgumentParser:
    parser = cli.build_parser(__doc__, imports=True)
    parser.add_argument(
        "source", help="file, Hugging Face folder, run folder, hf://owner/name or timm://name"
    )
    parser.add_argument("--to", required=True, choices=sorted(WRITERS))
    parser.add_argument("--output", required=True, help="file; a folder for huggingface")
    parser.add_argument(
        "--num-blocks", type=int, help="query blocks, if the checkpoint does not state them"
    )
    parser.add_argument(
        "--num-heads",
        type=int,
        help="attention heads, if neither the file nor the width determines them",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="crop in pixels, if the checkpoint does not state it (DINOv3 without config.json)",
    )
    parser.add_argument(
        "--delta-base", help="weights that this checkpoint's encoder must be added to"
    )
    parser.add_argument(
        "--base",
        help="base weights to join an adapter file with; with --to adapter, the bare ViT that the "
        "stage started from (a file, or dinov2-s), if that shall be the base",
    )
    parser.add_argument(
        "--half", action="store_true", help="--to adapter: store float16, half the size"
    )
    parser.add_argument(
        "--inference",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="--to adapter: a TEST key that the model is used with unless told otherwise",
    )
    parser.add_argument("--merge", action="store_true", help="merge adapters into their weights")
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="unpickle anything in the file, which can run code: only for files you trust",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    card = parser.add_argument_group("--to huggingface")
    card.add_argument("--results", help="results.json or run folder; default: next to the weights")
    card.add_argument("--license", metavar="ID", help="licence of the weights, such as apache-2.0")
    card.add_argument(
        "--base-model", metavar="OWNER/NAME", help="default: the DINOv2 or DINOv3 of this size"
    )
    return parser


def check_output(output: Path, args: argparse.Namespace) -> None:
    """Refuse outputs that cannot be written or would overwrite something, before any work.

    Raises:
        ValueError: the output exists, has another ending than its format, or is a folder.
    """
    # Reading and converting a large model takes minutes, so nothing may fail at the last step.
    is_folder = args.to == "huggingface"
    given = [o for o in ("results", "license", "base_model") if getattr(args, o)]
    if given and not is_folder:
        raise ValueError(f"--{given[0].replace('_', '-')} is for --to huggingface")
    given = [option for option in ("half", "inference") if getattr(args, option)]
    if given and args.to != "adapter":
        raise ValueError(f"--{given[0]} is for --to adapter")
    if is_folder and (output.suffix or output.is_file()):
        raise ValueError(f"--output {output} must be a folder for --to huggingface")
    if not is_folder and (output.is_dir() or output.suffix not in SUFFIXES):
        raise ValueError(f"--output {output} must be a file that ends in {', '.join(SUFFIXES)}")
    target = output / "config.json" if is_folder else output
    if target.exists() and not args.overwrite:
        raise ValueError(f"{target} exists; remove it or pass --overwrite")


def write_huggingface(checkpoint: "Checkpoint", output: Path, args: argparse.Namespace) -> str:
    """Write a folder for transformers with its model card."""
    from anoseg_d2.checkpoint.formats_out import to_huggingface, write_folder
    from anoseg_d2.report.model_card import guess_base_model, model_card

    # First, so that a mistake is reported before anything is written.
    place = results_of_weights(args.results, args.source, checkpoint.file)
    if place is None:
        cli.say("the model card has no figures: found no results.json of these weights (--results)")
    folder = to_huggingface(checkpoint)
    text = model_card(
        checkpoint,
        output.resolve().name,
        read_results(place) if place else None,
        license=args.license,
        base_model=args.base_model or guess_base_model(checkpoint.spec, args.source),
    )
    files = write_folder(output, *folder, text)
    return f"{output}/ ({', '.join(files)})"


def write_anoseg(checkpoint: "Checkpoint", output: Path, args: argparse.Namespace) -> str:
    """Write our own format, with the metadata of the source."""
    from anoseg_d2.checkpoint.files import write_checkpoint
    from anoseg_d2.checkpoint.metadata import meta_of_checkpoint

    state = {name: tensor.detach() for name, tensor in checkpoint.state_dict.items()}
    write_checkpoint({"model": state, "meta": meta_of_checkpoint(checkpoint)}, output)
    return str(output)


def write_adapter(checkpoint: "Checkpoint", output: Path, args: argparse.Namespace) -> str:
    """Write what a LoRA stage trained, without the base that it started from."""
    from anoseg_d2.checkpoint.adapters import adapter_payload
    from anoseg_d2.checkpoint.fetch_backbone import NAME
    from anoseg_d2.checkpoint.files import read_checkpoint, write_checkpoint
    from anoseg_d2.checkpoint.from_config import build_config_overrides
    from anoseg_d2.config import load_config
    from anoseg_d2.modeling.inference import score_map_settings

    vit = read_checkpoint(args.base) if args.base else None
    meta = dict(checkpoint.meta)
    if args.inference:
        asked = [part for pair in args.inference for part in pair]
        cfg = load_config(overrides=[*build_config_overrides(checkpoint), *asked])
        settings = {**score_map_settings(cfg), "TEST.ANOMALY.SCORES": cfg.TEST.ANOMALY.SCORES}
        if wrong := [key for key, _ in args.inference if key not in settings]:
            raise ValueError(f"--inference {wrong[0]} is not one of {', '.join(settings)}")
        meta["inference"] = {key: settings[key] for key, _ in args.inference}
        # Those of ensembles hold for the settings that they were measured at.
        meta["score_statistics"] = {}
        meta.pop("statistics_settings", None)
    payload = adapter_payload(
        checkpoint.state_dict, meta, vit, args.base if args.base == NAME else "", args.half
    )
    write_checkpoint(payload, output)
    return f"{output}, {len(payload['model'])} of {len(checkpoint.state_dict)} tensors"


# File endings: safetensors is a format of its own, the others are all torch's.
SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")

WRITERS = {
    "adapter": write_adapter,
    "anoseg": write_anoseg,
    "huggingface": write_huggingface,
}
