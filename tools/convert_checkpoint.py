"""Convert a checkpoint of any known format into another.

    python tools/convert_checkpoint.py hf://tue-mps/cityscapes_semantic_eomt_large_1024 \
        --to anoseg --output eomt_large.safetensors
    python tools/convert_checkpoint.py output/model_final.pth --to huggingface --output my_eomt/
    python tools/convert_checkpoint.py output/model_final.pth --to official --output model.bin

Everything that is read is accounted for on the way; what another format cannot hold is refused.
"""

import argparse
import json
import sys
from pathlib import Path

from anoseg_d2.checkpoint import Checkpoint, read_checkpoint
from anoseg_d2.checkpoint.delta import add_delta, warn_of_delta
from anoseg_d2.checkpoint.files import write_checkpoint, write_tensors
from anoseg_d2.checkpoint.formats_out import to_huggingface, to_official
from anoseg_d2.checkpoint.spec import FORMAT_NAME, FORMAT_VERSION, ModelSpec


def main(arguments: list[str] | None = None) -> int:
    """Run the conversion; a user's mistake becomes one line and exit status 1."""
    args = build_parser().parse_args(arguments)
    try:
        checkpoint = read_checkpoint(args.source, allow_pickle=args.allow_pickle)
        if args.delta_base:
            checkpoint = add_delta(checkpoint, read_checkpoint(args.delta_base))
        warn_of_delta(checkpoint)
        _complete(checkpoint, args)
        written = WRITERS[args.to](checkpoint, Path(args.output), args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    sizes = checkpoint.spec.known()
    print(f"read {checkpoint.format}, {len(checkpoint.state_dict)} tensors: {sizes}")
    for name, reason in checkpoint.ignored:
        print(f"left out {name}: {reason}")
    print(f"wrote {written}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", help="file, Hugging Face folder, run folder, hf://owner/name or timm://name"
    )
    parser.add_argument("--to", required=True, choices=sorted(WRITERS))
    parser.add_argument("--output", required=True, help="file; a folder for huggingface")
    parser.add_argument(
        "--num-blocks", type=int, help="query blocks, where the checkpoint does not tell"
    )
    parser.add_argument(
        "--num-heads", type=int, help="attention heads, where neither file nor width tells"
    )
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="crop in pixels, where the checkpoint does not tell (DINOv3 without config.json)",
    )
    parser.add_argument(
        "--delta-base", help="weights that the encoder of this checkpoint is a difference to"
    )
    parser.add_argument(
        "--approximate",
        action="store_true",
        help="write arcface and logit_norm heads as the nearest linear head",
    )
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="unpickle whatever the file holds, which may run its code: only files you trust",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return parser


def _complete(checkpoint: Checkpoint, args: argparse.Namespace) -> None:
    """Add what the user tells to what the file tells, and refuse to overwrite."""
    for key, option in (("num_blocks", "--num-blocks"), ("heads", "--num-heads")):
        given, known = getattr(args, option[2:].replace("-", "_")), getattr(checkpoint.spec, key)
        if given and known and known != given:
            raise ValueError(f"{option} {given}: {args.source} says {known}")
        setattr(checkpoint.spec, key, known or given)
    _complete_image_size(checkpoint.spec, args)
    target = Path(args.output) / ("config.json" if args.to == "huggingface" else "")
    if target.exists() and not args.overwrite:
        raise ValueError(f"{target} exists; remove it or pass --overwrite")


def _complete_image_size(spec: ModelSpec, args: argparse.Namespace) -> None:
    known, patch = spec.image_size, spec.patch_size
    if not args.image_size:
        return
    given = tuple(args.image_size)
    if known and tuple(known) != given:
        raise ValueError(f"--image-size {given[0]} {given[1]}: {args.source} says {tuple(known)}")
    if any(side % patch for side in given):
        raise ValueError(f"--image-size {given[0]} {given[1]}: patches have {patch} pixels")
    spec.image_size, spec.grid = given, tuple(side // patch for side in given)


def write_official(checkpoint: Checkpoint, output: Path, args: argparse.Namespace) -> str:
    """Write the official EoMT names: hub layout for .bin, else Lightning's `state_dict`."""
    state = to_official(checkpoint, approximate=args.approximate)
    if output.suffix == ".safetensors":
        write_tensors(state, output)
    else:
        write_checkpoint(state if output.suffix == ".bin" else {"state_dict": state}, output)
    return str(output)


def write_huggingface(checkpoint: Checkpoint, output: Path, args: argparse.Namespace) -> str:
    """Write a folder for `EomtForUniversalSegmentation.from_pretrained`."""
    state, config, preprocessor = to_huggingface(checkpoint, approximate=args.approximate)
    if output.suffix or output.is_file():
        raise ValueError(f"--output {output} must be a folder for --to huggingface")
    output.mkdir(parents=True, exist_ok=True)
    write_tensors(state, output / "model.safetensors")
    for name, content in (("config", config), ("preprocessor_config", preprocessor)):
        text = json.dumps(content, indent=2) + "\n"
        (output / f"{name}.json").write_text(text, encoding="utf-8")
    return f"{output}/ (config.json, preprocessor_config.json, model.safetensors)"


def write_anoseg(checkpoint: Checkpoint, output: Path, args: argparse.Namespace) -> str:
    """Write our own format, with what the source tells beside its tensors."""
    spec = checkpoint.spec
    if checkpoint.format in ("anoseg", "anoseg_adapter") and checkpoint.meta:
        meta = dict(checkpoint.meta)
    else:
        keys = "num_known has_anomaly head num_queries image_size patch_size grid class_names"
        keys += " num_blocks backbone norm_eps pixel_mean pixel_std"
        meta = {key: getattr(spec, key) for key in keys.split()}
        whole = spec.num_queries is not None
        meta |= {"format": FORMAT_NAME, "version": FORMAT_VERSION, "lora": None}
        meta["heads"] = spec.attention_heads() if whole else spec.heads
    meta["num_blocks"] = spec.num_blocks
    state = {name: tensor.detach() for name, tensor in checkpoint.state_dict.items()}
    write_checkpoint({"model": state, "meta": json.loads(json.dumps(meta))}, output)
    return str(output)


WRITERS = {
    "anoseg": write_anoseg,
    "huggingface": write_huggingface,
    "official": write_official,
}

if __name__ == "__main__":
    sys.exit(main())
