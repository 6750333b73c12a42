"""Encode thumbnails and failure crops of runs as data URIs, within a budget of characters."""

import base64
import io
import itertools
from collections.abc import Iterator

import cv2
import numpy as np
from detectron2.data import MetadataCatalog
from PIL import Image

from anoseg_d2.data.class_colors import class_colors
from anoseg_d2.evaluation.run_folder import dataset_folder
from anoseg_d2.evaluation.thumbnails import load_thumbnails, thumbnail_name
from anoseg_d2.report.runs import Run
from anoseg_d2.utils.cli import Progress
from anoseg_d2.utils.constants import (
    ANOMALY,
    ANOMALY_COLOR,
    ANOMALY_COLORS,
    CITYSCAPES_CLASSES,
    VOID,
)
from anoseg_d2.utils.visualization import (
    anomaly_palette,
    fit_long_side,
    heat_map,
    outline,
    resize_image,
    resize_label,
    resize_score,
    score_range,
)

__all__ = [
    "BUDGET",
    "characters",
    "collect_failures",
    "collect_images",
    "color_ranges",
    "false_components",
    "kept_crop",
    "run_classes",
    "seen_classes",
]


# Characters of the page that images may take; text, curves and the gallery stay far below the rest.
BUDGET = 26_000_000
_GALLERY_BUDGET = 8_000_000
_CROP_CHARACTERS = 16_000
# Marks of places and false components: neither in the photographs nor in the heat map's colours.
_MARK = (0, 255, 220)


_SIDES = (480, 400, 320, 240)  # of pictures, in pixels: the largest that the budget allows


def _photo_uri(image: np.ndarray) -> str:
    """Encode (H, W, 3) uint8 RGB as a WebP data URI."""
    return _uri(Image.fromarray(np.ascontiguousarray(image)), "webp", quality=60, method=2)


def _indexed_uri(values: np.ndarray, palette: np.ndarray) -> str:
    """Encode (H, W) uint8 as a PNG data URI with a (256, 3) uint8 palette, without loss."""
    image = Image.fromarray(np.ascontiguousarray(values))
    image.putpalette(palette.tobytes())
    return _uri(image, "png", compress_level=6)


def _uri(image: Image.Image, form: str, **options) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return f"data:image/{form};base64," + base64.b64encode(buffer.getvalue()).decode()


def _thumbnails(run: Run, dataset: str, image_id: str) -> dict | None:
    """Load what a run kept of an image, None if it kept nothing."""
    if run.folder is None or dataset not in run.records:
        return None
    path = dataset_folder(run.folder, dataset) / "images" / thumbnail_name(image_id)
    return load_thumbnails(path) if path.is_file() else None


def _all_thumbnails(run: Run) -> Iterator[dict]:
    for dataset, record in run.of_kind("anomaly").items():
        for image in record["per_image"]:
            stored = _thumbnails(run, dataset, image["image_id"])
            if stored is not None:
                yield stored


def color_ranges(runs: list[Run]) -> dict[tuple[str, str], tuple[float, float]]:
    """Choose one colour scale per run and score, over the thumbnails of all its datasets.

    Returns:
        {(run name, score): (lowest, highest)}.
    """
    ranges = {}
    for run in runs:
        samples: dict[str, list[np.ndarray]] = {}
        for stored in _all_thumbnails(run):
            for score, values in stored["scores"].items():
                samples.setdefault(score, []).append(values[::4, ::4])  # enough for its ends
        ranges.update({(run.name, score): score_range(s) for score, s in samples.items()})
    return ranges


def run_classes(run: Run) -> tuple[list[str], np.ndarray]:
    """Return the names of a run's classes, with the anomaly after them, and a (256, 3) palette.

    A model of another dataset than Cityscapes has classes of its own. Its closed set knows their
    names and colours, if one with as many classes was evaluated.
    """
    closed = {
        name: list(r["result"].get("IoU", {})) for name, r in run.of_kind("closed_set").items()
    }
    count = run.model.get("num_known")
    if not isinstance(count, int) or not 0 < count < VOID:  # older versions did not write it
        count = max([len(CITYSCAPES_CLASSES), *map(len, closed.values())])
    fitting = next((name for name, classes in closed.items() if len(classes) == count), None)
    colors = MetadataCatalog.get(fitting).get("stuff_colors", None) if fitting else None
    names, palette = class_colors(count, closed.get(fitting), colors)
    palette[count] = ANOMALY_COLOR
    return [*names, "anomaly"], palette


def seen_classes(run: Run) -> list[tuple[str, str]]:
    """Return name and CSS colour of every class that the run's kept predictions hold."""
    names, palette = run_classes(run)
    seen = np.zeros(256, bool)
    for stored in _all_thumbnails(run):
        if stored["sem_seg"] is not None:
            seen[np.unique(stored["sem_seg"])] = True
    return [
        (names[i] if i < len(names) else f"class {i}", "rgb({},{},{})".format(*palette[i]))
        for i in np.flatnonzero(seen[:VOID])
    ]


