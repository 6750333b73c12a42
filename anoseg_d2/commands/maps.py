"""Evaluate the score maps of any method, from any framework, on a registered benchmark.

    anoseg maps --dataset road_anomaly --maps my_maps/ --output out/my_method
    anoseg maps --dataset road_obstacle21 --maps outputs/anomaly_p/MyMethod \\
        --pattern "{id}" --name MyMethod --output out/my_method

One file per image, named like the image: .npy, .npz, 16-bit .png, .tiff, or the .hdf5 of
SegmentMeIfYouCan's code (needs h5py); one channel, the label's size, higher = more anomalous. All
labels and maps are checked before anything is computed. Maps are read one at a time. A run that
was stopped continues when the same command is run again, except with --exact.

One --output belongs to one method. Its benchmarks and scores can be evaluated one after the other,
and all of them appear on one page: <output>/report/index.html, next to results.json.
"""

import argparse
import hashlib
import json
import shlex
import sys
import time
from pathlib import Path

import anoseg_d2  # noqa: F401  isort: skip  # before detectron2, whose import warns
from detectron2.data import DatasetCatalog, MetadataCatalog

from anoseg_d2.data import builtin
from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator
from anoseg_d2.evaluation.kept_maps import FileMaps
from anoseg_d2.evaluation.map_files import MapReader
from anoseg_d2.evaluation.map_folder import LabelFacts, MapFolder, coarse_warning, read_labels
from anoseg_d2.evaluation.run_folder import check_method, dataset_folder, report_folder
from anoseg_d2.evaluation.saved_state import load_state, save_state
from anoseg_d2.report.results import read_results
from anoseg_d2.report.write import write_report
from anoseg_d2.utils import cli
from anoseg_d2.utils.files import check_name, read_json, write_json

SAVE_EVERY = 30.0  # seconds between two saves of the counts


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
        "--exact", action="store_true", help="exact figures; a stopped run starts over"
    )
    parser.add_argument("--no-components", action="store_true", help="only pixel figures")
    parser.add_argument("--no-images", action="store_true", help="no thumbnails on the page")
    parser.add_argument("--card", action="append", default=[], help="also register this card")
    parser.add_argument("--root", help="datasets folder; default: DETECTRON2_DATASETS")
    cli.add_import_option(parser)
    cli.add_verbosity_options(parser)
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    stopped = "stopped; the same command continues from the last save, at most half a minute back"
    if args.exact:
        stopped = "stopped; with --exact the same command starts from the beginning"
    return cli.run_command(lambda: run(args), stopped, args.verbosity)


def run(args) -> None:
    cli.import_modules(args.imports)
    method = check_name(args.name or Path(args.maps).resolve().name, "method")
    check_name(args.score, "score")
    images = registered_images(args)
    check_method(args.output, method)
    rule = MetadataCatalog.get(args.dataset).label_rule
    labels = read_labels(images, rule)
    reader = MapReader(args.key, args.negate)
    maps, facts = checked_maps(args, images, labels, reader)
    coarse = coarse_warning(facts)
    identity = label_identity(args.dataset, images, labels)
    evaluator = AnomalyEvaluator(
        args.dataset,
        [args.score],
        args.output,
        components=not args.no_components,
        exact=args.exact,
        keep_images=not args.no_images,
        maps=FileMaps(maps.pairs, reader, rule, args.score),
        method=method,
        labels=identity,
        warnings={args.score: [coarse] if coarse else []},
    )
    evaluate(args, evaluator, maps, reader, SavedCounts(args, method, identity, facts))
    page = write_report(args.output, model=described(args), name=method)
    for figure, value in evaluator.result["scores"][args.score].items():
        cli.say(f"{figure:>20}  {value}")
    cli.say(f"report: {page}")


def described(args) -> dict:
    """Facts for results.json: the folder of the maps of every score, versions and command."""
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
    builtin.register_all(args.root)
    builtin.register_cards(args.card, args.root)
    known = [n for n in DatasetCatalog.list() if _evaluator_type(n) == "anomaly"]
    if args.dataset not in known:
        raise ValueError(
            f"no anomaly set named {args.dataset!r}; there are {', '.join(sorted(known))}"
        )
    return DatasetCatalog.get(args.dataset)


