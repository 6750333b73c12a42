"""Paste objects into road scenes to make an outlier-exposure training set or a benchmark.

Example:
    anoseg cut-paste --cityscapes datasets/cityscapes \\
        --coco-json coco/annotations/instances_train2017.json --coco-images coco/train2017 \\
        --output datasets/cityscapes_outlier --workers 8

After an interruption, the same command continues where it stopped. The exit status is 1 if an
image or an object could not be read (all others are made), and 2 after a mistake in the command.
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path

import yaml

from anoseg_d2.data.cityscapes import IMAGE_SUFFIX
from anoseg_d2.data.contact_sheet import contact_sheet, evenly_spread
from anoseg_d2.data.cut_paste import CutPasteOptions
from anoseg_d2.data.cut_paste.closed_set import cache_folder
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
from anoseg_d2.utils import cli
from anoseg_d2.utils.constants import ANOMALY, ANOMALY_COLOR, KNOWN, PASTED_ID, VOID
from anoseg_d2.utils.files import check_name, write_atomic
from anoseg_d2.utils.ranges import integer, number

DEFAULTS = CutPasteOptions()
# What `CutPasteOptions` does not check.
OPTIONS = {
    "--min-area": number(0),
    "--seed": integer(0, 2**63 - 1),
    "--workers": integer(0, cli.MAX_WORKERS),
    "--preview": integer(0, 1000),
    "--max-redraws": integer(0, 10_000),
}
CARD = "card.yaml"
UNREADABLE = ("objects unreadable", "photographs missing")


def main(arguments=None) -> int:
    """Run the command line; return the exit status."""
    args = build_parser().parse_args(arguments)
    stopped = "interrupted; the same command continues from here"
    return cli.run_command(lambda: prepare(args), stopped, args.verbosity)


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_inputs(parser)
    _add_work(parser)
    _add_choices(parser)
    cli.add_verbosity_options(parser)
    return parser


def _add_inputs(parser) -> None:
    group = parser.add_argument_group("scenes and objects")
    scenes = group.add_mutually_exclusive_group(required=True)
    scenes.add_argument("--cityscapes", metavar="DIR", help="folder with leftImg8bit/ and gtFine/")
    scenes.add_argument(
        "--dataset", metavar="NAME_OR_CARD", help="a registered closed set, or a dataset card"
    )
    group.add_argument(
        "--split",
        help="split of the scenes (default: the dataset's own; Cityscapes and cards: train)",
    )
    group.add_argument("--coco-json", metavar="FILE", help="COCO instances_*.json")
    group.add_argument("--coco-images", metavar="DIR", help="its photographs")
    group.add_argument(
        "--cutouts", metavar="DIR", help="images with an alpha channel, used as objects"
    )
    group.add_argument("--textures", metavar="DIR", help="photographs to fill random blobs with")
    group.add_argument(
        "--keep-category",
        nargs="+",
        metavar="NAME",
        default=[],
        help="never drop these COCO categories",
    )
    group.add_argument(
        "--drop-category",
        nargs="+",
        metavar="NAME",
        default=[],
        help="also drop these COCO categories",
    )
    group.add_argument(
        "--keep-extra", action="store_true", help=f"do not drop {', '.join(EXTRA_OVERLAP)}"
    )
    group.add_argument(
        "--min-area", type=float, default=1000, help="smallest object, px (default: %(default)s)"
    )
    group.add_argument(
        "--keep-cut",
        action="store_true",
        help="use objects that the border of their photograph cuts off, as the paper does; by "
        "default they are left out, because they show a straight edge wherever they are pasted",
    )
    cli.add_import_option(group)


def _add_work(parser) -> None:
    group = parser.add_argument_group("output and work")
    group.add_argument("--output", metavar="DIR", required=True)
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--workers", type=int, default=1, help="processes")
    group.add_argument(
        "--shard", type=_shard, default=(0, 1), metavar="I/N", help="make part I of N, I from 0"
    )
    group.add_argument(
        "--compress-level", type=int, default=3, choices=range(10), help="of png files"
    )
    group.add_argument(
        "--as-benchmark",
        action="store_true",
        help="write images/ and labels_masks/ (0 known, 1 pasted unknown, 255 void); ratio 1",
    )
    group.add_argument("--preview", type=int, default=0, metavar="N", help="draw N on a sheet")


def _add_choices(parser) -> None:
    group = parser.add_argument_group("pasting")
    group.add_argument(
        "--ratio",
        type=float,
        help=f"fraction of images with objects (default: {DEFAULTS.ratio}; paper: 1.0)",
    )
    group.add_argument("--count", type=int, nargs=2, default=DEFAULTS.count, metavar="N")
    group.add_argument(
        "--parts", type=float, default=DEFAULTS.parts, metavar="F",
        help="fraction of the unknown objects of which only a random part is pasted (default: 0)",
    )  # fmt: skip
    group.add_argument(
        "--controls", type=int, nargs=2, default=DEFAULTS.control_count, metavar="N",
        help="fewest and most pasted COCO objects of known classes (default: 0 0; try 0 2)",
    )  # fmt: skip
    group.add_argument(
        "--closed-set", type=int, nargs=2, default=DEFAULTS.closed_set_count, metavar="N",
        help="fewest and most segments of known things, from other frames of this dataset",
    )  # fmt: skip
    group.add_argument(
        "--rarest-first", action="store_true", help="paste each known class equally often"
    )
    group.add_argument("--scale", type=float, nargs=2, default=DEFAULTS.scale, metavar="F")
    group.add_argument("--max-fraction", type=float, default=DEFAULTS.max_fraction)
    group.add_argument("--min-side", type=int, default=DEFAULTS.min_side)
    group.add_argument("--size", choices=("native", "perspective"), default=DEFAULTS.size)
    group.add_argument("--perspective-side", type=float, default=DEFAULTS.perspective_side)
    group.add_argument(
        "--perspective-min-side", type=int, default=DEFAULTS.perspective_min_side, metavar="PX"
    )
    group.add_argument("--placement", choices=("uniform", "road"), default=DEFAULTS.placement)
    group.add_argument(
        "--feather", type=float, nargs=2, default=DEFAULTS.feather, metavar="F",
        help="sigma = min(first, second * sqrt(area))",
    )  # fmt: skip
    group.add_argument(
        "--rim", type=int, default=DEFAULTS.rim,
        help="px cleaned inside outlines (default: %(default)s; paper: 0)",
    )  # fmt: skip
    group.add_argument("--opaque-core", action="store_true", help="no feather inside the outline")
    group.add_argument("--max-redraws", type=int, default=DEFAULTS.max_redraws, metavar="N")


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not re.fullmatch("[0-9]{1,9}/[0-9]{1,9}", text) or int(index) >= int(count):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I in 0..N-1")
    return int(index), int(count)


def prepare(args) -> int:
    """Make the dataset that the arguments describe; return the exit status."""
    cli.check_options(args, OPTIONS)
    cli.import_modules(args.imports)
    job = build_job(args)
    for source in (*job.outliers, *job.controls, *job.closed_set):
        source.refuse_if_unreadable()
    digest = claim_output(job)
    cli.say(f"{len(job.frames)} scenes, {_describe(job)}; configuration {digest[:12]}")
    records = _run(job, args)
    everything = collect_manifest(job)
    if everything is not None:
        records = list(everything.values())
    summary = summarise(job, records)
    if everything is not None:
        text = json.dumps(summary, indent=1, sort_keys=True) + "\n"
        write_atomic(job.output / "summary.json", text.encode())
        write_card(job, summary["images"]["made"])
    _print_summary(summary, job.output, everything is not None)
    if args.preview:
        cli.say(f"preview: {write_preview(job, records, args.preview)}")
    unreadable = [kind for kind in UNREADABLE if kind in summary["problems"]]
    if unreadable and summary["images"]["made"] and not summary["objects"]["unknown"]:
        raise ValueError(
            f"no object was pasted into {summary['images']['made']} images: "
            f"{summary['problems'][unreadable[0]][0]}"
        )
    if everything is not None:
        cli.say(how_to_use(job))
    return 1 if summary["images"]["failed"] or unreadable else 0


def build_job(args) -> CutPasteJob:
    """Read the inputs and return the job that the arguments describe."""
    frames, reader, split = _scenes(args)
    known = reader.known()
    ratio = args.ratio if args.ratio is not None else 1.0 if args.as_benchmark else DEFAULTS.ratio
    ground = tuple(known[name] for name in ("road", "sidewalk") if name in known)
    if args.placement == "road" and not ground:
        raise ValueError(
            f"--placement road needs a class road or sidewalk; the classes: {', '.join(known)}"
        )
    options = CutPasteOptions(
        ratio=ratio,
        count=tuple(args.count),
        parts=args.parts,
        control_count=tuple(args.controls),
        closed_set_count=tuple(args.closed_set),
        scale=tuple(args.scale),
        max_fraction=args.max_fraction,
        min_side=args.min_side,
        size=args.size,
        perspective_side=args.perspective_side,
        perspective_min_side=args.perspective_min_side,
        placement=args.placement,
        ground_labels=ground,
        feather=tuple(args.feather),
        rim=args.rim,
        opaque_core=args.opaque_core,
        max_redraws=args.max_redraws,
    )
    outliers, controls = _sources(args, reader)
    closed_set = []
    if args.closed_set[1]:
        pairs = [(frame.image, frame.label) for frame in frames]
        closed_set = [
            OBJECT_SOURCES["closed_set"](
                pairs, reader, known, rarest_first=args.rarest_first, cache=cache_folder()
            )
        ]
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
        compress_level=args.compress_level,
    )


def _scenes(args):
    """Return the frames, the reader of their labels, and the name of their split."""
    if args.cityscapes:
        split = args.split or "train"
        check_name(split, "split")
        frames = frames_of_cityscapes(args.cityscapes, split)
        return frames, SceneLabelReader(LABEL_RULES["cityscapes"]), split
    from anoseg_d2.data.builtin import DATASETS, datasets_root, register_cards

    name = args.dataset
    if name not in DATASETS:  # a card, shipped or a file, and not one of its splits
        splits = {DATASETS[n].split: n for n in register_cards(name)}
        wanted = args.split or "train"
        if wanted not in splits and (args.split or len(splits) > 1):
            raise ValueError(
                f"card {args.dataset} has {', '.join(splits.values())}, but no split {wanted}"
            )
        name = splits.get(wanted) or next(iter(splits.values()))
    own = DATASETS[name].split
    if args.split and own and args.split != own:
        raise ValueError(f"--dataset {name} is the split {own}, but --split is {args.split}")
    split = check_name(args.split or own or "train", "split")
    dataset = DATASETS[name]
    reader = SceneLabelReader(dataset.rule, dataset.classes)
    return frames_of_dataset(dataset, datasets_root()), reader, split


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
            f"--controls: none of {', '.join(CONTROL_CLASSES)} is a class of this dataset; "
            f"its classes: {', '.join(known)}"
        )
    return labels


def _describe(job) -> str:
    texts = [f"{sum(map(len, job.outliers))} objects to paste"]
    if job.controls:
        texts.append(f"{sum(map(len, job.controls))} of known classes")
    if job.closed_set:
        texts.append(f"{sum(map(len, job.closed_set))} segments of the scenes themselves")
    return ", ".join(texts)


def _run(job, args) -> list[dict]:
    """Run the job with a progress display; return the records of this shard."""
    total = len(range(args.shard[0], len(job.frames), args.shard[1]))
    records = []
    with cli.Progress("made", total) as progress:
        for record in run_job(job, args.shard, args.workers):
            records.append(record)
            progress.update()
    return sorted(records, key=lambda record: record["index"])


def summarise(job, records) -> dict:
    """Count what was made, and list what could not be used."""
    objects = [item for record in records for item in record["objects"]]
    pasted = [item for item in objects if item["dropped"] is None]
    unknown = [item for item in pasted if item["label"] == job.options.anomaly_value]
    problems = {"images not made": [r["failed"] for r in records if r["failed"]]}
    problems["objects unreadable"] = sorted(
        {text for record in records for text in record["problems"]}
    )
    problems["objects without a place"] = [
        f"{record['name']}: {item.get('source_image')}, annotation {item.get('annotation_id')}"
        for record in records
        for item in record["objects"]
        if item["dropped"] is not None
    ]
    for source in (*job.outliers, *job.controls, *job.closed_set):
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
        "categories": dict(Counter(item.get("category", "object") for item in pasted)),
        "objects left out": {
            f"{type(source).__name__} {number}": dict(source.skipped)
            for number, source in enumerate((*job.outliers, *job.controls, *job.closed_set))
        },
        "problems": {kind: names for kind, names in problems.items() if names},
    }


def write_card(job: CutPasteJob, made: int) -> None:
    """Write `card.yaml`, which registers the result; its root is the folder of the card itself."""
    card = {"name": card_name(job), "root": "./", "source": "made by prepare_cut_paste.py"}
    if job.benchmark:
        card |= {
            "kind": "anomaly",
            "images": "images/{id}.png",
            "labels": "labels_masks/{id}_labels_semantic.png",
            "expected_images": made,
            **{"known": KNOWN, "anomaly": ANOMALY, "void": VOID},
        }
    else:
        coding = "labelIds" if job.reader.is_cityscapes else "labelTrainIds"
        files = {
            "images": f"leftImg8bit/{job.split}/*/{{id}}{IMAGE_SUFFIX}.png",
            "labels": f"gtFine/{job.split}/*/{{id}}_gtFine_{coding}.png",
            "expected_images": made,
        }
        card["splits"] = {job.split: files}
        if job.reader.is_cityscapes:
            card |= {"classes": "cityscapes", "label_values": "cityscapes_outlier"}
        else:
            classes = list(job.reader.classes)
            card |= {"classes": classes, "label_values": {i: i for i in range(len(classes))}}
            card |= {"void": VOID, "anomaly": PASTED_ID}
    text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True)
    write_atomic(job.output / CARD, text.encode())


def card_name(job: CutPasteJob) -> str:
    """Return the name of the card: the output folder's, prefixed so that no built-in has it."""
    return "pasted_" + re.sub(r"[^A-Za-z0-9._+-]", "_", job.output.resolve().name)[:80]


