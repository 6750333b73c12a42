"""Merge LoRA adapters into plain weights; outputs stay the same up to rounding.

    python tools/merge_lora.py output/model_final.pth --output merged.pth
    python tools/merge_lora.py adapter.safetensors --base stage2/model_final.pth --output merged.pth

An adapter checkpoint needs the base weights that it was trained on; their hash is checked.
"""

import argparse
import sys
from pathlib import Path

from torch import Tensor

from anoseg_d2.checkpoint import Checkpoint, read_checkpoint
from anoseg_d2.checkpoint.adapters import join_adapter
from anoseg_d2.checkpoint.files import write_checkpoint
from anoseg_d2.checkpoint.lora_state import lora_module_names, merge_lora_state
from anoseg_d2.utils.cli import add_import_option, import_modules, run_command


def main(arguments: list[str] | None = None) -> int:
    """Run the merge; a user's mistake becomes one line and exit status 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="checkpoint with adapters, or an adapter file")
    parser.add_argument("--base", help="base weights of an adapter file")
    parser.add_argument("--output", required=True, help=".pth or .safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    add_import_option(parser)
    args = parser.parse_args(arguments)
    return run_command(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Read, merge and write.

    Raises:
        ValueError, OSError: a mistake in the call or in a file.
    """
    import_modules(args.imports)
    output = Path(args.output)
    if output.suffix not in (".pth", ".safetensors") or output.is_dir():
        raise ValueError(f"--output {output} must be a file that ends in .pth or .safetensors")
    if output.exists() and not args.overwrite:
        raise ValueError(f"{output} exists; remove it or pass --overwrite")
    checkpoint = read_checkpoint(args.checkpoint)
    base = read_checkpoint(args.base) if args.base else None
    state, merged = merge(checkpoint, base)
    gone = ("lora", "adapter", "base_hash", "frozen")
    meta = {key: value for key, value in checkpoint.meta.items() if key not in gone}
    write_checkpoint({"model": state, "meta": meta | {"lora": None}}, output)
    print(f"merged {len(merged)} adapters, wrote {output} with {len(state)} tensors")


def merge(checkpoint: Checkpoint, base: Checkpoint | None) -> tuple[dict[str, Tensor], list[str]]:
    """Return the merged state dict and the names of the modules that had adapters.

    Raises:
        ValueError: there are no adapters, or the base is missing, not needed or the wrong one.
    """
    names = lora_module_names(checkpoint.state_dict)
    if not names:
        raise ValueError(f"{checkpoint.source} has no LoRA adapters: nothing to merge")
    whole = join_adapter(checkpoint, base)
    return merge_lora_state(whole.state_dict, whole.spec.adapters), names


if __name__ == "__main__":
    sys.exit(main())
