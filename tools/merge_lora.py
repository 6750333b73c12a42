"""Merge LoRA adapters into plain weights: same outputs, to the rounding of the weights' dtype.

    python tools/merge_lora.py output/model_final.pth --output merged.pth
    python tools/merge_lora.py adapter.safetensors --base stage2/model_final.pth --output merged.pth

An adapter checkpoint needs the base weights that it was trained on; their hash is checked.
"""

import argparse
import sys
from pathlib import Path

from anoseg_d2.checkpoint import Checkpoint, read_checkpoint
from anoseg_d2.checkpoint.files import write_checkpoint
from anoseg_d2.checkpoint.identity import weights_hash
from anoseg_d2.checkpoint.lora_state import lora_module_names, merge_lora_state


def main(arguments: list[str] | None = None) -> int:
    """Run the merge; a user's mistake becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="checkpoint with adapters, or an adapter checkpoint")
    parser.add_argument("--base", help="base weights of an adapter checkpoint")
    parser.add_argument("--output", required=True, help=".pth or .safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    args = parser.parse_args(arguments)
    try:
        if Path(args.output).exists() and not args.overwrite:
            raise ValueError(f"{args.output} exists; remove it or pass --overwrite")
        checkpoint = read_checkpoint(args.checkpoint)
        base = read_checkpoint(args.base) if args.base else None
        state, merged = merge(checkpoint, base)
        meta = {**checkpoint.meta, "lora": None}
        for key in ("adapter", "base_hash", "frozen"):
            meta.pop(key, None)
        write_checkpoint({"model": state, "meta": meta}, args.output)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"merged {len(merged)} adapters, wrote {args.output} with {len(state)} tensors")
    return 0


def merge(checkpoint: Checkpoint, base: Checkpoint | None):
    """Return the merged state dict and the names of the modules that had adapters.

    Raises:
        ValueError: there are no adapters, or the base is missing, superfluous or another one.
    """
    state = dict(checkpoint.state_dict)
    names = lora_module_names(state)
    if not names:
        raise ValueError(f"{checkpoint.source} has no LoRA adapters: nothing to merge")
    if (checkpoint.format == "anoseg_adapter") != (base is not None):
        needs = "needs its base weights: give --base" if base is None else "is whole: drop --base"
        raise ValueError(f"{checkpoint.source} {needs}")
    if base is not None:
        names_of_base = set(checkpoint.meta.get("frozen", ()))
        frozen = {name: t for name, t in base.state_dict.items() if name in names_of_base}
        if weights_hash(frozen) != checkpoint.meta.get("base_hash"):
            raise ValueError(
                f"{base.source} is not the base that {checkpoint.source} was trained on: the hash "
                "of the frozen weights differs. The base must have the same crop, patch size and "
                "tensors as the trained model; give the checkpoint that the stage started from, "
                "saved at that size"
            )
        state = {**frozen, **state}
    return merge_lora_state(state, checkpoint.spec.adapters), names


if __name__ == "__main__":
    sys.exit(main())
