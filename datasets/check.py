#!/usr/bin/env python
"""Look through registered datasets: what is found, what is missing, what is wrong.

    python datasets/check.py                          # every registered set
    python datasets/check.py road_anomaly camvid_val  # these; exit status 1 unless all are usable
    python datasets/check.py --card my_road.yaml my_road_train --preview previews

The datasets folder is --root, or DETECTRON2_DATASETS, or `datasets`. Verdicts: ok; incomplete
(files missing or too many); broken (unreadable files, contradictions); absent.
"""

import argparse
import json
import logging
import sys
import time
from pathlib import Path

from anoseg_d2.data import builtin
from anoseg_d2.data.contact_sheet import overlay_sheet
from anoseg_d2.data.dataset_check import check_dataset
from anoseg_d2.data.image_io import write_image
from anoseg_d2.utils.files import write_atomic

SHOWN = 5  # messages of one kind on the screen; --json has all


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="sets; default: all")
    parser.add_argument("--root", help="datasets folder; default: DETECTRON2_DATASETS")
    parser.add_argument("--card", action="append", default=[], help="register this card too")
    parser.add_argument("--json", metavar="FILE", help="write every finding; - for the screen")
    parser.add_argument("--preview", metavar="DIR", help="write a sheet of overlays per set")
    parser.add_argument("--preview-count", type=int, default=6, help="images on a sheet")
    parser.add_argument("--sample", type=int, default=0, help="read only so many images per set")
    parser.add_argument("--workers", type=int, default=1, help="threads that read")
    parser.add_argument("--list", action="store_true", help="list the registered sets and end")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    root = Path(args.root).expanduser() if args.root else builtin.datasets_root()
    try:
        builtin.register_cards(args.card, root)
        names = chosen_names(args.names)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.list:
        print("\n".join(names))
        return 0
    out = sys.stderr if args.json == "-" else sys.stdout
    reports = [check(name, root, args, out) for name in names]
    print(summary(reports), file=out)
    if args.json:
        write_json(args.json, root, reports)
    return exit_status(reports, named=bool(args.names))


def chosen_names(names: list[str]) -> list[str]:
    """Check the names given; without any, all that are registered."""
    unknown = [name for name in names if name not in builtin.DATASETS]
    if unknown:
        known = ", ".join(sorted(builtin.DATASETS))
        raise ValueError(
            f"unknown dataset {', '.join(unknown)}; known: {known}. A card of your own is "
            "registered by --card FILE."
        )
    return names or sorted(builtin.DATASETS)


def check(name: str, root: Path, args, out):
    """Check one set, print what was found, draw its preview."""
    dataset = builtin.DATASETS[name]
    report = check_dataset(dataset, root, args.sample, args.workers, Progress(name))
    print(as_text(report, brief=not args.names), file=out)
    if args.preview and report.verdict not in ("absent", "broken"):
        path = Path(args.preview, f"{name}.jpg")
        write_image(path, overlay_sheet(dataset, root, args.preview_count), quality=90)
        print(f"  preview: {path}", file=out)
    return report


def as_text(report, brief: bool) -> str:
    """Write a report for the screen; `brief` keeps one line for sets that are not there."""
    expected = "any number" if report.expected_images is None else report.expected_images
    lines = [f"{report.name}: {report.verdict.upper()}"]
    if report.verdict == "absent":
        return lines[0] if brief else "\n".join([*lines, *indented(report.problems)])
    if report.layout:
        lines.append(f"  layout: {report.layout}, in {report.folder}")
        lines.append(f"  images: {report.images} with label, expected {expected}")
    if report.sizes:
        lines.append(f"  sizes: {', '.join(f'{s} ({n})' for s, n in report.sizes.items())}")
    for title, shares in (("values", report.label_values), ("train ids", report.train_ids)):
        if shares:
            lines.append(f"  {title}: {', '.join(f'{v} {s:.2%}' for v, s in shares.items())}")
    lines += indented(report.problems, "PROBLEM: ") + indented(report.notes, "note: ")
    for title in (
        "unreadable",
        "size_differs",
        "wrong_values",
        "images_without_label",
        "labels_without_image",
    ):
        messages = getattr(report, title)
        lines += indented(messages[:SHOWN], f"{title}: ")
        if len(messages) > SHOWN:
            lines.append(f"  {title}: and {len(messages) - SHOWN} more, see --json")
    return "\n".join(lines)


def indented(messages: list[str], prefix: str = "") -> list[str]:
    return [f"  {prefix}" + message.replace("\n", "\n    ") for message in messages]


def summary(reports) -> str:
    verdicts = ("ok", "incomplete", "broken", "absent")
    counts = {verdict: sum(r.verdict == verdict for r in reports) for verdict in verdicts}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items())


def write_json(target: str, root: Path, reports) -> None:
    content = {"root": str(root), "datasets": {r.name: r.as_dict() for r in reports}}
    text = json.dumps(content, indent=2) + "\n"
    if target == "-":
        print(text, end="")
    else:
        write_atomic(target, text.encode())


def exit_status(reports, named: bool) -> int:
    """Return 0 when all is usable; unless named, sets that are absent do not count."""
    wrong = ("incomplete", "broken", "absent") if named else ("incomplete", "broken")
    return int(any(report.verdict in wrong for report in reports))


class Progress:
    """A line on standard error, at most one a second, while a large set is read."""

    def __init__(self, name: str):
        self.name, self.start, self.last = name, time.monotonic(), time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.last < 1 and (done < total or now - self.start < 1):
            return
        self.last = now
        left = (now - self.start) / done * (total - done)
        end = "\n" if done == total else ""
        print(f"\r  {self.name}: {done}/{total} read, {left:.0f} s left ", end=end, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