def how_to_use(job: CutPasteJob) -> str:
    """Return the command that trains or evaluates on the result."""
    card, name = job.output / CARD, card_name(job)
    cards = f"DATASETS.CARDS \"('{card}',)\""
    if job.benchmark:
        return f"evaluate on it: anoseg eval ... {cards} DATASETS.TEST \"('{name}',)\""
    own = "" if job.reader.is_cityscapes else f" MODEL.EOMT.NUM_CLASSES {len(job.reader.classes)}"
    return (
        f"train on it: anoseg train --config-file arcface_full {cards} "
        f"DATASETS.TRAIN \"('{name}_{job.split}',)\" MODEL.EOMT.ANOMALY_CLASS True{own}"
    )


def write_preview(job, records, number: int) -> Path:
    """Write `preview.jpg` with some of the images that have objects; return its path."""
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
        cli.say(f"{key}: " + ", ".join(f"{name} {number}" for name, number in summary[key].items()))
    for source, rules in summary["objects left out"].items():
        cli.say(f"{source} left out: " + ", ".join(f"{n} {rule}" for rule, n in rules.items()))
    for kind, names in summary["problems"].items():
        cli.say(f"PROBLEM, {len(names)} {kind}:")
        cli.say("\n".join(f"  {name}" for name in names[:20]))
        if len(names) > 20:
            cli.say(f"  ... and {len(names) - 20} more, in summary.json")
    cli.say(f"{'complete' if complete else 'this shard is done, others are not'}: {output}")
