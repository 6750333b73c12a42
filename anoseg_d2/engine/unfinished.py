"""Skip the datasets that an interrupted evaluation has finished.

    <output_dir>/inference/unfinished.json    {dataset: what its figures depend on, as a hash}

The file exists only until all datasets are evaluated, so an evaluation that was completed is
always repeated in full.
"""

import hashlib
import json
import logging
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from anoseg_d2.checkpoint.metadata import model_tensors, weights_hash
from anoseg_d2.engine.evaluate import versions
from anoseg_d2.evaluation.run_folder import dataset_folder
from anoseg_d2.modeling.eomt import EoMT
from anoseg_d2.utils.config_files import flat_items
from anoseg_d2.utils.files import read_json, write_json

__all__ = ["UnfinishedEvaluation"]

logger = logging.getLogger(__name__)

# Where figures go, and which other datasets are evaluated or trained on, changes no figure.
_FREE_KEYS = ("OUTPUT_DIR", "DATASETS.TEST", "DATASETS.TRAIN")


class UnfinishedEvaluation:
    """The datasets that an evaluation in OUTPUT_DIR has finished so far.

    Figures are kept for the same weights, config, versions, list of images and label rule. What
    the images show is not compared: reading them all would take as long as the evaluation.

    Every method is called on all ranks; only the main process reads and writes the file.

    Args:
        cfg: config node.
        model: with the weights that are evaluated.
    """

    def __init__(self, cfg, model):
        self._folder, self._finished = cfg.OUTPUT_DIR, {}
        self._path = Path(cfg.OUTPUT_DIR) / "inference" / "unfinished.json"
        if not comm.is_main_process():
            return
        self._facts = {
            "tensors": weights_hash(model_tensors(model)),
            "info": vars(model.info) if isinstance(model, EoMT) else None,
            "config": {k: v for k, v in flat_items(cfg) if k not in _FREE_KEYS},
            "versions": versions(),
        }
        if self._path.is_file():
            try:
                self._finished = dict(read_json(self._path))
            except (ValueError, TypeError) as error:
                logger.warning("Evaluating every dataset again: %s: %s", self._path, error)

    def has(self, dataset: str) -> bool:
        """Whether an earlier process finished this dataset, and its figures still hold."""
        held = False
        if comm.is_main_process():
            same = self._finished.get(dataset) == self._hash(dataset)
            held = same and (dataset_folder(self._folder, dataset) / "result.json").is_file()
        return comm.all_gather(held)[0]

    def add(self, dataset: str) -> None:
        """Note that this dataset is evaluated."""
        if comm.is_main_process():
            self._finished[dataset] = self._hash(dataset)
            write_json(self._path, self._finished)

    def end(self) -> None:
        """Forget all datasets: the evaluation is complete."""
        if comm.is_main_process():
            self._path.unlink(missing_ok=True)

    def _hash(self, dataset: str) -> str:
        about = {"images": DatasetCatalog.get(dataset), **MetadataCatalog.get(dataset).as_dict()}
        text = json.dumps({**self._facts, "data": about}, sort_keys=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()
