"""Thumbnails and failure crops of evaluated runs as data URIs, within a budget of bytes."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from PIL import Image

from anoseg_d2.evaluation.run_folder import dataset_folder
from anoseg_d2.evaluation.thumbnails import load_thumbnails, thumbnail_name
from anoseg_d2.report.runs import Run
from anoseg_d2.utils.visualization import (
    ANOMALY_COLORS,
    CITYSCAPES_COLORS,
    anomaly_palette,
    class_palette,
    fit_long_side,
    heat_map,
    outline,
    resize_image,
    resize_label,
    resize_score,
    score_range,
)

__all__ = ["BUDGET", "collect_failures", "collect_images", "color_ranges"]


# Characters of the page that images may take; text, curves and the gallery stay far below the rest.
BUDGET = 26_000_000
_GALLERY_BUDGET = 8_000_000
_CROP_CHARACTERS = 16_000


@dataclass(frozen=True)
class _Tier:
    photo_side: int
    heat_side: int
    quality: int


_TIERS = (_Tier(480, 480, 70), _Tier(400, 320, 60), _Tier(320, 240, 50), _Tier(240, 160, 40))


def data_uri(image: np.ndarray, quality: int) -> str:
    """Encode (H, W, 3) uint8 RGB as a WebP data URI."""
    return _uri(Image.fromarray(np.ascontiguousarray(image)), "webp", quality=quality, method=2)


def indexed_uri(values: np.ndarray, palette: np.ndarray) -> str:
    """Encode (H, W) uint8 as a PNG data URI with a (256, 3) uint8 palette, without loss."""
    image = Image.fromarray(np.ascontiguousarray(values))
    image.putpalette(palette.tobytes())
    return _uri(image, "png", compress_level=6)


def _uri(image: Image.Image, form: str, **options) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return f"data:image/{form};base64," + base64.b64encode(buffer.getvalue()).decode()


def _thumbnail_path(run: Run, dataset: str, image_id: str) -> Path:
    return dataset_folder(run.folder, dataset) / "images" / thumbnail_name(image_id)


def color_ranges(runs: list[Run]) -> dict[tuple[str, str], tuple[float, float]]:
    """One colour scale per run and score, over the thumbnails of all its datasets.

    Returns:
        {(run name, score): (lowest, highest)}.
    """
    ranges = {}
    for run in runs:
        samples: dict[str, list[np.ndarray]] = {}
        for dataset, record in run.of_kind("anomaly").items():
            for image in record["per_image"]:
                path = _thumbnail_path(run, dataset, image["image_id"])
                if path.is_file():
                    for score, values in load_thumbnails(path)["scores"].items():
                        samples.setdefault(score, []).append(values[::4, ::4])
        ranges.update({(run.name, score): score_range(s) for score, s in samples.items()})
    return ranges


def _palette(dataset: str) -> np.ndarray:
    colors = MetadataCatalog.get(dataset).get("stuff_colors", None)
    colors = CITYSCAPES_COLORS if colors is None else colors
    return class_palette(len(colors), colors)


def _encode(
    tier: _Tier, runs, dataset: str, image_id: str, ranges: dict, shown: set
) -> dict | None:
    """One image's photo and label from the first run that kept them, maps from every run."""
    entry: dict = {"id": image_id, "runs": {}}
    for run in runs:
        path = _thumbnail_path(run, dataset, image_id)
        if dataset not in run.records or not path.is_file():
            continue
        stored = load_thumbnails(path)
        size = fit_long_side(*stored["label"].shape, tier.photo_side)
        if "photo" not in entry:
            entry["photo"] = data_uri(resize_image(stored["photo"], size), tier.quality)
            label = resize_label(stored["label"], size, keep=1)
            entry["label"] = indexed_uri(label, anomaly_palette())
        maps: dict = {"heat": {}}
        if stored["sem_seg"] is not None:
            classes = resize_label(stored["sem_seg"], size)
            maps["prediction"] = indexed_uri(classes, _palette(dataset))
        heat_size = fit_long_side(*stored["label"].shape, tier.heat_side)
        for score, values in stored["scores"].items():
            if (run.name, score) in shown:
                colors = heat_map(resize_score(values, heat_size), *ranges[(run.name, score)])
                maps["heat"][score] = data_uri(colors, tier.quality)
        entry["runs"][run.name] = maps
    return entry if "photo" in entry else None


