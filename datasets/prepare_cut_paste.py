#!/usr/bin/env python
"""Paste objects into road scenes: an outlier-exposure training set, or an anomaly benchmark.

Example:
    python datasets/prepare_cut_paste.py --cityscapes datasets/cityscapes \\
        --coco-json coco/annotations/instances_train2017.json --coco-images coco/train2017 \\
        --output datasets/cityscapes_outlier --workers 8

Interrupted, the same command goes on where it stopped.
"""

import argparse
import json
import logging
import sys
import time
from collections import Counter
from pathlib import Path

from anoseg_d2.data.contact_sheet import contact_sheet, evenly_spread
from anoseg_d2.data.cut_paste import CutPasteOptions
from anoseg_d2.data.cut_paste.frames import (
    SceneLabelReader,
    frames_of_cityscapes,
    frames_of_dataset,
)
from anoseg_d2.data.cut_paste.job import CutPasteJob, claim_output, collect_manifest, run_job
from anoseg_d2.data.cut_paste.sources import (
    CONTROL_CLASSES,
    EXTRA_OVERLAP,
    OBJECT_SOURCES,
    OVERLAP,
)
from anoseg_d2.data.image_io import read_image, read_label, write_image
from anoseg_d2.data.label_rules import LABEL_RULES
from anoseg_d2.utils.constants import ANOMALY, ANOMALY_COLOR
from anoseg_d2.utils.files import write_atomic

DEFAULTS = CutPasteOptions()


