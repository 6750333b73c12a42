"""Paste objects into road scenes to make an outlier-exposure training set or a benchmark.

Example:
    anoseg cut-paste --cityscapes datasets/cityscapes \\
        --coco-json coco/annotations/instances_train2017.json --coco-images coco/train2017 \\
        --output datasets/cityscapes_outlier --workers 8

--as-benchmark writes images/ and labels_masks/ (0 known, 1 pasted unknown, 255 void), ratio 1.

After an interruption, the same command continues where it stopped. The exit status is 1 if an
image or an object could not be read (all others are made), and 2 after a mistake in the command.
"""

import argparse
import re
from pathlib import Path

from anoseg_d2.data.cut_paste.frames import find_scenes
from anoseg_d2.data.cut_paste.job import CutPasteJob, claim_output, collect_manifest, run_job
from anoseg_d2.data.cut_paste.options import CutPasteOptions, ObjectOptions
from anoseg_d2.data.cut_paste.result import how_to_use, summarise, write_summary
from anoseg_d2.data.cut_paste.sampling import object_sources
from anoseg_d2.data.cut_paste.sources import ClosedSetObjects
from anoseg_d2.utils import cli
from anoseg_d2.utils.options import add_arguments, options_from
from anoseg_d2.utils.ranges import integer

# What the option classes do not check.
OPTIONS = {"--seed": integer(0, 2**63 - 1), "--workers": integer(0, cli.MAX_WORKERS)}
UNREADABLE = ("objects unreadable", "photographs missing")


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = cli.build_parser(__doc__, imports=True)
    group = parser.add_argument_group("scenes and objects")
    scenes = group.add_mutually_exclusive_group(required=True).add_argument
    scenes("--cityscapes", metavar="DIR", help="folder with leftImg8bit/ and gtFine/")
    scenes("--dataset", metavar="NAME_OR_CARD", help="a registered closed set, or a card")
    group.add_argument("--split", help="of the scenes (default: the dataset's own, or train)")
    add_arguments(group, ObjectOptions)
    add = parser.add_argument_group("output and work").add_argument
    add("--output", metavar="DIR", required=True)
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=1, help="number of processes")
    add("--shard", type=_shard, default=(0, 1), metavar="I/N", help="part I of N, counted from 0")
    add("--as-benchmark", action="store_true", help="make a test set, see above")
    add_arguments(parser.add_argument_group("pasting"), CutPasteOptions)
    parser.set_defaults(ratio=None)  # that of a benchmark is another one
    return parser


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not re.fullmatch("[0-9]{1,9}/[0-9]{1,9}", text) or int(index) >= int(count):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I in 0..N-1")
    return int(index), int(count)


@cli.command(build_parser, OPTIONS, "interrupted; the same command continues from here")
def main(args: argparse.Namespace) -> int:
    """Make the dataset that the arguments describe; return the exit status."""
    job = build_job(args)
    digest = claim_output(job)
    counts = {
        "objects to paste": job.outliers,
        "of known classes": job.controls,
        "segments of the scenes themselves": job.closed_set,
    }
    there = ", ".join(f"{sum(map(len, group))} {kind}" for kind, group in counts.items() if group)
    cli.say(f"{len(job.frames)} scenes, {there}; configuration {digest[:12]}")
    records = []
    with cli.Progress("made", len(range(args.shard[0], len(job.frames), args.shard[1]))) as bar:
        for record in run_job(job, args.shard, args.workers):
            records.append(record)
            bar.update()
    # Those of an earlier run came first.
    records.sort(key=lambda record: record["index"])
    # None while other shards are not done; whoever is last writes the summary of all.
    everything = collect_manifest(job)
    records = records if everything is None else list(everything.values())
    summary = summarise(job, records)
    print_summary(summary, job.output, everything is not None)
    if everything is not None:
        write_summary(job, summary)
        cli.say(how_to_use(job))
    unreadable = any(kind in summary["problems"] for kind in UNREADABLE)
    return 1 if summary["images"]["failed"] or unreadable else 0


def build_job(args) -> CutPasteJob:
    """Read the inputs and return the job that the arguments describe."""
    frames, reader, split = find_scenes(args.cityscapes, args.dataset, args.split)
    known = reader.known()
    ground = tuple(known[name] for name in ("road", "sidewalk") if name in known)
    if args.placement == "road" and not ground:
        raise ValueError(
            f"--placement road needs a class road or sidewalk; the classes: {', '.join(known)}"
        )
    ratio = args.ratio
    if ratio is None:
        ratio = 1.0 if args.as_benchmark else CutPasteOptions.ratio
    options = options_from(args, CutPasteOptions, ratio=ratio, ground_labels=ground)
    objects = options_from(args, ObjectOptions)

    # Called only where an option asks for it: its index of all labels takes minutes.
    def segments():
        pairs = [(frame.image, frame.label) for frame in frames]
        return ClosedSetObjects(pairs, reader, known, rarest_first=objects.rarest_first)

    outliers, controls, closed_set = object_sources(objects, options, known, segments)
    return CutPasteJob(
        frames=frames,
        reader=reader,
        outliers=outliers,
        controls=controls,
        options=options,
        seed=args.seed,
        output=Path(args.output),
        split=split,
        closed_set=closed_set,
        benchmark=args.as_benchmark,
    )


def print_summary(summary: dict, output: Path, complete: bool) -> None:
    """Print what was made, and at most 20 of each kind of problem."""
    for key in ("images", "objects", "categories"):
        counts = ", ".join(f"{name} {number}" for name, number in summary[key].items())
        cli.say(cli.printable(f"{key}: {counts}"))
    for source, rules in summary["objects left out"].items():
        cli.say(f"{source} left out: " + ", ".join(f"{n} {rule}" for rule, n in rules.items()))
    for kind, names in summary["problems"].items():
        cli.say(f"PROBLEM, {len(names)} {kind}:")
        cli.say("\n".join(f"  {cli.printable(name)}" for name in names[:20]))
        if len(names) > 20:
            cli.say(f"  ... and {len(names) - 20} more, in summary.json")
    cli.say(f"{'complete' if complete else 'this shard is done, other shards are not'}: {output}")
