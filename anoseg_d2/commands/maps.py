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
    add = parser.add_argument
    add("--dataset", required=True, help="registered anomaly set")
    add("--maps", required=True, help="folder of score maps")
    add("--output", required=True, help="folder for the figures and the page")
    add("--name", help="name of the method in tables; default: the name of the maps folder")
    add("--score", default="score", help="name of the score in tables")
    add("--pattern", default="{id}", help="file name of a map without its extension")
    add("--key", help="array inside npz or hdf5 files, when there are several")
    add("--negate", action="store_true", help="low scores mean anomaly")
    add("--ignore-extra", action="store_true", help="skip maps that belong to no image")
    add("--exact", action="store_true", help="exact figures, from all scores in memory")
    add("--no-components", action="store_true", help="only pixel figures")
    add("--no-images", action="store_true", help="no images on the page")
    add("--card", action="append", default=[], help="also register this card")
    add("--root", help="datasets folder; default: DETECTRON2_DATASETS")
    return parser


@cli.command(build_parser)
def main(args: argparse.Namespace) -> None:
    """Evaluate, and print the figures."""
    # torch and detectron2 come with them, which --help spares.
    from anoseg_d2.engine.evaluate import versions
    from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator
    from anoseg_d2.report.write import write_report

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
            # One at a time: the maps of a benchmark rarely fit into memory.
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
