"""Evaluate anomaly scores on a dataset as a detectron2 evaluator, with images for the report."""

import functools
import logging
import shutil
import tempfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from anoseg_d2.data.label_rules import load_label
from anoseg_d2.evaluation.components import TRACKS, ComponentMetrics
from anoseg_d2.evaluation.metrics import PixelMetrics
from anoseg_d2.evaluation.run_folder import dataset_folder, write_record
from anoseg_d2.evaluation.samples import sampled_files, save_sample
from anoseg_d2.evaluation.set_figures import (
    COMPONENT_FIGURES,
    TPR_LEVELS,
    score_entry,
    short_curve,
    stated_components,
)
from anoseg_d2.evaluation.streaming.keys import as_floats, to_numpy
from anoseg_d2.utils.cli import Progress
from anoseg_d2.utils.constants import ANOMALY, KNOWN
from anoseg_d2.utils.files import check_name

logger = logging.getLogger(__name__)

CURVE_POINTS = 400
# Folders with this prefix are temporary; what a killed run left is removed by the next one.
KEPT_PREFIX = ".kept-maps-"


class AnomalyEvaluator(DatasetEvaluator):
    """Evaluate anomaly scores on one registered dataset.

    Pixel figures are counted as images pass (see `PixelMetrics`). Component figures need the
    best-F1 threshold of the whole dataset, which is an oracle on the evaluation labels: score maps
    are kept in a temporary folder while images pass, and read a second time at the end.

    Args:
        dataset_name: registered name; its metadata has `label_rule` and perhaps `component_track`,
            "anomaly" or "obstacle", for the sizes below which components do not count.
        score_names: which scores of the model's output to evaluate; None takes all of them.
        output_dir: the run's folder; see `run_folder`. None writes only the temporary maps.
        components: also compute sIoU, PPV and F1 of components.
        exact: `PixelMetrics(exact=True)`.
        keep_images: keep a few images for the report's sheet (needs `output_dir`).
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
    ):
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self.score_names = [check_name(n, "score") for n in score_names] if score_names else None
        self.track = metadata.get("component_track", "anomaly")
        if self.track not in TRACKS:
            raise ValueError(
                f"{dataset_name}: component_track {self.track!r} is none of {', '.join(TRACKS)}"
            )
        self.folder = None if output_dir is None else dataset_folder(output_dir, dataset_name)
        self._rule = metadata.label_rule
        self._components, self._exact = components, exact
        keep_images = keep_images and self.folder is not None
        self._samples = sampled_files(dataset_name) if keep_images else set()
        self._kept: tempfile.TemporaryDirectory | None = None
        self._forget()

    def _forget(self) -> None:
        if self._kept is not None:
            self._kept.cleanup()  # of an evaluation that was broken off
        self._kept = None
        self._pixels: dict[str, PixelMetrics] = {}
        self.counts = {"images": 0, "anomaly_pixels": 0, "known_pixels": 0, "void_pixels": 0}
        self.result = None

    def reset(self):
        """Forget all counts, and remove what an earlier evaluation left in the same folder."""
        self._forget()
        if self.folder is not None and comm.is_main_process():
            for left in self.folder.glob(f"{KEPT_PREFIX}*"):
                logger.info("removing %s, left by a run that was killed", left)
                shutil.rmtree(left, ignore_errors=True)
            shutil.rmtree(self.folder / "images", ignore_errors=True)
            (self.folder / "result.json").unlink(missing_ok=True)
        comm.synchronize()  # no rank may write before rank 0 has removed

    def process(self, inputs, outputs):
        """Count a batch.

        Args:
            inputs: dataset dicts as the test mapper makes them.
            outputs: as the model gives them: `scores` {name: (H, W) floats} and `sem_seg` (H, W),
                at the label's size.
        Raises:
            ValueError: a score is missing, has another size than the label, or has NaN, or a label
                contradicts an earlier one; the message names the image.
        """
        for input_, output in zip(inputs, outputs, strict=True):
            where = input_["file_name"]
            label = load_label(input_["sem_seg_file_name"], self._rule)
            names = self.score_names or list(output["scores"])
            missing = [name for name in names if name not in output["scores"]]
            if missing:
                raise ValueError(
                    f"{where}: the model gives no score {', '.join(missing)}; it gives "
                    f"{', '.join(output['scores'])} (TEST.ANOMALY.SCORES)"
                )
            # Not rounded: the figures depend on the order of the scores, and ties change it.
            scores = {name: as_floats(to_numpy(output["scores"][name]), where) for name in names}
            for name, score in scores.items():
                if score.shape != label.shape:
                    sizes = f"{score.shape}, the label is {label.shape}"
                    raise ValueError(f"{where}: score {name!r} is {sizes}; they must be equal")
            self._count(scores, label, where)
            if where in self._samples:
                sem_seg = output.get("sem_seg")
                save_sample(self.folder / "images", input_, label, sem_seg, scores)

    def _count(self, scores: dict, label: np.ndarray, where: str) -> None:
        """Count one image, and keep its maps for the components."""
        for name, score in scores.items():
            if name not in self._pixels:
                check_name(name, "score")
                self._pixels[name] = PixelMetrics(exact=self._exact, tpr=TPR_LEVELS)
            self._pixels[name].update(score, label, where=where)
        known, anomaly = int((label == KNOWN).sum()), int((label == ANOMALY).sum())
        found = {"images": 1, "anomaly_pixels": anomaly, "known_pixels": known}
        found["void_pixels"] = label.size - known - anomaly
        if self._components:
            if self._kept is None:
                # In the run's folder: the system's place for temporary files is often small.
                if self.folder is not None:
                    self.folder.mkdir(parents=True, exist_ok=True)
                self._kept = tempfile.TemporaryDirectory(prefix=KEPT_PREFIX, dir=self.folder)
            path = Path(self._kept.name, f"{self.counts['images']}.npz")
            np.savez(path, label=label, **{f"score:{n}": s for n, s in scores.items()})
        for key, count in found.items():
            self.counts[key] += count

    def evaluate(self):
        """Add the counts of all ranks and compute.

        Returns:
            On rank 0 {"anomaly": {"<score>.<figure>": percent}} for detectron2's printing, without
            figures that do not exist; None on other ranks. `result` then holds the dataset's part
            of results.json, and `result.json` is in the dataset's folder.
        """
        # Ranks may have seen different scores: one without images has seen none.
        names = list(dict.fromkeys(n for part in comm.all_gather(list(self._pixels)) for n in part))
        figures, curves = {}, {}
        for name in names:
            # One score at a time: rank 0 never holds more than one score's counts of all ranks.
            parts = [part for part in comm.gather(self._pixels.get(name)) if part is not None]
            if comm.is_main_process():
                pixels = functools.reduce(PixelMetrics.merge, parts)
                figures[name], curve = pixels.compute_with_curve(CURVE_POINTS)
                curves[name] = short_curve(curve)
        if self._components:
            self._add_components(names, figures)
        parts = comm.gather(self.counts)
        if not comm.is_main_process():
            return None
        self.counts = {key: sum(part[key] for part in parts) for key in self.counts}
        scores = {name: score_entry(found) for name, found in figures.items()}
        self.result = {
            "scores": scores,
            **self.counts,
            "component_track": self.track,
            "warnings": self._warnings(scores),
        }
        for warning in self.result["warnings"]:
            logger.warning("%s: %s", self.dataset_name, warning)
        if self.folder is not None:
            record = {"kind": "anomaly", "dataset": self.dataset_name, "result": self.result}
            write_record(self.folder, {**record, "curves": curves})
        shown = ("auprc", "fpr95", "auroc", *COMPONENT_FIGURES)
        flat = {f"{name}.{key}": entry.get(key) for name, entry in scores.items() for key in shown}
        return OrderedDict(anomaly={key: v for key, v in flat.items() if v is not None})

    def _add_components(self, names: list[str], figures: dict[str, dict]) -> None:
        """Read the maps a second time, with the thresholds of the whole dataset.

        Args:
            names: of the scores.
            figures: {score: its pixel figures} on rank 0, to which those of components are added.
        """
        # Components are the pixels with score > threshold, so the cut is just below the best score.
        cuts = {name: found.get("best_f1_cut") for name, found in figures.items()}
        cuts = comm.all_gather(cuts)[0]  # only rank 0 has figures
        counted = {name: ComponentMetrics(self.track) for name in names}
        images = self.counts["images"]
        with Progress(f"{self.dataset_name}: components of", images) as progress:
            for number in range(images):
                with np.load(Path(self._kept.name, f"{number}.npz"), allow_pickle=False) as stored:
                    label = stored["label"]
                    # An archive reads one map when it is asked for, so one is in memory at a time.
                    for name in names:
                        if cuts[name] is not None and f"score:{name}" in stored:
                            counted[name].update(stored[f"score:{name}"], label, cuts[name])
                if comm.is_main_process():
                    progress.update()
        if self._kept is not None:
            self._kept.cleanup()
        self._kept = None
        parts = comm.gather(counted)
        for name, entry in figures.items():
            if cuts[name] is None:
                why = "component figures need anomaly and known pixels for a threshold"
                missing = dict.fromkeys((*COMPONENT_FIGURES, "components_at"))
                entry.update(missing, component_why=why)
                continue
            found = functools.reduce(ComponentMetrics.merge, [p[name] for p in parts]).compute()
            entry.update({key: found[key] for key in COMPONENT_FIGURES})
            entry["components_at"] = stated_components(found)
            entry["component_why"] = found.get("why")

    def _warnings(self, scores: dict) -> list[str]:
        """Return what a reader of the figures must know."""
        known, anomaly = self.counts["known_pixels"], self.counts["anomaly_pixels"]
        found = []
        images, expected = self.counts["images"], len(DatasetCatalog.get(self.dataset_name))
        if images != expected:
            found.append(f"{images} of {expected} images were evaluated")
        if anomaly > known > 0:  # anomalies are rare on roads
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
        found += [
            f"{entry['infinite_pixels']} labelled pixels have an infinite {name}; they count as "
            "the highest or lowest score of all"
            for name, entry in scores.items()
            if entry["infinite_pixels"]
        ]
        return found
