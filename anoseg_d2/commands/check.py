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
import dataclasses
from pathlib import Path

from anoseg_d2.data.dataset import Dataset
from anoseg_d2.data.dataset_check import DatasetReport, check_dataset, draw_preview
from anoseg_d2.data.image_io import write_image
from anoseg_d2.utils import cli
from anoseg_d2.utils.files import write_json

SHOWN = 5  # messages of one kind on the screen; --json has all


def parse_args(argv=None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.build_parser(__doc__, imports=True)
    parser.add_argument("names", nargs="*", metavar="NAME", help="datasets; default: all")
    parser.add_argument("--root", help="datasets folder; default: DETECTRON2_DATASETS")
    parser.add_argument("--card", action="append", default=[], help="also register this card")
    parser.add_argument("--json", metavar="FILE", help="write all findings")
    parser.add_argument(
        "--preview", metavar="DIR", help="write a sheet of overlays for each dataset"
    )
    return parser.parse_args(argv)


def check_all(args: argparse.Namespace) -> int:
    """Check the named datasets, or all of them; return the exit status."""
    from anoseg_d2.data import builtin  # detectron2 comes with it, which --help spares

    cli.import_modules(args.imports)
    root = Path(args.root).expanduser() if args.root else builtin.datasets_root()
    builtin.register_cards(args.card, root)
    names = _chosen_names(args.names, builtin.DATASETS)
    reports = [_check(builtin.DATASETS[name], root, args) for name in names]
    counts = {v: sum(r.verdict == v for r in reports) for v in VERDICTS}
    cli.say(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    there = "" if root.is_dir() else ", which does not exist"
    cli.say(f"looked in {root.absolute()}{there}")
    if args.json:
        content = {"root": str(root), "datasets": {r.name: dataclasses.asdict(r) for r in reports}}
        write_json(args.json, content)
    # Nobody has every dataset, so an absent one counts only if it was asked for by name.
    bad = VERDICTS[1:] if args.names else VERDICTS[1:3]
    return int(any(counts[verdict] for verdict in bad) or counts["absent"] == len(reports))


VERDICTS = ("ok", "incomplete", "broken", "absent")


def _chosen_names(names: list[str], datasets: dict[str, Dataset]) -> list[str]:
    unknown = [name for name in names if name not in datasets]
    if unknown:
        known = ", ".join(sorted(datasets))
        raise ValueError(
            f"unknown dataset {', '.join(unknown)}; known: {known}. Register your own with "
            "--card FILE."
        )
    return names or sorted(datasets)


def _check(dataset: Dataset, root: Path, args) -> DatasetReport:
    """Check one dataset, print the findings and write its preview."""
    with cli.Progress(f"{dataset.name}: read", None) as progress:
        report = check_dataset(dataset, root, progress.update)
    cli.say(_as_text(report, brief=not args.names))
    # Broken sets get no preview: files cannot be read, or images and labels do not match.
    if args.preview and report.verdict not in ("absent", "broken"):
        path = Path(args.preview, f"{dataset.name}.jpg")
        write_image(path, draw_preview(dataset, root), quality=90)
        cli.say(f"  preview: {path}")
    return report


def _as_text(report: DatasetReport, brief: bool) -> str:
    """Format a report for the screen; `brief` gives an absent dataset one line only."""
    expected = "any number" if report.expected_images is None else report.expected_images
    lines = [f"{report.name}: {report.verdict.upper()}"]
    if report.verdict == "absent":  # nobody has every set; a list of all would be long
        return lines[0] if brief else "\n".join([*lines, *_indented(report.problems)])
    if report.layout:
        lines.append(f"  layout: {report.layout}, in {report.folder}")
        lines.append(f"  images: {report.images} with label, expected {expected}")
    if report.sizes:
        lines.append(f"  sizes: {', '.join(f'{s} ({n})' for s, n in report.sizes.items())}")
    for title, fractions in (("values", report.label_values), ("train ids", report.train_ids)):
        if fractions:
            lines.append(f"  {title}: {', '.join(f'{v} {f:.2%}' for v, f in fractions.items())}")
    lines += _indented(report.problems, "PROBLEM: ") + _indented(report.notes, "note: ")
    for title in (
        "unreadable",
        "size_differs",
        "wrong_values",
        "images_without_label",
        "labels_without_image",
    ):
        messages = getattr(report, title)
        lines += _indented(messages[:SHOWN], f"{title}: ")
        if len(messages) > SHOWN:
            lines.append(f"  {title}: and {len(messages) - SHOWN} more, see --json")
    return "\n".join(lines)


def _indented(messages: list[str], prefix: str = "") -> list[str]:
    return [f"  {prefix}" + message.replace("\n", "\n    ") for message in messages]


def main(argv=None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(argv)
    return cli.run_command(lambda: check_all(args), verbosity=args.verbosity)
