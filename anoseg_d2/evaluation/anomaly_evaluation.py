"""Evaluate anomaly scores on a dataset as a detectron2 evaluator, with images for the report."""

import logging
import shutil
from collections import OrderedDict
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from anoseg_d2.data.label_rules import load_label
from anoseg_d2.evaluation.components import TRACKS
from anoseg_d2.evaluation.kept_maps import KEPT_PREFIX, KeptMaps
from anoseg_d2.evaluation.run_folder import dataset_folder, write_record
from anoseg_d2.evaluation.samples import sampled_files, save_sample
from anoseg_d2.evaluation.set_figures import COMPONENT_FIGURES, SetFigures
from anoseg_d2.evaluation.streaming.exact_counts import EXACT_PREFIX
from anoseg_d2.evaluation.streaming.keys import as_floats, to_numpy
from anoseg_d2.utils.files import check_name, remove_abandoned

__all__ = ["AnomalyEvaluator"]

logger = logging.getLogger(__name__)


class AnomalyEvaluator(DatasetEvaluator):
    """Evaluate anomaly scores on one registered dataset.

    Pixel figures are counted as images pass (see `PixelMetrics`). Component figures need the
    best-F1 threshold of the whole dataset, which is an oracle on the evaluation labels: score maps
    are kept in a temporary folder while images pass, and read back once.

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
                f"{dataset_name}: unknown component_track {self.track!r}; known: "
                f"{', '.join(TRACKS)}"
            )
        self.folder = None if output_dir is None else dataset_folder(output_dir, dataset_name)
        self._rule = metadata.label_rule
        self._components, self._exact = components, exact
        keep_images = keep_images and self.folder is not None
        self._samples = sampled_files(dataset_name) if keep_images else set()
        self.figures: SetFigures | None = None
        self.result = None
        self._clear()

    def _clear(self) -> None:
        if self.figures is not None and self.figures.maps is not None:
            self.figures.maps.close()  # of an evaluation that was broken off
        maps = KeptMaps(self.folder) if self._components else None
        place = self.folder if self._exact else None  # the run's disk: /tmp is often small
        self.figures = SetFigures(
            self.dataset_name, self.track, maps, exact=self._exact, spill_dir=place
        )

    def reset(self):
        """Forget all counts, and remove what an earlier evaluation left in the same folder."""
        self._clear()
        if self.folder is not None and comm.is_main_process():
            _remove_litter(self.folder)
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
            scores = self._chosen_scores(output["scores"], label, where)
            self.figures.add(scores, label, where)
            if where in self._samples:
                image_id = str(input_.get("image_id", Path(where).stem))  # a set may lack ids
                sem_seg = output.get("sem_seg")
                save_sample(self.folder / "images", image_id, input_, label, sem_seg, scores)

    def _chosen_scores(self, scores: dict, label, where: str) -> dict:
        names = self.score_names or list(scores)
        missing = [name for name in names if name not in scores]
        if missing:
            raise ValueError(
                f"{where}: the model gives no score {', '.join(missing)}; it gives "
                f"{', '.join(scores)} (TEST.ANOMALY.SCORES)"
            )
        # Not rounded: the figures depend on the order of the scores, and ties change it.
        chosen = {name: as_floats(to_numpy(scores[name]), where) for name in names}
        for name, score in chosen.items():
            if score.shape != label.shape:
                raise ValueError(
                    f"{where}: score {name!r} is {score.shape}, the label is {label.shape}; scores "
                    "must be at the label's size"
                )
        return chosen

    def evaluate(self):
        """Add the counts of all ranks and compute.

        Returns:
            On rank 0 {"anomaly": {"<score>.<figure>": percent}} for detectron2's printing, without
            figures that do not exist; None on other ranks. `result` then holds the dataset's part
            of results.json, and `result.json` is in the dataset's folder.
        """
        scores, curves = self.figures.compute()
        if not comm.is_main_process():
            return None
        self.result = {
            "scores": scores,
            **self.figures.counts,
            "component_track": self.track,
            "warnings": self._warnings(scores),
        }
        for warning in self.result["warnings"]:
            logger.warning("%s: %s", self.dataset_name, warning)
        if self.folder is not None:
            record = {"kind": "anomaly", "dataset": self.dataset_name, "result": self.result}
            write_record(self.folder, {**record, "curves": curves})
        return OrderedDict(anomaly=_flat(scores))

    def _warnings(self, scores: dict) -> list[str]:
        """Return what a reader of the figures must know."""
        counts = self.figures.counts
        known, anomaly = counts["known_pixels"], counts["anomaly_pixels"]
        found = []
        images, expected = counts["images"], len(DatasetCatalog.get(self.dataset_name))
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


def _remove_litter(folder: Path) -> None:
    """Remove temporary files that killed runs left, and nothing else."""
    for pattern in (f"{KEPT_PREFIX}*", f"{EXACT_PREFIX}*"):
        for left in folder.glob(pattern):
            logger.info("removing %s, left by a run that was killed", left)
            shutil.rmtree(left, ignore_errors=True)
    for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        remove_abandoned(place)


def _flat(scores: dict) -> dict:
    shown = ("auprc", "fpr95", "auroc", *COMPONENT_FIGURES)
    return {
        f"{name}.{key}": entry[key]
        for name, entry in scores.items()
        for key in shown
        if entry.get(key) is not None
    }
