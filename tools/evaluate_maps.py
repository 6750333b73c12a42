#!/usr/bin/env python
"""Evaluate the score maps of any method, from any framework, on a registered benchmark.

    python tools/evaluate_maps.py --dataset road_anomaly --maps my_maps/ --output out/my_method
    python tools/evaluate_maps.py --dataset road_obstacle21 --maps outputs/anomaly_p/MyMethod \
        --pattern "{id}" --name MyMethod --output out/my_method

One file per image, named as the image: .npy, .npz, 16-bit .png, .tiff, or the .hdf5 of
SegmentMeIfYouCan's code (needs h5py); one channel, the label's size, higher = more anomalous. All
maps are checked before anything is computed. Maps are read one at a time; a run that was cut off
goes on where it was. Several benchmarks given the same --output, one after the other, end on one
page: <output>/report/index.html, with results.json beside it.
"""

import argparse
import hashlib
import json
import logging
import pickle
import sys
import time
from pathlib import Path

import anoseg_d2  # noqa: E402, F401  isort: skip  # before detectron2, whose import warns
from detectron2.data import DatasetCatalog, MetadataCatalog

from anoseg_d2.data import builtin
from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator
from anoseg_d2.evaluation.map_files import MapFolder, MapReader, StoredMaps
from anoseg_d2.evaluation.run_folder import dataset_folder
from anoseg_d2.report.write import write_report
from anoseg_d2.utils.files import (
    read_json,
    write_atomic,
    write_json,
)

SAVE_EVERY = 30.0  # seconds between two savings of what was counted


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, help="registered anomaly set")
    parser.add_argument("--maps", required=True, help="folder of score maps")
    parser.add_argument("--output", required=True, help="where figures and page go")
    parser.add_argument("--name", help="of the method, in tables; default: the maps' folder")
    parser.add_argument("--score", default="score", help="name of the score in tables")
    parser.add_argument("--pattern", default="{id}", help="name of a map without its extension")
    parser.add_argument("--key", help="array inside npz or hdf5 files, when there are several")
    parser.add_argument("--negate", action="store_true", help="low scores mean anomaly")
    parser.add_argument("--ignore-extra", action="store_true", help="pass over maps of no image")
    parser.add_argument("--exact", action="store_true", help="exact figures; does not resume")
    parser.add_argument("--no-components", action="store_true", help="pixel figures alone")
    parser.add_argument("--no-images", action="store_true", help="no thumbnails on the page")
    parser.add_argument("--card", action="append", default=[], help="register this card too")
    parser.add_argument("--root", help="datasets folder; default: DETECTRON2_DATASETS")
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    try:
        images = registered_images(args)
        reader = MapReader(args.key, args.negate)
        maps = checked_maps(args, images, reader)
        evaluator = evaluate(args, maps, reader)
        name = args.name or Path(args.maps).resolve().name
        page = write_report(args.output, model={"maps": str(args.maps)}, name=name)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for figure, value in evaluator.result["scores"][args.score].items():
        print(f"{figure:>20}  {value}")
    print(f"report: {page}")
    return 0


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


def checked_maps(args, images: list[dict], reader: MapReader) -> MapFolder:
    """Find the maps and name all that is wrong with them; what was right before is remembered."""
    maps = MapFolder.find(args.maps, images, args.pattern)
    if args.ignore_extra and maps.extra:
        print(f"passing over {len(maps.extra)} maps that belong to no image")
        maps.extra = []
    path = dataset_folder(args.output, args.dataset) / "checked.json"
    known = read_json(path) if path.is_file() else {}
    known = known.get("maps", {}) if known.get("key") == args.key else {}
    right = maps.check(reader, known, Progress("checked"))
    write_json(path, {"key": args.key, "maps": right})
    return maps


def evaluate(args, maps: MapFolder, reader: MapReader) -> AnomalyEvaluator:
    rule = MetadataCatalog.get(args.dataset).label_rule
    evaluator = AnomalyEvaluator(
        args.dataset,
        [args.score],
        args.output,
        components=not args.no_components,
        exact=args.exact,
        keep_images=not args.no_images,
        spill=StoredMaps(maps.pairs, reader, rule, args.score),
    )
    saved = SavedCounts(args, maps)
    done = saved.load(evaluator)
    if not done:
        evaluator.reset()
    else:
        print(f"going on after {done} of {len(maps.pairs)} images")
    progress = Progress("evaluated")
    for index, (image, path) in enumerate(maps.pairs[done:], done + 1):
        evaluator.process([image], [{"scores": {args.score: reader(path)}}])
        saved.save(evaluator, index)
        progress(index, len(maps.pairs))
    evaluator.evaluate()
    saved.remove()
    return evaluator


class SavedCounts:
    """What was counted so far, on disk, for a run that is cut off.

    It counts for the same maps, unchanged, and the same options alone.
    """

    def __init__(self, args, maps: MapFolder):
        self._path = dataset_folder(args.output, args.dataset) / "progress.pkl"
        options = (args.score, args.key, args.negate, args.no_images, args.no_components)
        files = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for _, p in maps.pairs]
        self._hash = hashlib.sha256(json.dumps([options, files]).encode()).hexdigest()
        self._enabled, self._last = not args.exact, time.monotonic()

    def load(self, evaluator: AnomalyEvaluator) -> int:
        """Restore the counts; returns the number of images in them."""
        if not self._enabled or not self._path.is_file():
            return 0
        try:
            saved = pickle.loads(self._path.read_bytes())
        except (pickle.UnpicklingError, EOFError, AttributeError, ImportError):
            return 0  # written by another version: the images are counted anew
        if saved["hash"] != self._hash:
            return 0
        evaluator.load_state_dict(saved["state"])
        return saved["done"]

    def save(self, evaluator: AnomalyEvaluator, done: int) -> None:
        if self._enabled and time.monotonic() - self._last > SAVE_EVERY:
            state = {"hash": self._hash, "done": done, "state": evaluator.state_dict()}
            write_atomic(self._path, pickle.dumps(state))
            self._last = time.monotonic()

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


class Progress:
    """A line on the screen with the time left, on a terminal alone."""

    def __init__(self, what: str):
        self._what, self._start = what, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            left = (time.monotonic() - self._start) / done * (total - done)
            end = "\n" if done == total else ""
            print(f"\r{self._what} {done}/{total}, {left:.0f} s left ", end=end, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
