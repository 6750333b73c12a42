"""Anomaly figures of one dataset: pixel metrics, component metrics, and what the report shows."""

import logging
import shutil
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from anoseg_d2.data.image_io import read_image
from anoseg_d2.data.label_rules import LabelReader
from anoseg_d2.evaluation.components import OVERLAPS, TRACKS, ComponentMetrics, GroundTruth
from anoseg_d2.evaluation.kept_maps import KEPT_PREFIX, KeptMaps
from anoseg_d2.evaluation.metrics import PixelMetrics
from anoseg_d2.evaluation.run_folder import add_scores, dataset_folder, read_record
from anoseg_d2.evaluation.streaming.exact_counts import EXACT_PREFIX
from anoseg_d2.evaluation.streaming.keys import to_numpy
from anoseg_d2.evaluation.thumbnails import (
    FailureGallery,
    image_average_precision,
    save_thumbnails,
    thumbnail_name,
)
from anoseg_d2.utils.cli import Progress
from anoseg_d2.utils.constants import ANOMALY, KNOWN
from anoseg_d2.utils.files import check_name, write_json

__all__ = ["AnomalyEvaluator"]

logger = logging.getLogger(__name__)

CURVE_POINTS = 400
PIXEL_FIGURES = ("auprc", "fpr95", "auroc", "best_f1")
COMPONENT_FIGURES = ("sIoU", "PPV", "mean_F1")
# Overlaps at which F1, TP, FN and FP are stated one by one, as SegmentMeIfYouCan does.
STATED_OVERLAPS = (25, 50, 75)
FALSE_COMPONENTS = 8  # of each score, from as many images, that the report shows
TPR_LEVELS = (0.8, 0.9, 0.95, 0.99)  # true-positive rates whose thresholds results.json states


