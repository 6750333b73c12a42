"""Train or evaluate an EoMT anomaly segmenter.

Examples:
    anoseg train --config-file eomt_baseline
    anoseg train --config-file arcface_lora --num-gpus 4 --resume
    anoseg train --config-file arcface_lora --eval-only MODEL.WEIGHTS model.pth
    torchrun --nproc-per-node 4 -m anoseg_d2 train --config-file arcface_lora
"""

from anoseg_d2.engine.run import argument_parser, run


def main(argv=None) -> int:
    """Run the command; returns its exit status."""
    return run(None, argument_parser(__doc__).parse_args(argv))
