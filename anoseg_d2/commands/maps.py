"""Evaluate the score maps of any method, from any framework, on a registered benchmark.

    anoseg maps --dataset road_anomaly --maps my_maps/ --output out/my_method
    anoseg maps --dataset road_obstacle21 --maps outputs/anomaly_p/MyMethod \\
        --pattern "{id}" --name MyMethod --output out/my_method

One file per image, named like the image: .npy, .npz, 16-bit .png, .tiff, or the .hdf5 of
SegmentMeIfYouCan's code (needs h5py); one channel, the label's size, higher = more anomalous. All
labels and maps are checked before anything is computed. Maps are read one at a time. A run that
was stopped starts over; benchmarks that were evaluated before it keep their figures.

One --output belongs to one method. Its benchmarks and scores can be evaluated one after the other,
and all of them appear on one page: <output>/report/index.html, next to results.json.
"""

import argparse
import shlex
import sys
from pathlib import Path

from anoseg_d2.evaluation.map_files import MapReader
from anoseg_d2.evaluation.map_folder import MapFolder, coarse_warning, read_labels
from anoseg_d2.evaluation.run_folder import check_method, report_folder
from anoseg_d2.report.results import read_results
from anoseg_d2.utils import cli
from anoseg_d2.utils.files import check_name


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = cli.build_parser(__doc__, imports=True)
    parser.add_argument("--dataset", required=True, help="registered anomaly set")
    parser.add_argument("--maps", required=True, help="folder of score maps")
    parser.add_argument("--output", required=True, help="folder for the figures and the page")
    parser.add_argument(
        "--name", help="name of the method in tables; default: the name of the maps folder"
    )
    parser.add_argument("--score", default="score", help="name of the score in tables")
    parser.add_argument(
        "--pattern", default="{id}", help="file name of a map without its extension"
    )
    parser.add_argument("--key", help="array inside npz or hdf5 files, when there are several")
    parser.add_argument("--negate", action="store_true", help="low scores mean anomaly")
    parser.add_argument(
        "--ignore-extra", action="store_true", help="skip maps that belong to no image"
    )
    parser.add_argument("--exact", action="store_true", help="exact figures, from scores on disk")
    parser.add_argument("--no-components", action="store_true", help="only pixel figures")
    parser.add_argument("--no-images", action="store_true", help="no thumbnails on the page")
    parser.add_argument("--card", action="append", default=[], help="also register this card")
    parser.add_argument("--root", help="datasets folder; default: DETECTRON2_DATASETS")
    return parser


def main(argv=None) -> int:
    """Run the command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    return cli.run_command(lambda: run(args), "stopped", args.verbosity)


def run(args) -> None:
    """Check everything, then evaluate and print the figures."""
    # torch and detectron2 come with them, which --help spares.
    from detectron2.data import MetadataCatalog

    from anoseg_d2.evaluation.kept_maps import FileMaps
    from anoseg_d2.evaluation.map_evaluation import MapEvaluator
    from anoseg_d2.report.write import write_report

    cli.import_modules(args.imports)
    method = check_name(args.name or Path(args.maps).resolve().name, "method")
    check_name(args.score, "score")
    images = registered_images(args)
    # Before hours of reading: figures of two methods must not be mixed in one folder.
    check_method(args.output, method)
    metadata = MetadataCatalog.get(args.dataset)
    shapes, labels = read_labels(metadata, images)
    reader = MapReader(args.key, args.negate)
    maps = MapFolder.find(args.maps, images, args.pattern)
    if args.ignore_extra and maps.extra:
        cli.say(f"skipping {len(maps.extra)} maps that belong to no image")
        maps.extra = []
    with cli.Progress("checked", len(maps.pairs), "maps") as progress:
        types = maps.check(reader, shapes, progress.update)
    coarse = coarse_warning(types)
    evaluator = MapEvaluator(
        args.dataset,
        args.score,
        args.output,
        maps=FileMaps(maps.pairs, reader, metadata.label_rule, args.score),
        method=method,
        labels=labels,
        warnings=[coarse] if coarse else [],
        components=not args.no_components,
        exact=args.exact,
        keep_images=not args.no_images,
    )
    evaluator.reset()
    with cli.Progress("evaluated", len(maps.pairs)) as progress:
        for image, path in maps.pairs:
            evaluator.process([image], [{"scores": {args.score: reader(path)}}])
            progress.update()
    evaluator.evaluate()
    page = write_report(args.output, model=described(args), name=method)
    for figure, value in evaluator.result["scores"][args.score].items():
        cli.say(f"{figure:>20}  {value}")
    cli.say(f"report: {page}")


def described(args) -> dict:
    """Return facts for results.json: each score's folder of maps, the versions and the command."""
    from anoseg_d2.engine.evaluate import versions  # it imports the model, which --help spares

    try:
        earlier = read_results(report_folder(args.output) / "results.json").get("model") or {}
    except (FileNotFoundError, ValueError):
        earlier = {}
    folders = earlier["maps"] if isinstance(earlier.get("maps"), dict) else {}
    return {
        "maps": {**folders, f"{args.dataset}/{args.score}": str(args.maps)},
        "versions": versions(),
        "command": shlex.join(sys.argv),
    }


def registered_images(args) -> list[dict]:
    """Return the images of the benchmark; ValueError if it is not a registered anomaly set."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from anoseg_d2.data import builtin

    builtin.register_all(args.root)
    builtin.register_cards(args.card, args.root)
    kinds = {n: MetadataCatalog.get(n).get("evaluator_type") for n in DatasetCatalog.list()}
    known = [name for name, kind in kinds.items() if kind == "anomaly"]
    if args.dataset not in known:
        raise ValueError(
            f"no anomaly set named {args.dataset!r}; known: {', '.join(sorted(known))}"
        )
    return DatasetCatalog.get(args.dataset)