def _characters(value) -> int:
    if isinstance(value, dict):
        return sum(_characters(entry) for entry in value.values())
    return len(value) if isinstance(value, str) else 0


def _worst_first(runs: list[Run], dataset: str) -> list[str]:
    """Image ids by the average precision of the last run's best score, lowest first."""
    holders = [run for run in runs if dataset in run.records]
    run = holders[-1]
    best = run.best_score()
    ids = {i["image_id"]: i["ap"].get(best) for i in run.records[dataset]["per_image"]}
    return sorted(ids, key=lambda i: (ids[i] is None, ids[i], i))


def _fit(runs, order: dict, ranges: dict, budget: int):
    """Choose the tier, the shown maps and the number of images that the budget allows."""
    everything = set(ranges)
    best = {(run.name, run.best_score()) for run in runs} & everything
    total = sum(len(ids) for ids in order.values())
    sample = [(dataset, i) for dataset, ids in order.items() for i in ids[:: max(1, len(ids) // 3)]]
    for shown in (everything, best):
        for tier in _TIERS:
            entries = [_encode(tier, runs, *key, ranges, shown) for key in sample]
            sizes = [_characters(entry) for entry in entries if entry]
            mean = sum(sizes) / max(1, len(sizes))
            if mean * total <= 0.9 * budget:
                return tier, shown, total
    return _TIERS[-1], best, int(0.9 * budget / mean)


def collect_images(runs: list[Run], ranges: dict, budget: int = BUDGET) -> tuple[dict, list[str]]:
    """Encode every evaluated image as small as the budget asks for.

    Returns:
        {dataset: [image]}, worst first; image: `id`, `photo`, `label` (data URIs), `runs`
        {run: {`prediction`, `heat` {score: data URI}}};
        notes on what had to be left out.
    """
    datasets = list(dict.fromkeys(name for run in runs for name in run.of_kind("anomaly")))
    order = {dataset: _worst_first(runs, dataset) for dataset in datasets}
    tier, shown, limit = _fit(runs, order, ranges, budget)
    total, notes = sum(map(len, order.values())), []
    if shown != set(ranges):
        notes.append("Heat maps are kept for the best score of each model, to bound the page.")
    if limit < total:
        notes.append(f"The worst {limit} of {total} images are kept, to bound the page.")
        share = limit / total
        order = {dataset: ids[: max(1, int(len(ids) * share))] for dataset, ids in order.items()}
    images = {}
    for dataset, ids in order.items():
        entries = [_encode(tier, runs, dataset, i, ranges, shown) for i in ids]
        images[dataset] = [entry for entry in entries if entry]
    return images, notes


def collect_failures(runs: list[Run], ranges: dict, budget: int = _GALLERY_BUDGET) -> list[dict]:
    """Encode the worst mistakes, anomalies outlined.

    Returns:
        dicts with `run`, `dataset`, `kind`, `score`, `image`, `value`, `photo`, `heat`.
    """
    found = []
    for run in runs:
        for dataset, record in run.of_kind("anomaly").items():
            folder = dataset_folder(run.folder, dataset) / "failures"
            found += [(run, dataset, folder, failure) for failure in record["failures"]]
    limit = budget // _CROP_CHARACTERS
    if len(found) > limit:
        found = [f for f in found if f[3]["score"] == f[0].best_score()]
    groups = len({(f[0].name, f[1], f[3]["kind"], f[3]["score"]) for f in found})
    per_group = max(1, limit // max(1, groups))
    return [
        _encode_failure(*entry, ranges)
        for entry in found
        if int(entry[3]["file"].rsplit("-", 1)[1].removesuffix(".npz")) < per_group
        and (entry[2] / entry[3]["file"]).is_file()
    ]


def _encode_failure(run: Run, dataset: str, folder: Path, failure: dict, ranges: dict) -> dict:
    with np.load(folder / failure["file"]) as stored:
        photo, label, score = stored["photo"], stored["label"], stored["score"]
    ends = ranges.get((run.name, failure["score"])) or score_range([score])
    anomaly, color = label == 1, ANOMALY_COLORS[1]
    return {
        "run": run.name,
        "dataset": dataset,
        "kind": failure["kind"],
        "score": failure["score"],
        "image": failure["image_id"],
        "value": failure["value"],
        "photo": data_uri(outline(photo, anomaly, color), 60),
        "heat": data_uri(outline(heat_map(score, *ends), anomaly, (255, 255, 255)), 50),
    }