def _evaluator_type(name: str) -> str | None:
    return MetadataCatalog.get(name).get("evaluator_type", None)


def checked_maps(
    args, images: list[dict], labels: LabelFacts, reader: MapReader
) -> tuple[MapFolder, dict]:
    """Find the maps and report everything wrong with them; files that passed are remembered."""
    maps = MapFolder.find(args.maps, images, args.pattern)
    if args.ignore_extra and maps.extra:
        cli.say(f"skipping {len(maps.extra)} maps that belong to no image")
        maps.extra = []
    path = dataset_folder(args.output, args.dataset) / "checked.json"
    known = _remembered(path, args.key)
    with cli.Progress("checked", len(maps.pairs), "maps") as progress:
        facts = maps.check(reader, labels.shapes, known, progress.update)
    write_json(path, {"key": args.key, "maps": facts})
    return maps, facts


def _remembered(path: Path, key: str | None) -> dict:
    """Return what an earlier check found; empty if its file is damaged or was for another --key."""
    try:
        stored = read_json(path)
    except (FileNotFoundError, ValueError):
        return {}
    same = isinstance(stored, dict) and stored.get("key") == key
    maps = stored.get("maps") if same else None
    return maps if isinstance(maps, dict) else {}


def label_identity(dataset: str, images: list[dict], labels: LabelFacts) -> str:
    """Digest of what makes figures comparable: the images, their labels, and how these are read."""
    metadata = MetadataCatalog.get(dataset)
    files = [(str(i["image_id"]), labels.digests[i["sem_seg_file_name"]]) for i in images]
    return _digest([repr(metadata.label_rule), metadata.get("component_track", None), files])


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def evaluate(args, evaluator: AnomalyEvaluator, maps: MapFolder, reader: MapReader, saved) -> None:
    done = saved.load(evaluator)
    if not done:
        evaluator.reset()
    else:
        cli.say(f"continuing after {done} of {len(maps.pairs)} images")
    with cli.Progress("evaluated", len(maps.pairs) - done) as progress:
        for image, path in maps.pairs[done:]:
            evaluator.process([image], [{"scores": {args.score: reader(path)}}])
            done += 1
            saved.save(evaluator, done)
            progress.update()
    evaluator.evaluate()
    saved.remove()


class SavedCounts:
    """Counts so far, kept on disk so that a run that was stopped can continue.

    They are used only if everything that the figures depend on is the same: the contents of all
    maps and labels, the label rule, the images, the method and the options.
    """

    def __init__(self, args, method: str, labels: str, facts: dict):
        folder = dataset_folder(args.output, args.dataset)
        self._path = folder / "progress.npz"
        (folder / "progress.pkl").unlink(missing_ok=True)  # from older versions; never read
        options = (args.score, args.key, args.negate, args.no_images, args.no_components)
        files = [(path, entry["sha256"]) for path, entry in facts.items()]
        photos = [image["file_name"] for image in DatasetCatalog.get(args.dataset)]
        self._hash = _digest([anoseg_d2.__version__, method, options, labels, files, photos])
        self._enabled, self._last = not args.exact, time.monotonic()

    def load(self, evaluator: AnomalyEvaluator) -> int:
        """Restore the counts; returns the number of images in them."""
        if not self._enabled or not self._path.is_file():
            return 0
        try:
            saved = load_state(self._path)
            if saved["hash"] != self._hash:
                return 0
            evaluator.load_state_dict(saved["state"])
            return int(saved["done"])
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            print(f"counting from the beginning: {error}", file=sys.stderr)
            return 0

    def save(self, evaluator: AnomalyEvaluator, done: int) -> None:
        if self._enabled and time.monotonic() - self._last > SAVE_EVERY:
            state = {"hash": self._hash, "done": done, "state": evaluator.state_dict()}
            save_state(self._path, state)
            self._last = time.monotonic()

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