def _encode(side: int, runs, dataset: str, image_id: str, ranges, shown: set) -> dict | None:
    """Encode an image: photo and label from the first run that kept them, maps from every run."""
    entry: dict = {"id": image_id, "runs": {}}
    for run in runs:
        stored = _thumbnails(run, dataset, image_id)
        if stored is None:
            continue
        size = fit_long_side(*stored["label"].shape, side)
        if "photo" not in entry:
            entry["photo"] = _photo_uri(resize_image(stored["photo"], size))
            label = resize_label(stored["label"], size, keep=1)
            entry["label"] = _indexed_uri(label, anomaly_palette())
        maps: dict = {"heat": {}}
        if stored["sem_seg"] is not None:
            classes = resize_label(stored["sem_seg"], size)
            maps["prediction"] = _indexed_uri(classes, run_classes(run)[1])
        for score, values in stored["scores"].items():
            if (run.name, score) in shown:
                colors = heat_map(resize_score(values, size), *ranges[(run.name, score)])
                maps["heat"][score] = _photo_uri(colors)
        entry["runs"][run.name] = maps
    return entry if "photo" in entry else None


def characters(value) -> int:
    """Count the characters that the strings in nested dicts take on the page."""
    if isinstance(value, dict):
        return sum(characters(entry) for entry in value.values())
    return len(value) if isinstance(value, str) else 0


def _worst_first(runs: list[Run], dataset: str) -> list[str]:
    """Sort image ids by the average precision of the last run's best score, lowest first."""
    run = [run for run in runs if dataset in run.records][-1]  # usually the final stage
    best = run.best_score()
    ids = {i["image_id"]: i["ap"].get(best) for i in run.records[dataset]["per_image"]}
    return sorted(ids, key=lambda i: (ids[i] is None, ids[i], i))


