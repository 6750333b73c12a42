"""Report what is present, missing or wrong in registered datasets.

    anoseg check                          # every registered dataset
    anoseg check road_anomaly camvid_val  # these; exit status 1 unless all are usable
    anoseg check --card my_road.yaml my_road_train --preview previews

The datasets folder is --root, or DETECTRON2_DATASETS, or `datasets`. Verdicts: ok; incomplete
(missing or extra files); broken (unreadable files, contradictions); absent. The exit status is 1
if a named dataset is not usable. Without names it is 1 if any dataset is incomplete or broken, or
if none is there.
"""

import argparse
from pathlib import Path

from anoseg_d2.data.dataset import Dataset
from anoseg_d2.data.dataset_check import check_dataset, draw_preview
from anoseg_d2.data.image_io import write_image
from anoseg_d2.utils import cli
from anoseg_d2.utils.files import write_json

VERDICTS = ("ok", "incomplete", "broken", "absent")
SHOWN = 5  # messages of one kind on the screen; --json has all


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = cli.build_parser(__doc__, imports=True)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="datasets; default: all")
    add("--root", help="datasets folder; default: DETECTRON2_DATASETS")
    add("--card", action="append", default=[], help="also register this card")
    add("--json", metavar="FILE", help="write all findings")
    add("--preview", metavar="DIR", help="write a sheet of overlays for each dataset")
    return parser


@cli.command(build_parser)
def main(args: argparse.Namespace) -> int:
    """Check the named datasets, or all of them; return the exit status."""
    from anoseg_d2.data import builtin  # detectron2 comes with it, which --help spares

    root = Path(args.root).expanduser() if args.root else builtin.datasets_root()
    builtin.register_cards(args.card, root)
    unknown = [name for name in args.names if name not in builtin.DATASETS]
    if unknown:
        raise ValueError(
            f"unknown dataset {', '.join(unknown)}; known: {', '.join(sorted(builtin.DATASETS))}. "
            "Register your own with --card FILE."
        )
    names = args.names or sorted(builtin.DATASETS)
    reports = {name: _check(name, builtin.DATASETS[name], root, args) for name in names}
    counts = {v: sum(r["verdict"] == v for r in reports.values()) for v in VERDICTS}
    cli.say(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    there = "" if root.is_dir() else ", which does not exist"
    cli.say(f"looked in {root.absolute()}{there}")
    if args.json:
        write_json(args.json, {"root": str(root), "datasets": reports})
    # Nobody has every dataset, so an absent one counts only if it was asked for by name.
    bad = VERDICTS[1:] if args.names else VERDICTS[1:3]
    return int(any(counts[verdict] for verdict in bad) or counts["absent"] == len(reports))


def _check(name: str, dataset: Dataset, root: Path, args) -> dict:
    """Check one dataset, print the findings and write its preview."""
    with cli.Progress(f"{name}: read", None) as progress:
        report = check_dataset(dataset, root, progress.update)
    cli.say(f"{name}: {report['verdict'].upper()}")
    if report["verdict"] == "absent" and not args.names:
        return report  # nobody has every set; what was looked for would be a long list
    for key, found in report.items():
        if isinstance(found, dict) and key != "sizes":
            found = {value: f"{fraction:.2%}" for value, fraction in found.items()}
        if isinstance(found, dict):
            found = ", ".join(f"{value} ({number})" for value, number in found.items())
        messages = found if isinstance(found, list) else [found] * (found is not None)
        for message in messages[:SHOWN]:
            cli.say(f"  {key}: " + str(message).replace("\n", "\n    "))
        if len(messages) > SHOWN:
            cli.say(f"  {key}: and {len(messages) - SHOWN} more, see --json")
    # Broken sets get no preview: files cannot be read, or images and labels do not match.
    if args.preview and report["verdict"] not in ("absent", "broken"):
        path = Path(args.preview, f"{name}.jpg")
        write_image(path, draw_preview(dataset, root), quality=90)
        cli.say(f"  preview: {path}")
    return report
