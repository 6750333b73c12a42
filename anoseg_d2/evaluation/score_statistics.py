"""Measure mean and spread of scores on known pixels, to put an ensemble on one scale."""

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from anoseg_d2.data.label_rules import load_label
from anoseg_d2.evaluation.streaming.keys import to_numpy


class ScoreStatistics(DatasetEvaluator):
    """Measure every score of a model over the labelled pixels of a closed set.

    Sums add over images and ranks in float64.

    Args:
        dataset_name: registered closed set; void pixels are left out.
    """

    def __init__(self, dataset_name: str):
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self._rule = metadata.label_rule
        self._void = metadata.ignore_label
        self.reset()

    def reset(self):
        """Forget all sums."""
        self._count = 0
        self._sums: dict[str, np.ndarray] = {}

    def process(self, inputs, outputs):
        """Add a batch: inputs as the test mapper makes them, outputs with `scores`."""
        for input_, output in zip(inputs, outputs, strict=True):
            known = load_label(input_["sem_seg_file_name"], self._rule) != self._void
            self._count += int(known.sum())
            for name, score in output["scores"].items():
                values = to_numpy(score)[known].astype(np.float64)  # squares add up to large sums
                sums = np.array([values.sum(), np.square(values).sum()])
                self._sums[name] = self._sums.get(name, 0) + sums

    def evaluate(self) -> dict[str, tuple[float, float]]:
        """Return mean and standard deviation per score, the same on every rank.

        Raises:
            ValueError: the set has no labelled pixel.
        """
        parts = comm.all_gather((self._count, self._sums))  # every rank scores ensembles next
        count = sum(part[0] for part in parts)
        if count == 0:
            raise ValueError(f"{self.dataset_name} has no labelled pixel to measure scores on")
        names = dict.fromkeys(name for _, sums in parts for name in sums)
        result = {}
        for name in names:
            total = sum(sums[name] for _, sums in parts if name in sums)
            mean, square = (total / count).tolist()
            result[name] = (mean, float(np.sqrt(max(square - mean * mean, 0.0))))  # rounding
        return result