def main(arguments=None) -> int:
    """Run the command line; returns 0, or 1 when images could not be made."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = build_parser().parse_args(arguments)
    try:
        return prepare(args)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_inputs(parser)
    _add_work(parser)
    _add_choices(parser)
    return parser


def _add_inputs(parser) -> None:
    group = parser.add_argument_group("scenes and objects")
    scenes = group.add_mutually_exclusive_group(required=True)
    scenes.add_argument("--cityscapes", metavar="DIR", help="folder with leftImg8bit/ and gtFine/")
    scenes.add_argument(
        "--dataset", metavar="NAME_OR_CARD", help="a registered closed set, or a dataset card"
    )
    group.add_argument("--split", default="train", help="of the scenes (default: %(default)s)")
    group.add_argument("--coco-json", metavar="FILE", help="COCO instances_*.json")
    group.add_argument("--coco-images", metavar="DIR", help="its photographs")
    group.add_argument("--cutouts", metavar="DIR", help="images with an alpha channel as objects")
    group.add_argument("--textures", metavar="DIR", help="photographs to fill random blobs with")
    group.add_argument(
        "--keep-category", nargs="+", metavar="NAME", default=[], help="never drop these of COCO"
    )
    group.add_argument(
        "--drop-category", nargs="+", metavar="NAME", default=[], help="drop these of COCO as well"
    )
    group.add_argument(
        "--keep-extra", action="store_true", help=f"do not drop {', '.join(EXTRA_OVERLAP)}"
    )
    group.add_argument("--min-area", type=float, default=1000, help="px (default: %(default)s)")
    group.add_argument(
        "--keep-cut", action="store_true", help="take objects that their photo's border cuts off"
    )


def _add_work(parser) -> None:
    group = parser.add_argument_group("output and work")
    group.add_argument("--output", metavar="DIR", required=True)
    group.add_argument("--seed", type=_natural, default=0)
    group.add_argument("--workers", type=_natural, default=1, help="processes")
    group.add_argument(
        "--shard", type=_shard, default=(0, 1), metavar="I/N", help="part I of N, I from 0"
    )
    group.add_argument("--compress-level", type=int, default=3, choices=range(10), help="of png")
    group.add_argument(
        "--as-benchmark",
        action="store_true",
        help="write images/ and labels_masks/ (0 known, 1 pasted unknown, 255 void); ratio 1",
    )
    group.add_argument("--preview", type=_natural, default=0, metavar="N", help="contact sheet")


def _add_choices(parser) -> None:
    group = parser.add_argument_group("pasting")
    group.add_argument("--ratio", type=float, help=f"of images (default: {DEFAULTS.ratio})")
    group.add_argument("--count", type=int, nargs=2, default=DEFAULTS.count, metavar="N")
    group.add_argument(
        "--controls", type=int, nargs=2, default=DEFAULTS.control_count, metavar="N",
        help="least and most pasted COCO objects of known classes (default: none; 0 2)",
    )  # fmt: skip
    group.add_argument("--scale", type=float, nargs=2, default=DEFAULTS.scale, metavar="F")
    group.add_argument("--max-fraction", type=float, default=DEFAULTS.max_fraction)
    group.add_argument("--min-side", type=int, default=DEFAULTS.min_side)
    group.add_argument("--size", choices=("native", "perspective"), default=DEFAULTS.size)
    group.add_argument("--perspective-side", type=float, default=DEFAULTS.perspective_side)
    group.add_argument("--placement", choices=("uniform", "road"), default=DEFAULTS.placement)
    group.add_argument(
        "--feather", type=float, nargs=2, default=DEFAULTS.feather, metavar="F",
        help="sigma = min(first, second * sqrt(area))",
    )  # fmt: skip
    group.add_argument("--rim", type=int, default=DEFAULTS.rim, help="px cleaned inside outlines")
    group.add_argument("--opaque-core", action="store_true")


def _natural(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return int(text)


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I in 0..N-1")
    return int(index), int(count)


def prepare(args) -> int:
    """Make the set that the arguments describe; returns the exit status."""
    job = build_job(args)
    digest = claim_output(job)
    print(f"{len(job.frames)} scenes, {_describe(job)}; configuration {digest[:12]}")
    records = _run(job, args)
    everything = collect_manifest(job)
    if everything is not None:
        records = list(everything.values())
    summary = summarise(job, records)
    if everything is not None:
        text = json.dumps(summary, indent=1, sort_keys=True) + "\n"
        write_atomic(job.output / "summary.json", text.encode())
    _print_summary(summary, job.output, everything is not None)
    if args.preview:
        print(f"preview: {write_preview(job, records, args.preview)}")
    return 1 if summary["images"]["failed"] else 0


def build_job(args) -> CutPasteJob:
    """Read the inputs of a command line."""
    frames, reader = _scenes(args)
    outliers, controls = _sources(args, reader)
    known = reader.known()
    ratio = args.ratio if args.ratio is not None else 1.0 if args.as_benchmark else DEFAULTS.ratio
    ground = tuple(known[name] for name in ("road", "sidewalk") if name in known)
    if args.placement == "road" and not ground:
        raise ValueError(f"--placement road: no class road or sidewalk among {', '.join(known)}")
    options = CutPasteOptions(
        ratio=ratio,
        count=tuple(args.count),
        control_count=tuple(args.controls),
        scale=tuple(args.scale),
        max_fraction=args.max_fraction,
        min_side=args.min_side,
        size=args.size,
        perspective_side=args.perspective_side,
        placement=args.placement,
        ground_labels=ground,
        feather=tuple(args.feather),
        rim=args.rim,
        opaque_core=args.opaque_core,
    )
    return CutPasteJob(
        frames=frames,
        reader=reader,
        outliers=outliers,
        controls=controls,
        options=options,
        seed=args.seed,
        output=Path(args.output),
        split=args.split,
        benchmark=args.as_benchmark,
        compress_level=args.compress_level,
    )


def _scenes(args):
    if args.cityscapes:
        frames = frames_of_cityscapes(args.cityscapes, args.split)
        return frames, SceneLabelReader(LABEL_RULES["cityscapes"])
    from anoseg_d2.data.builtin import DATASETS, datasets_root, register_cards

    name = args.dataset
    if name not in DATASETS:
        names = register_cards(name)
        name = names[0] if len(names) == 1 else f"{Path(name).stem}_{args.split}"
        if name not in names:
            raise ValueError(f"card {args.dataset} has {', '.join(names)}, no split {args.split}")
    dataset = DATASETS[name]
    return frames_of_dataset(dataset, datasets_root()), SceneLabelReader(
        dataset.rule, dataset.classes
    )


def _sources(args, reader):
    outliers, controls = [], []
    if bool(args.coco_json) != bool(args.coco_images):
        raise ValueError("--coco-json and --coco-images belong together; give both")
    if args.coco_json:
        drop = set(OVERLAP) | set(() if args.keep_extra else EXTRA_OVERLAP)
        drop = (drop | set(args.drop_category)) - set(args.keep_category)
        common = {"json_file": args.coco_json, "images": args.coco_images}
        common |= {"min_area": args.min_area, "keep_cut": args.keep_cut}
        outliers.append(OBJECT_SOURCES["coco"](drop=sorted(drop), **common))
        _check_names(args, outliers[0].names.values())
        if args.controls[1]:
            controls.append(OBJECT_SOURCES["coco"](labels=_control_labels(reader), **common))
    elif args.controls[1]:
        raise ValueError("--controls pastes COCO objects of known classes; give --coco-json")
    outliers += [OBJECT_SOURCES["cutouts"](folder=args.cutouts)] if args.cutouts else []
    outliers += [OBJECT_SOURCES["textures"](folder=args.textures)] if args.textures else []
    if not outliers:
        raise ValueError("no objects: give --coco-json and --coco-images, --cutouts or --textures")
    return outliers, controls


def _check_names(args, categories) -> None:
    for option, names in (("keep", args.keep_category), ("drop", args.drop_category)):
        if unknown := sorted(set(names) - set(categories)):
            raise ValueError(
                f"--{option}-category: {', '.join(unknown)} not in {args.coco_json}; its "
                f"categories: {', '.join(categories)}"
            )


def _control_labels(reader) -> dict[str, int]:
    known = reader.known()
    labels = {name: known[name] for name in CONTROL_CLASSES if name in known}
    if not labels:
        raise ValueError(
            f"--controls: none of {', '.join(CONTROL_CLASSES)} is a class of this set; "
            f"its classes: {', '.join(known)}"
        )
    return labels


def _describe(job) -> str:
    texts = [f"{sum(map(len, job.outliers))} objects to paste"]
    if job.controls:
        texts.append(f"{sum(map(len, job.controls))} of known classes")
    return ", ".join(texts)


def _run(job, args) -> list[dict]:
    """Run with a progress line; returns the records of this shard."""
    total = len(range(args.shard[0], len(job.frames), args.shard[1]))
    records, start, shown = [], time.monotonic(), 0.0
    for record in run_job(job, args.shard, args.workers):
        records.append(record)
        now = time.monotonic()
        if now - shown > 1 or len(records) == total:
            left = (now - start) / len(records) * (total - len(records))
            print(f"\r{len(records)}/{total} images, {left:.0f} s left ", end="", flush=True)
            shown = now
    print()
    return sorted(records, key=lambda record: record["index"])


def summarise(job, records) -> dict:
    """Count what was made, and name what could not be used."""
    objects = [item for record in records for item in record["objects"]]
    pasted = [item for item in objects if item["dropped"] is None]
    unknown = [item for item in pasted if item["label"] == job.options.anomaly_value]
    problems = {"images not made": [r["failed"] for r in records if r["failed"]]}
    problems["objects drawn but unreadable"] = sorted(
        {text for record in records for text in record["problems"]}
    )
    problems["objects without a place"] = [
        f"{record['name']}: {item['source_image']}, annotation {item['annotation_id']}"
        for record in records
        for item in record["objects"]
        if item["dropped"] is not None
    ]
    for source in (*job.outliers, *job.controls):
        for kind, names in source.problems.items():
            problems[kind] = sorted({*problems.get(kind, ()), *names})
    return {
        "images": {
            "made": sum(not r["failed"] for r in records),
            "with objects": sum(any(o["dropped"] is None for o in r["objects"]) for r in records),
            "failed": len(problems["images not made"]),
        },
        "objects": {
            "unknown": len(unknown),
            "known": len(pasted) - len(unknown),
            "without a place": len(objects) - len(pasted),
        },
        "categories": dict(Counter(item["category"] for item in pasted)),
        "objects left out": {
            f"{type(source).__name__} {number}": dict(source.skipped)
            for number, source in enumerate((*job.outliers, *job.controls))
        },
        "problems": {kind: names for kind, names in problems.items() if names},
    }


def write_preview(job, records, number: int) -> Path:
    """Write `preview.jpg` with some of the images that have objects; returns its path."""
    pasted = [r for r in records if any(item["dropped"] is None for item in r["objects"])]
    if not pasted:
        raise ValueError("nothing to preview: no image has a pasted object")
    paths = [
        job.paths(job.frames[pasted[index]["index"]])
        for index in evenly_spread(len(pasted), number)
    ]
    value = ANOMALY if job.benchmark else job.options.anomaly_value
    sheet = contact_sheet(
        ((read_image(image), read_label(label)) for image, label in paths), {value: ANOMALY_COLOR}
    )
    write_image(job.output / "preview.jpg", sheet, quality=92)
    return job.output / "preview.jpg"


def _print_summary(summary, output, complete) -> None:
    for key in ("images", "objects", "categories"):
        print(f"{key}: " + ", ".join(f"{name} {number}" for name, number in summary[key].items()))
    for source, rules in summary["objects left out"].items():
        print(f"{source} left out: " + ", ".join(f"{n} {rule}" for rule, n in rules.items()))
    for kind, names in summary["problems"].items():
        print(f"PROBLEM, {len(names)} {kind}:")
        print("".join(f"  {name}\n" for name in names[:20]), end="")
        if len(names) > 20:
            print(f"  ... and {len(names) - 20} more, in summary.json")
    print(f"{'complete' if complete else 'this shard is done, others are not'}: {output}")


if __name__ == "__main__":
    sys.exit(main())
