"""Merge LoRA adapters into plain weights: `anoseg convert --to anoseg --merge`.

python tools/merge_lora.py output/model_final.pth --output merged.pth
python tools/merge_lora.py adapter.safetensors --base stage2/model_final.pth --output merged.pth
"""

import sys

from anoseg_d2.commands import convert


def main(arguments: list[str] | None = None) -> int:
    """Run the merge; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    return convert.main([*given, "--to", "anoseg", "--merge"])


if __name__ == "__main__":
    sys.exit(main())
