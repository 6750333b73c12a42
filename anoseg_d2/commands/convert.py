"""Convert a checkpoint of any known format into one of ours.

    anoseg convert hf://tue-mps/cityscapes_semantic_eomt_large_1024 \\
        --to anoseg --output eomt_large.safetensors
    anoseg convert lora/model_final.pth --to adapter --output lora.safetensors
    anoseg convert lora.safetensors --base stage3/model_final.pth \\
        --to anoseg --output whole.pth

Every tensor is accounted for. `--merge` adds LoRA adapters into their weights, which leaves the
outputs the same up to rounding. To publish a model, convert it to `model.safetensors` and
`hf upload OWNER/NAME model.safetensors`; weights are then named as hf://OWNER/NAME.

--num-blocks, --num-heads and --image-size are for checkpoints that do not state them, such as
DINOv3's without config.json. --allow-pickle can run code of the file: only for files you trust.
With --to adapter, --base is the bare ViT that the stage started from (a file, or dinov2-s), if
that shall be the base, and --inference is a setting of TEST that the model is used with.

Exit status: 0 written; 2 wrong arguments or a broken file (one message says which).
"""

import argparse
from pathlib import Path

from anoseg_d2.utils import cli
from anoseg_d2.utils.ranges import integer

# File endings: safetensors is a format of its own, the others are all torch's.
SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
OPTIONS = {
    "--num-blocks": integer(1, 1000),
    "--num-heads": integer(1, 1000),
    "--image-size": integer(1, 16_384),
}


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = cli.build_parser(__doc__, imports=True)
    add = parser.add_argument
    add("source", help="file, Hugging Face folder, run folder, hf://owner/name or timm://name")
    add("--to", required=True, choices=("adapter", "anoseg"))
    add("--output", required=True, help="file to write")
    add("--overwrite", action="store_true", help="replace an existing output")
    add("--num-blocks", type=int, metavar="N", help="query blocks")
    add("--num-heads", type=int, metavar="N", help="attention heads")
    add("--image-size", type=int, nargs=2, metavar=("H", "W"), help="crop in pixels")
    add("--base", help="base weights to join an adapter file with")
    add("--delta-base", help="weights that this checkpoint's encoder must be added to")
    add("--merge", action="store_true", help="merge adapters into their weights")
    add("--allow-pickle", action="store_true", help="unpickle anything in the file")
    adapter = parser.add_argument_group("--to adapter").add_argument
    adapter("--half", action="store_true", help="store float16, half the size")
    pairs = {"nargs": 2, "action": "append", "default": [], "metavar": ("KEY", "VALUE")}
    adapter("--inference", help="may be repeated", **pairs)
    return parser


@cli.command(build_parser, OPTIONS)
def main(args: argparse.Namespace) -> None:
    """Read, complete and write a checkpoint, and print what was done.

    Raises:
        ValueError, OSError: wrong arguments or a broken file.
    """
    output = Path(args.output)
    # Reading and converting a large model takes minutes, so nothing may fail at the last step.
    for option in ("half", "inference"):
        if getattr(args, option) and args.to != "adapter":
            raise ValueError(f"--{option} is for --to adapter")
    if output.is_dir() or output.suffix not in SUFFIXES:
        raise ValueError(f"--output {output} must be a file that ends in {', '.join(SUFFIXES)}")
    if output.exists() and not args.overwrite:
        raise ValueError(f"{output} exists; remove it or pass --overwrite")

    # torch comes with these, so help and mistakes in the call are answered before.
    from anoseg_d2.checkpoint import read_checkpoint
    from anoseg_d2.checkpoint.adapters import join_adapter, merge_adapters
    from anoseg_d2.checkpoint.files import write_checkpoint
    from anoseg_d2.checkpoint.from_config import add_delta
    from anoseg_d2.checkpoint.metadata import meta_of_checkpoint
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
    if args.to == "adapter":
        payload = make_adapter(checkpoint, args)
    else:
        payload = {"model": checkpoint.state_dict, "meta": meta_of_checkpoint(checkpoint)}
    write_checkpoint(payload, output)
    sizes = checkpoint.spec.known()
    sizes.pop("adapters", None)  # one line per layer
    cli.say(f"read {checkpoint.format}, {len(checkpoint.state_dict)} tensors: {sizes}")
    for name, reason in checkpoint.ignored:
        cli.say(f"left out {name}: {reason}")
    cli.say(f"wrote {output}, {len(payload['model'])} tensors")


def make_adapter(checkpoint, args: argparse.Namespace) -> dict:
    """Return what a LoRA stage trained, without the base that it started from."""
    from anoseg_d2.checkpoint import build_config_overrides, read_checkpoint
    from anoseg_d2.checkpoint.adapters import adapter_payload
    from anoseg_d2.checkpoint.fetch_backbone import NAME
    from anoseg_d2.config import load_config
    from anoseg_d2.modeling.inference import score_map_settings

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
    vit = read_checkpoint(args.base) if args.base else None
    # Only a name that everybody has finds its file again by itself.
    name = args.base if args.base == NAME else ""
    return adapter_payload(checkpoint.state_dict, meta, vit, name, args.half)
