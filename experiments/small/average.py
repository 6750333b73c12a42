"""Write the mean of the weights of several trainings that started from the same weights.

It is often better than each of them ("Model soups", arXiv:2203.05482). What only the first has,
such as a ratio head, is kept as it is.

    python experiments/small/average.py first.pth second.pth --output mean.pth
"""

import argparse

import torch

from anoseg_d2.checkpoint import read_checkpoint
from anoseg_d2.checkpoint.files import write_checkpoint
from anoseg_d2.checkpoint.metadata import meta_of_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", nargs="+", help="two or more checkpoints")
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    first, *others = map(read_checkpoint, args.weights)
    mean = dict(first.state_dict)
    for other in others:
        if missing := other.state_dict.keys() - mean.keys():
            raise SystemExit(f"{first.source} lacks {min(missing)}, which {other.source} has")
    for name in set(mean).intersection(*(other.state_dict for other in others)):
        values = [checkpoint.state_dict[name].float() for checkpoint in (first, *others)]
        mean[name] = torch.stack(values).mean(dim=0)
    write_checkpoint({"model": mean, "meta": meta_of_checkpoint(first)}, args.output)


if __name__ == "__main__":
    main()
