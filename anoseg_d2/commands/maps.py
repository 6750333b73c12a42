"""Evaluate the score maps of any method, from any framework, on a registered benchmark.

    anoseg maps --dataset road_anomaly --maps my_maps/ --output out/my_method
    anoseg maps --dataset road_obstacle21 --maps outputs/anomaly_p/MyMethod \\
        --pattern "{id}" --name MyMethod --output out/my_method

One file per image, named like the image: .npy, .npz, 16-bit .png, .tiff, or the .hdf5 of
SegmentMeIfYouCan's code (needs h5py); one channel, the label's size, higher = more anomalous. Maps
are read one at a time.

One --output belongs to one method. Its benchmarks can be evaluated one after the other, and all of
them appear on one page: <output>/report/index.html, next to results.json. Evaluating a benchmark
again replaces its figures.
"""

import argparse
import logging
import shlex
import sys
from pathlib import Path

from anoseg_d2.evaluation.map_files import find_maps, read_map
from anoseg_d2.report.results import find_results, read_results
from anoseg_d2.utils import cli
from anoseg_d2.utils.files import check_name

logger = logging.getLogger(__name__)


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
    parser.add_argument(
        "--exact", action="store_true", help="exact figures, from all scores in memory"
    )
    parser.add_argument("--no-components", action="store_true", help="only pixel figures")
    parser.add_argument("--no-images", action="store_true", help="no images on the page")
    parser.add_argument("--card", action="append", default=[], help="also register this card")
    parser.add_argument("--root", help="datasets folder; default: DETECTRON2_DATASETS")
    return parser


def main(argv=None) -> int:
    """Run the command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    return cli.run_command(lambda: run(args), "stopped", args.verbosity)


def run(args) -> None:
    """Evaluate, and print the figures."""
    # torch and detectron2 come with them, which --help spares.
    from anoseg_d2.engine.evaluate import versions
    from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator
    from anoseg_d2.report.write import write_report

    cli.import_modules(args.imports)
    method = check_name(args.name or Path(args.maps).resolve().name, "method")
    earlier = find_results(args.output)
    found = (read_results(earlier).get("model") or {}).get("method") if earlier else method
    if found != method:
        raise ValueError(
            f"{earlier} has the figures of another method ({found or 'a model'!r}), and those of "
            f"{method!r} would be mixed with them. Choose another --output"
        )
    images = registered_images(args)
    maps, extra = find_maps(args.maps, images, args.pattern)
    if extra and not args.ignore_extra:
        raise ValueError(
            f"{len(extra)} maps belong to no image: {', '.join(extra[:10])} (--ignore-extra)"
        )
    evaluator = AnomalyEvaluator(
        args.dataset,
        [args.score],
        args.output,
        components=not args.no_components,
        exact=args.exact,
        keep_images=not args.no_images,
    )
    evaluator.reset()
    with cli.Progress("evaluated", len(maps)) as progress:
        for image, path in zip(images, maps, strict=True):
            score = read_map(path, args.key, negate=args.negate)
            evaluator.process([image], [{"scores": {args.score: score}}])
            progress.update()
    evaluator.evaluate()
    about = {"maps": str(args.maps), "versions": versions(), "command": shlex.join(sys.argv)}
    page = write_report(args.output, model={"method": method, **about}, name=method)
    figures = evaluator.result["scores"][args.score]
    for figure, value in figures.items():
        cli.say(f"{figure:>20}  {value}")
    # Maps of other methods come without a word about their sign.
    if figures["auroc"] is not None and figures["auroc"] < 50:
        logger.warning(
            "AUROC under 50 %%: known pixels score higher than anomalies. If %s looks like "
            "confidence, not anomaly: --negate",
            args.score,
        )
    cli.say(f"report: {page}")


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
