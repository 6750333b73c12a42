"""Compute mIoU, accuracy and calibration from integer counts that add over ranks.

Convention: a prediction is the argmax over only the K known classes. The mean IoU runs over the
classes that occur in the labels (or over the metadata's `present_classes`); a prediction of a class
that never occurs counts as an error of the true class. `mIoU_union` is the other convention in use:
such a class has an IoU of 0 and is part of the mean. Void and pasted-anomaly pixels are left out.
"""

from collections import OrderedDict

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from anoseg_d2.data.label_rules import load_label
from anoseg_d2.evaluation.run_folder import dataset_folder, write_record
from anoseg_d2.evaluation.samples import sampled_files, save_sample
from anoseg_d2.evaluation.streaming.keys import to_numpy

# Confidences are summed as integer multiples of this, so the order of images changes no sum.
_CONFIDENCE_STEP = 2.0**-24


class ClosedSetCounts:
    """Confusion counts and calibration bins.

    Args:
        num_classes: K.
        num_bins: equal-width bins of confidence in 0..1.
    """

    def __init__(self, num_classes: int, num_bins: int = 15):
        self.num_classes = num_classes
        self.confusion = np.zeros((num_classes, num_classes), np.int64)
        self.bin_pixels = np.zeros(num_bins, np.int64)
        self.bin_correct = np.zeros(num_bins, np.int64)
        self.bin_confidence = np.zeros(num_bins, np.int64)
        self.images = 0

    def update(self, sem_seg: np.ndarray, label: np.ndarray, confidence=None) -> None:
        """Count one image.

        Args:
            sem_seg: (H, W) integers in 0..K-1.
            label: (H, W) uint8 train ids; values of K and over are left out.
            confidence: (H, W) floats in 0..1, or None: no calibration from this image.
        """
        known = label < self.num_classes
        truth, predicted = label[known].astype(np.int64), sem_seg[known].astype(np.int64)
        if predicted.size and not 0 <= predicted.min() <= predicted.max() < self.num_classes:
            found = f"{predicted.min()}..{predicted.max()}"
            raise ValueError(f"predicted classes {found} are not in 0..{self.num_classes - 1}")
        cells = np.bincount(truth * self.num_classes + predicted, minlength=self.confusion.size)
        self.confusion += cells.reshape(self.confusion.shape)
        self.images += 1
        if confidence is None:
            return
        confidence, correct = confidence[known].astype(np.float64), truth == predicted
        if confidence.size and not (confidence.min() >= -1e-5 and confidence.max() <= 1 + 1e-5):
            raise ValueError(f"confidences {confidence.min()}..{confidence.max()} are not in 0..1")
        count = self.bin_pixels.size
        bins = np.clip((confidence * count).astype(np.int64), 0, count - 1)  # 1.0: last bin
        steps = np.rint(confidence / _CONFIDENCE_STEP)
        self.bin_pixels += np.bincount(bins, minlength=count)
        self.bin_correct += np.bincount(bins[correct], minlength=count)
        # Exact: a bin's sum stays an integer under 2**53 up to 5e8 pixels of one image.
        self.bin_confidence += np.bincount(bins, weights=steps, minlength=count).astype(np.int64)

    def merge(self, other: "ClosedSetCounts") -> None:
        """Add the counts of other images."""
        if other.confusion.shape != self.confusion.shape:
            raise ValueError(f"cannot add {other.num_classes} classes to {self.num_classes}")
        for name in ("confusion", "bin_pixels", "bin_correct", "bin_confidence", "images"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


def closed_set_figures(counts: ClosedSetCounts, class_names, present=None) -> dict:
    """Turn counts into percentages.

    Args:
        counts: of the whole dataset.
        class_names: K names.
        present: train ids that the means run over; None takes those that occur in the labels.
    Returns:
        `mIoU`, `mIoU_union`, `pixel_accuracy`, `mean_accuracy`, `ECE` in 0..100 or None, `IoU`
        {name: 0..100 or None for a class outside of the mean}, `classes` (number in the mean),
        `images`, `pixels`, and `why` where a figure is None.
    """
    hits = counts.confusion.diagonal().astype(np.float64)
    truth = counts.confusion.sum(axis=1).astype(np.float64)
    union = truth + counts.confusion.sum(axis=0) - hits
    seen = union > 0
    chosen = [int(c) for c in (np.flatnonzero(truth) if present is None else present)]
    chosen = [c for c in chosen if seen[c]]  # `present` may name classes that do not occur
    iou = {c: float(100 * hits[c] / union[c]) for c in chosen}
    recall = [100 * hits[c] / truth[c] for c in chosen if truth[c] > 0]
    used = counts.bin_pixels > 0
    gap = np.abs(counts.bin_confidence * _CONFIDENCE_STEP - counts.bin_correct)[used].sum()
    figures = {
        "mIoU": float(np.mean(list(iou.values()))) if iou else None,
        "mIoU_union": float(100 * np.mean(hits[seen] / union[seen])) if seen.any() else None,
        "pixel_accuracy": float(100 * hits.sum() / truth.sum()) if truth.sum() else None,
        "mean_accuracy": float(np.mean(recall)) if recall else None,
        "ECE": float(100 * gap / counts.bin_pixels.sum()) if used.any() else None,
        "IoU": {name: iou.get(c) for c, name in enumerate(class_names)},
        "classes": len(iou),
        "images": counts.images,
        "pixels": int(truth.sum()),
    }
    if not truth.sum():
        figures["why"] = "no labelled pixel of a known class"
    elif figures["ECE"] is None:
        figures["why"] = "ECE: the predictions carry no confidence"
    return figures


class ClosedSetEvaluator(DatasetEvaluator):
    """Evaluate the segmentation of known classes on one registered dataset.

    Args:
        dataset_name: registered name; its metadata has `stuff_classes` and `label_rule`.
        output_dir: the run's folder; figures go to `inference/<dataset>/result.json` under it.
            None writes nothing.
        keep_images: keep a few images for the report's sheet (needs `output_dir`).
    """

    def __init__(self, dataset_name: str, output_dir=None, *, keep_images: bool = True):
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self.class_names = list(metadata.stuff_classes)
        self._rule = metadata.label_rule
        self._present = metadata.get("present_classes", None)
        self.folder = None if output_dir is None else dataset_folder(output_dir, dataset_name)
        keep_images = keep_images and self.folder is not None
        self._samples = sampled_files(dataset_name) if keep_images else set()
        self.result = None
        self.reset()

    def reset(self):
        """Forget all counts."""
        self.counts = ClosedSetCounts(len(self.class_names))

    def process(self, inputs, outputs):
        """Count a batch: inputs as the test mapper makes them, outputs as the model gives them."""
        for input_, output in zip(inputs, outputs, strict=True):
            label = load_label(input_["sem_seg_file_name"], self._rule)  # at native size
            sem_seg = to_numpy(output["sem_seg"])
            if sem_seg.shape != label.shape:
                where = f"{input_['file_name']}: the prediction is {sem_seg.shape}, the label "
                raise ValueError(f"{where}{input_['sem_seg_file_name']} is {label.shape}")
            confidence = output.get("confidence")
            confidence = None if confidence is None else to_numpy(confidence)
            self.counts.update(sem_seg, label, confidence)
            if input_["file_name"] in self._samples:
                save_sample(self.folder / "images", input_, label, sem_seg, {})

    def evaluate(self):
        """Add the counts of all ranks.

        Returns:
            On rank 0 {"closed_set": {figure: percent}} for detectron2's printing, None elsewhere.
            `result` then holds all of `closed_set_figures`.
        """
        parts = comm.gather(self.counts)
        if not comm.is_main_process():
            return None
        total = ClosedSetCounts(len(self.class_names))
        for part in parts:
            total.merge(part)
        self.result = closed_set_figures(total, self.class_names, self._present)
        if self.folder is not None:
            record = {"kind": "closed_set", "dataset": self.dataset_name, "result": self.result}
            write_record(self.folder, {**record, "confusion": total.confusion.tolist()})
        flat = {k: self.result[k] for k in ("mIoU", "pixel_accuracy", "mean_accuracy", "ECE")}
        flat.update({f"IoU-{name}": value for name, value in self.result["IoU"].items()})
        return OrderedDict(closed_set={k: v for k, v in flat.items() if v is not None})