def _fit(runs, order: dict, ranges: dict, budget: int) -> tuple[int, set, int]:
    """Choose the size of pictures, the shown maps and how many images the budget allows."""
    everything, total = set(ranges), sum(map(len, order.values()))
    best = {(run.name, run.best_score()) for run in runs} & everything
    # Three images of each set stand for all: encoding every image at every size would take long.
    sample = [(dataset, i) for dataset, ids in order.items() for i in ids[:: max(1, len(ids) // 3)]]
    for shown, side in itertools.product((everything, best), _SIDES):
        sizes = [characters(_encode(side, runs, *key, ranges, shown)) for key in sample]
        mean = sum(sizes) / max(1, len(sizes))
        if mean * total <= 0.9 * budget:  # a margin: the sample may be smaller than the rest
            return side, shown, total
    return side, best, int(0.9 * budget / mean)


def collect_images(runs: list[Run], ranges: dict, budget: int = BUDGET) -> tuple[dict, list[str]]:
    """Encode every evaluated image, small enough for the budget.

    Args:
        runs: evaluated models of different names.
        ranges: of `color_ranges`.
        budget: characters.
    Returns:
        {dataset: [image]}, worst first; image: `id`, `photo`, `label` (data URIs), `runs`
        {run: {`prediction`, `heat` {score: data URI}}};
        notes on what had to be left out.
    """
    datasets = list(dict.fromkeys(name for run in runs for name in run.of_kind("anomaly")))
    order = {dataset: _worst_first(runs, dataset) for dataset in datasets}
    side, shown, limit = _fit(runs, order, ranges, budget)
    total, notes = sum(map(len, order.values())), []
    if shown != set(ranges):
        notes.append("Heat maps are kept for the best score of each model, to bound the page.")
    if limit < total:
        notes.append(f"The worst {limit} of {total} images are kept, to bound the page.")
        order = {d: ids[: max(1, int(len(ids) * limit / total))] for d, ids in order.items()}
    images: dict[str, list] = {dataset: [] for dataset in datasets}
    with Progress("report: encoded", sum(map(len, order.values()))) as progress:
        for dataset, ids in order.items():
            for image_id in ids:
                entry = _encode(side, runs, dataset, image_id, ranges, shown)
                images[dataset] += [entry] if entry else []
                progress.update()
    return images, notes


def collect_failures(runs: list[Run], ranges: dict, budget: int = _GALLERY_BUDGET) -> list[dict]:
    """Encode the worst mistakes, anomalies outlined.

    Kinds: `false` and `missed` as the evaluator kept them (`FailureGallery`), and `component`: the
    largest components above the best-F1 threshold that touch no anomaly, one per image, in a box.

    Returns:
        dicts with `run`, `dataset`, `kind`, `score`, `image`, `text`, `photo`, `heat`.
    """
    groups: dict[tuple, list] = {}  # of crops, or of what they can be loaded from, worst first
    for run in runs:
        for dataset, record in run.of_kind("anomaly").items():
            # Their files are numbered from the worst on.
            for failure in sorted(record["failures"], key=lambda failure: failure["file"]):
                key = (run.name, dataset, failure["kind"], failure["score"])
                groups.setdefault(key, []).append((run, failure))
            for score, crops in false_components(run, dataset).items():
                key = (run.name, dataset, "component", score)
                groups[key] = [(run, crop) for crop in crops]
    limit = budget // _CROP_CHARACTERS
    if sum(map(len, groups.values())) > limit:
        best = {(run.name, run.best_score()) for run in runs}
        groups = {key: found for key, found in groups.items() if (key[0], key[3]) in best}
    encoded = []
    for (name, dataset, kind, score), found in groups.items():
        for run, failure in found[: max(1, limit // len(groups))]:
            crop = kept_crop(run, dataset, failure) if "file" in failure else failure
            if crop is not None:  # the user may have deleted its file
                ends = ranges.get((name, score)) or score_range([crop["score"]])  # no thumbnails
                entry = {"run": name, "dataset": dataset, "kind": kind, "score": score}
                encoded.append({**entry, **_encode_crop(crop, ends)})
    return encoded


def kept_crop(run: Run, dataset: str, failure: dict) -> dict | None:
    """Load a crop that the evaluator wrote, with the place of the mistake inside of it."""
    path = dataset_folder(run.folder, dataset) / "failures" / failure["file"]
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as file:
        crop = {key: file[key] for key in ("photo", "label", "score")}
    if "at" in failure:  # older versions did not write it
        crop["place"] = failure["at"]
    value = failure["value"]
    text = "infinite score" if value is None else f"score {value:.4g}"
    return {**crop, "image": failure["image_id"], "text": text}


def false_components(run: Run, dataset: str, side: int = 128) -> dict[str, list[dict]]:
    """Cut the false components that the evaluator found at native size out of thumbnails."""
    record = run.records[dataset]
    found: dict[str, list[dict]] = {}
    for score, components in record.get("false_components", {}).items():
        threshold = record["result"]["scores"].get(score, {}).get("best_f1_threshold")
        above = "" if threshold is None else f" above {threshold:.4g}"
        for component in components:
            stored = _thumbnails(run, dataset, component["image_id"])
            if stored is not None and score in stored["scores"]:
                crop = _component_crop(stored, score, component, side)
                crop["text"] = f"{component['area']:,} pixels{above}"
                found.setdefault(score, []).append(crop)
    return found


def _component_crop(stored: dict, score: str, component: dict, side: int) -> dict:
    """Cut the part of a thumbnail around a component, at least `side` wide, and mark its box."""
    label, box = stored["label"], component["box"]
    window, inside = [], []
    for start, length, native, extent in zip(
        box[:2], box[2:], stored["size"], label.shape, strict=True
    ):
        scale = extent / native
        first, last = int(start * scale), int(np.ceil((start + length) * scale))
        width = min(extent, max(side, last - first + side // 4))  # some scene around it
        begin = int(np.clip((first + last - width) // 2, 0, extent - width))
        window.append(slice(begin, begin + width))
        inside.append(slice(first - begin, last - begin))
    window = tuple(window)
    mask = np.zeros(label[window].shape, bool)
    mask[tuple(inside)] = True
    return {
        "photo": stored["photo"][window],
        "label": label[window],
        "score": stored["scores"][score][window],
        "component": mask,
        "image": component["image_id"],
    }


def _encode_crop(crop: dict, ends: tuple[float, float]) -> dict:
    """Mark the anomaly and the mistake in photograph and heat map, and encode both."""
    anomaly = crop["label"] == ANOMALY
    photo = outline(crop["photo"], anomaly, ANOMALY_COLORS[ANOMALY])
    heat = outline(heat_map(crop["score"], *ends), anomaly, (255, 255, 255))
    if "component" in crop:
        photo = outline(photo, crop["component"], _MARK)
        heat = outline(heat, crop["component"], _MARK)
    if "place" in crop:
        point = crop["place"][::-1]
        size = max(9, crop["label"].shape[1] // 12)
        for image in (photo, heat):
            # Black below the colour, so that the cross is seen on anything.
            for color, width in (((0, 0, 0), 4), (_MARK, 2)):
                cv2.drawMarker(image, point, color, cv2.MARKER_CROSS, size, width)
    return {
        "image": crop["image"],
        "text": crop["text"],
        "photo": _photo_uri(photo),
        "heat": _photo_uri(heat),
    }