class AnomalyEvaluator(DatasetEvaluator):
    """Evaluate anomaly scores on one registered dataset.

    Pixel figures are counted as images pass (see `PixelMetrics`). Component figures need the
    best-F1 threshold of the whole dataset, which is an oracle on the evaluation labels: score maps
    are kept as float32 in a temporary folder while images pass, and read back once.

    Args:
        dataset_name: registered name; its metadata has `label_rule` and perhaps `component_track`,
            "anomaly" or "obstacle", for the sizes below which components do not count.
        score_names: which scores of the model's output to evaluate; None takes all of them.
        output_dir: the run's folder; see `run_folder`. None writes only the temporary maps.
        components: also compute sIoU, PPV and F1 of components.
        exact: `PixelMetrics(exact=True)`.
        keep_images: keep thumbnails and failure crops for the report (needs `output_dir`).
        maps: where the second pass reads the score maps; None keeps them in a `KeptMaps`.
        method: name of the method. Other scores of the same method in `output_dir` are kept;
            without a name, the earlier figures in the folder are replaced.
        labels: digest of the labels; figures on other labels are not kept next to these.
        warnings: {score: what a reader of its figures must know}, added to the evaluator's own.
    Raises:
        ValueError: a name that cannot be part of a path, or an unknown track.
    """

    def __init__(
        self,
        dataset_name: str,
        score_names=None,
        output_dir=None,
        *,
        components: bool = True,
        exact: bool = False,
        keep_images: bool = True,
        maps=None,
        method: str | None = None,
        labels: str | None = None,
        warnings: dict[str, list[str]] | None = None,
    ):
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self.score_names = [check_name(n, "score") for n in score_names] if score_names else None
        self._rule = metadata.label_rule
        self._track = metadata.get("component_track", "anomaly")
        if self._track not in TRACKS:
            raise ValueError(
                f"{dataset_name}: unknown component_track {self._track!r}; known: "
                f"{', '.join(TRACKS)}"
            )
        self._folder = None if output_dir is None else dataset_folder(output_dir, dataset_name)
        self._components, self._exact = components, exact
        self._keep_images = keep_images and output_dir is not None
        self._given_maps, self._maps = maps, None
        self._method, self._label_identity = method, labels
        self._given_warnings = warnings or {}
        self.result = None
        self.per_image: list[dict] = []
        self._clear()

    def _clear(self) -> None:
        if self._maps is not None:
            self._maps.close()
        self._maps = None
        self._labels = LabelReader(self._rule)
        self._pixels: dict[str, PixelMetrics] = {}
        self._counts = {"images": 0, "anomaly_pixels": 0, "known_pixels": 0, "void_pixels": 0}
        self._gallery = FailureGallery()
        self._false_components: dict[str, list[dict]] = {}
        self.per_image = []

    def reset(self):
        """Forget all counts, and remove what an earlier evaluation left in the same folder."""
        self._clear()
        if self._folder is not None and comm.is_main_process():
            self._remove_litter()
            if self._method is None:
                for name in ("images", "failures"):
                    shutil.rmtree(self._folder / name, ignore_errors=True)
                (self._folder / "result.json").unlink(missing_ok=True)
        comm.synchronize()

    def _remove_litter(self) -> None:
        """Remove temporary files that killed runs left."""
        for pattern in (f"{KEPT_PREFIX}*", ".spill-*", f"{EXACT_PREFIX}*"):
            for folder in self._folder.glob(pattern):
                logger.info("removing %s, left by a run that was killed", folder)
                shutil.rmtree(folder, ignore_errors=True)
        for file in self._folder.rglob(".*.tmp"):
            file.unlink(missing_ok=True)

    def state_dict(self) -> dict:
        """Return what was counted so far, to continue with `load_state_dict` in another process.

        Not available with `exact` or with maps that the evaluator keeps: their files are removed
        when the process ends.

        Returns:
            plain values and arrays, as `saved_state.save_state` takes them.
        """
        own = self._maps is not self._given_maps and self._maps is not None
        assert not self._exact and not own, (
            "the counts are in files that are removed with the process"
        )
        return {
            "pixels": {name: pixels.state_dict() for name, pixels in self._pixels.items()},
            "counts": self._counts,
            "gallery": self._gallery.state(),
            "per_image": self.per_image,
            "labels_seen": [[value, path] for value, path in self._labels.seen.items()],
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`, instead of `reset`."""
        self._clear()
        if self._folder is not None:
            self._remove_litter()
        self._pixels = {n: PixelMetrics.from_state(s) for n, s in state["pixels"].items()}
        self._counts, self.per_image = dict(state["counts"]), list(state["per_image"])
        self._gallery.load(state["gallery"])
        self._labels.note(dict(state["labels_seen"]))
        self._maps = self._given_maps

    def process(self, inputs, outputs):
        """Count a batch.

        Args:
            inputs: dataset dicts as the test mapper makes them.
            outputs: as the model gives them: `scores` {name: (H, W) float32} and `sem_seg` (H, W),
                at the label's size.
        Raises:
            ValueError: a score is missing, has another size than the label, or has NaN, or a label
                contradicts an earlier one; the message names the image.
        """
        for input_, output in zip(inputs, outputs, strict=True):
            label = self._labels(input_["sem_seg_file_name"])
            self._process_image(input_, label, output)

    def _process_image(self, input_: dict, label: np.ndarray, output: dict) -> None:
        where = input_["file_name"]
        scores = self._chosen_scores(output["scores"], label, where)
        average_precision = {}
        for name, score in scores.items():
            if name not in self._pixels:
                self._pixels[check_name(name, "score")] = self._new_pixels()
            self._pixels[name].update(score, label, where=where)
            average_precision[name] = image_average_precision(score, label)
        known, anomaly = int((label == KNOWN).sum()), int((label == ANOMALY).sum())
        self._counts["images"] += 1
        self._counts["anomaly_pixels"] += anomaly
        self._counts["known_pixels"] += known
        self._counts["void_pixels"] += label.size - known - anomaly
        image_id = str(input_.get("image_id", Path(where).stem))
        if self._components:
            self._maps = self._open_maps()
            self._maps.add(image_id, scores, label)
        record = {"image_id": image_id, "file_name": where, "anomaly_pixels": anomaly}
        self.per_image.append({**record, "ap": average_precision})
        if self._keep_images:
            self._keep(image_id, _photo(input_, label), label, output.get("sem_seg"), scores)

    def _chosen_scores(self, scores: dict, label: np.ndarray, where: str) -> dict:
        names = self.score_names or list(scores)
        missing = [name for name in names if name not in scores]
        if missing:
            raise ValueError(
                f"{where}: the model gives no score {', '.join(missing)}; it gives "
                f"{', '.join(scores)} (TEST.ANOMALY.SCORES)"
            )
        chosen = {name: to_numpy(scores[name]).astype(np.float32, copy=False) for name in names}
        for name, score in chosen.items():
            if score.shape != label.shape:
                raise ValueError(
                    f"{where}: score {name!r} is {score.shape}, the label is {label.shape}; scores "
                    "must be at the label's size"
                )
        return chosen

    def _new_pixels(self) -> PixelMetrics:
        if not self._exact:
            return PixelMetrics(tpr=TPR_LEVELS)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        return PixelMetrics(exact=True, tpr=TPR_LEVELS, spill_dir=self._folder)

    def _open_maps(self):
        if self._given_maps is not None:
            return self._given_maps
        if self._maps is None:
            images = -(-len(DatasetCatalog.get(self.dataset_name)) // comm.get_world_size())
            purpose = f"{self.dataset_name}: component metrics"
            return KeptMaps(self._folder, images, purpose)
        return self._maps

    def _keep(self, image_id, photo, label, sem_seg, scores) -> None:
        sem_seg = None if sem_seg is None else to_numpy(sem_seg)
        path = self._folder / "images" / thumbnail_name(image_id)
        save_thumbnails(path, photo, label, sem_seg, scores, keep_scores=self._method is not None)
        self._gallery.update(image_id, photo, label, scores)

    def evaluate(self):
        """Add the counts of all ranks and compute.

        Returns:
            On rank 0 {"anomaly": {"<score>.<figure>": percent}} for detectron2's printing, without
            figures that do not exist; None on other ranks. `result` then holds the dataset's part
            of results.json, and `result.json` is in the dataset's folder.
        Raises:
            ValueError: the labels that different ranks have read contradict each other.
        """
        for seen in comm.all_gather(self._labels.seen):
            self._labels.note(seen)
        names = _union(comm.all_gather(list(self._pixels)))
        merged = {name: self._merged_pixels(name) for name in names}
        figures, curves = {}, {}
        if comm.is_main_process():
            for name, pixels in merged.items():
                figures[name], curve = pixels.compute_with_curve(CURVE_POINTS)
                curves[name] = _short_curve(curve)
        if self._components:
            self._add_components(names, figures)
        self._gather_images()
        if self._maps is not None:
            self._maps.close()
            self._maps = None
        if not comm.is_main_process():
            return None
        scores = {name: _score_entry(figures[name]) for name in names}
        warnings = {name: self._score_warnings(name, entry) for name, entry in scores.items()}
        self.result = {
            "scores": scores,
            **self._counts,
            "component_track": self._track,
            "warnings": [*self._label_warnings(), *_flattened(warnings)],
        }
        for warning in self.result["warnings"]:
            logger.warning("%s: %s", self.dataset_name, warning)
        if self._folder is not None:
            self._write(curves, warnings)
        return OrderedDict(anomaly=_flat(scores))

    def _label_warnings(self) -> list[str]:
        """Return the warnings that concern every figure."""
        known, anomaly = self._counts["known_pixels"], self._counts["anomaly_pixels"]
        found = []
        images, expected = self._counts["images"], len(DatasetCatalog.get(self.dataset_name))
        if images != expected:
            found.append(f"{images} of {expected} images were evaluated")
        if anomaly > known > 0:
            found.append(
                f"{anomaly} of {known + anomaly} labelled pixels are anomalous, over half: the "
                "labels may be inverted (1 must be the anomaly)"
            )
        if not known or not anomaly:
            kind = "anomaly" if anomaly else "known" if known else "void"
            found.append(
                f"the labels hold nothing but {kind} pixels, as the placeholders of a hidden test "
                "set do: there are no figures"
            )
        return found

    def _score_warnings(self, name: str, entry: dict) -> list[str]:
        """Return the warnings that concern only the figures of one score."""
        found = list(self._given_warnings.get(name, ()))
        if entry["infinite_pixels"]:
            found.append(
                f"{entry['infinite_pixels']} labelled pixels have an infinite {name}; they "
                "count as the highest or lowest score of all"
            )
        return found

    def _merged_pixels(self, name: str) -> PixelMetrics | None:
        # One score at a time: rank 0 never holds more than one score's counts of all ranks.
        parts = comm.gather(self._pixels.get(name))
        parts = [part for part in parts if part is not None]
        for part in parts[1:]:
            parts[0].merge(part)
        # Exact counts are in files of their own rank until they are merged.
        comm.synchronize()
        return parts[0] if parts else None

    def _add_components(self, names: list[str], figures: dict) -> None:
        """Read the maps a second time, with the thresholds of the whole dataset."""
        errors = comm.all_gather(None if self._maps is None else self._maps.error)
        error = next(filter(None, errors), None)
        # Components are the pixels with score > threshold, so the cut is just below the best score.
        thresholds = {name: found.get("best_f1_cut") for name, found in figures.items()}
        thresholds = comm.all_gather(thresholds)[0]
        counted = {name: ComponentMetrics(self._track) for name in names}
        false: dict[str, list[dict]] = {name: [] for name in names}
        seen, truth = None, None
        maps = self._maps if self._maps and not error else ()
        with Progress(f"{self.dataset_name}: components of", self._counts["images"]) as progress:
            for image_id, label, name, score in maps:
                if (
                    label is not seen
                ):  # the scores of an image follow each other and share its label
                    seen, truth = label, GroundTruth.of(label, TRACKS[self._track].min_truth)
                    if comm.is_main_process():
                        progress.update()
                if thresholds[name] is None:
                    continue
                found = counted[name].update(score, label, thresholds[name], truth=truth)["false"]
                if found is not None:
                    false[name] = _largest([*false[name], {"image_id": image_id, **found}])
        for name in names:
            parts, others = comm.gather(counted[name]), comm.gather(false[name])
            if not comm.is_main_process():
                continue
            if error or thresholds[name] is None:
                why = error or "component figures need anomaly and known pixels for a threshold"
                figures[name].update(
                    dict.fromkeys((*COMPONENT_FIGURES, "components_at")), component_why=why
                )
                continue
            for part in parts[1:]:
                parts[0].merge(part)
            self._false_components[name] = _largest([f for part in others for f in part])
            found = parts[0].compute()
            figures[name].update({key: found[key] for key in COMPONENT_FIGURES})
            figures[name]["components_at"] = _stated_components(found)
            figures[name]["component_why"] = found.get("why")

    def _gather_images(self) -> None:
        records, counts = comm.gather(self.per_image), comm.gather(self._counts)
        galleries = comm.gather(self._gallery)
        if not comm.is_main_process():
            return
        self.per_image = sorted((r for part in records for r in part), key=lambda r: r["image_id"])
        self._counts = {key: sum(part[key] for part in counts) for key in self._counts}
        for other in galleries[1:]:
            self._gallery.merge(other)

    def _write(self, curves: dict, warnings: dict[str, list[str]]) -> None:
        record = {
            "kind": "anomaly",
            "dataset": self.dataset_name,
            "method": self._method,
            "labels": self._label_identity,
            "result": self.result,
            "score_warnings": warnings,
            "per_image": self.per_image,
            "curves": curves,
            "false_components": self._false_components,
            "failures": self._gallery.save(self._folder / "failures") if self._keep_images else [],
        }
        path = self._folder / "result.json"
        if self._method is not None and path.is_file():
            record = add_scores(read_record(path), record)
            self.result = record["result"]
        write_json(path, record)


def _photo(input_: dict, label: np.ndarray) -> np.ndarray:
    """Return the photograph at the label's size, from the input's tensor or else from its file."""
    image = input_.get("image")
    photo = read_image(input_["file_name"]) if image is None else to_numpy(image).transpose(1, 2, 0)
    if photo.shape[:2] != label.shape:
        photo = cv2.resize(photo, label.shape[::-1], interpolation=cv2.INTER_AREA)
    return photo


def _largest(components: list[dict]) -> list[dict]:
    """Keep the largest false components of several images, at most one per image."""
    return sorted(components, key=lambda c: (-c["area"], c["image_id"]))[:FALSE_COMPONENTS]


def _stated_components(found: dict) -> dict | None:
    """Return counts, and F1 in percent, at `STATED_OVERLAPS`; None where there is no F1."""
    if found["F1"] is None:
        return None
    stated = {}
    for overlap in STATED_OVERLAPS:
        index = int(np.argmin(np.abs(100 * OVERLAPS - overlap)))
        counts = {name.upper(): found[name][index] for name in ("tp", "fn", "fp")}
        stated[str(overlap)] = {"F1": 100 * found["F1"][index], **counts}
    return stated


def _short_curve(curve: dict | None) -> dict | None:
    if curve is None:
        return None
    names = {"recall": "recall", "precision": "precision", "false_positive_rate": "fpr"}
    return {short: [round(float(v), 5) for v in curve[name]] for name, short in names.items()}


def _union(lists) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))


def _flattened(lists: dict[str, list]) -> list:
    return [entry for entries in lists.values() for entry in entries]


def _percent(value):
    if isinstance(value, (list, tuple)):
        return [_percent(entry) for entry in value]
    return None if value is None or not np.isfinite(value) else 100 * float(value)


def _score_entry(found: dict) -> dict:
    """One score's part of results.json, in percent; a missing figure is None, with `why`."""
    keys = [k for k in PIXEL_FIGURES + COMPONENT_FIGURES if k in found]
    entry = {key: _percent(found[key]) for key in keys}
    entry.update({key: _percent(found[key]) for key in found if key.endswith("_bounds")})
    if "components_at" in found:
        entry["components_at"] = found["components_at"]
    entry["infinite_pixels"] = found["infinite_pixels"]
    entry["best_f1_threshold"] = found.get("best_f1_threshold")
    points = found.get("at_tpr") or {}
    entry["tpr_thresholds"] = {f"{100 * r:g}": at["threshold"] for r, at in points.items()}
    reasons = [found.get("why"), found.get("component_why")]
    if any(value is None for value in entry.values()):
        entry["why"] = "; ".join(r for r in reasons if r) or "undefined for these labels"
    return entry


def _flat(scores: dict) -> dict:
    shown = ("auprc", "fpr95", "auroc", *COMPONENT_FIGURES)
    return {
        f"{name}.{key}": entry[key]
        for name, entry in scores.items()
        for key in shown
        if entry.get(key) is not None
    }
