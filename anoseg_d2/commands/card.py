"""Propose a dataset card for a folder of your own photographs and masks.

    anoseg card street/                           # writes street/street.yaml
    anoseg card unknown/ --kind anomaly --output cards/unknown.yaml
    anoseg card --images 'in/{split}/{id}.jpg' --masks 'gt/{split}/{id}_mask.png'

A mask is an image with one number per pixel. Without patterns, masks have the names of their
photographs: `images` (or `photos`) and `masks` (or `labels`), and folders of splits above or below
them, such as train/photos/street_01.jpg and train/masks/street_01.png. Patterns are relative to the
folder, and what {split} stands for becomes a split. What the values mean is guessed, and their
fractions of the pixels are printed. Correct the card in an editor, then run the command that is
printed. docs/own_data.md is a tutorial from photographs to a report.

Exit status: 0 written; 2 nothing to propose, or wrong arguments (one message says which).
"""

import argparse
from pathlib import Path

from anoseg_d2.data.card_proposal import KINDS, find_splits, plain_name, write_card
from anoseg_d2.data.dataset_card import read_card
from anoseg_d2.utils import cli
from anoseg_d2.utils.files import check_name

SHOWN = 30  # values on the screen


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = cli.build_parser(__doc__)
    add = parser.add_argument
    add("folder", metavar="DIR", nargs="?", default=".", help="default: the current folder")
    add("--images", metavar="PATTERN", help="folder, or such as 'photos/{id}.jpg'")
    add("--masks", metavar="PATTERN", help="folder, or such as 'masks/{id}_mask.png'")
    add("--kind", choices=KINDS, help="default: anomaly if masks have two values other than void")
    add("--name", help="name of the dataset; default: that of the folder")
    add("--output", metavar="FILE", help="default: DIR/NAME.yaml")
    add("--overwrite", action="store_true", help="replace an existing card")
    return parser


@cli.command(build_parser, stopped="stopped; nothing was written")
def main(args: argparse.Namespace) -> None:
    """Find the pairs, count the values, and write and check the card."""
    from anoseg_d2.data.builtin import DATASETS  # detectron2 comes with it, which --help spares

    if not args.folder:
        raise ValueError("DIR is empty; name a folder, or . for the current one")
    folder = Path(args.folder).expanduser()
    name = check_name(args.name or plain_name(folder), "dataset")
    output = Path(args.output or folder / f"{name}.yaml")
    if output.exists() and not args.overwrite:
        raise ValueError(f"{output} exists; remove it or pass --overwrite")
    splits = find_splits(folder, args.images, args.masks)
    for split in splits:
        full_name = f"{name}_{split.name}" if split.name else name
        if full_name in DATASETS:
            raise ValueError(f"the dataset name {full_name!r} is taken; choose another --name")
    values = write_card(output, name, folder, splits, args.kind)
    # Reading it back proves that what was written is a card.
    made = read_card(output)
    names = " ".join(dataset.name for dataset in made)
    for split in splits:
        cli.say(f"{len(split.pairs)} pairs: {split.images}, {split.labels}")
    if unmatched := splits[0].unmatched:
        first = ", ".join(str(path.relative_to(folder)) for path in unmatched[:3])
        cli.say(f"  {len(unmatched)} files belong to no pair and are left out: {first}")
    cli.say(f"{'value':>6}  {'pixels':>8}")
    for value, fraction in list(values.items())[:SHOWN]:
        cli.say(f"{value:>6}  {fraction:>8.2%}")
    cli.say(f"wrote {output}; correct it, then look at the data:")
    cli.say(f"  anoseg check --card {output} {names} --preview previews")
    if made[0].classes:
        cli.say(f"  anoseg train {output}")
