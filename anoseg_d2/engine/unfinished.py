"""Continue an evaluation that was stopped: datasets it had finished are not evaluated again.

    <output_dir>/inference/unfinished.json    {dataset: [fingerprint, SHA-256 of its result.json]}

The file exists only until all datasets are evaluated, so an evaluation that was completed is
always repeated in full. Figures are kept only if everything that they depend on is the same: the
tensors in the model, the config, the images and labels and how these are read, and the code.
"""

import hashlib
import json
import logging
import sys
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from torch import nn

import anoseg_d2
from anoseg_d2.checkpoint.metadata import model_tensors, weights_hash
from anoseg_d2.engine.evaluate import versions
from anoseg_d2.evaluation.run_folder import dataset_folder
from anoseg_d2.utils.config_files import flat_items
from anoseg_d2.utils.files import file_hash, read_json, write_json

__all__ = ["UnfinishedEvaluation"]

logger = logging.getLogger(__name__)

# Where figures go, and which other datasets are evaluated or trained on, changes no figure.
_FREE_KEYS = ("OUTPUT_DIR", "DATASETS.TEST", "DATASETS.TRAIN")


class UnfinishedEvaluation:
    """The datasets that an evaluation in OUTPUT_DIR has finished so far.

    Every method is called on all ranks; the main process reads and writes the file.

    Args:
        cfg: config node.
        model: with the weights that are evaluated.
    """

    def __init__(self, cfg, model: nn.Module):
        self._cfg, self._model = cfg, model
        self._path = Path(cfg.OUTPUT_DIR) / "inference" / "unfinished.json"
        self._tensors = weights_hash(model_tensors(model)) if comm.is_main_process() else ""
        self._fingerprints: dict[str, str] = {}

    def has(self, dataset: str) -> bool:
        """Whether an earlier process finished this dataset, and its figures still hold."""
        held = False
        if comm.is_main_process():
            # Taken before the evaluation: a file that changes in the middle of it is noticed.
            self._fingerprints[dataset] = self._fingerprint(dataset)
            result = self._result(dataset)
            noted = self._read().get(dataset)
            held = result.is_file() and noted == [self._fingerprints[dataset], file_hash(result)]
        return comm.all_gather(held)[0]

    def add(self, dataset: str) -> None:
        """Note that this dataset, which `has` was asked for before, is evaluated."""
        # An evaluator of the user's own leaves no figures that could be kept.
        if comm.is_main_process() and self._result(dataset).is_file():
            entry = [self._fingerprints[dataset], file_hash(self._result(dataset))]
            write_json(self._path, {**self._read(), dataset: entry})

    def end(self) -> None:
        """Forget all datasets: the evaluation is complete."""
        if comm.is_main_process():
            self._path.unlink(missing_ok=True)

    def _result(self, dataset: str) -> Path:
        return dataset_folder(self._cfg.OUTPUT_DIR, dataset) / "result.json"

    def _read(self) -> dict:
        try:
            found = read_json(self._path)
        except FileNotFoundError:
            return {}
        except ValueError as error:
            logger.warning("Evaluating every dataset again: %s", error)
            return {}
        return found if isinstance(found, dict) else {}

    def _fingerprint(self, dataset: str) -> str:
        """Digest of everything that the figures of a dataset depend on."""
        images, files = DatasetCatalog.get(dataset), {}
        for image in images:
            for path in (image["file_name"], image.get("sem_seg_file_name")):
                if path:
                    files[path] = file_hash(path)
        facts = {
            "tensors": self._tensors,
            "score_statistics": getattr(self._model, "score_statistics", None),
            "config": {k: v for k, v in flat_items(self._cfg) if k not in _FREE_KEYS},
            "versions": versions(),
            "code": _code_hashes(self._cfg.MODEL.IMPORTS),
            "metadata": MetadataCatalog.get(dataset).as_dict(),
            "images": images,
            "files": files,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode()).hexdigest()


def _code_hashes(imports) -> dict[str, str]:
    """Hashes of this package's source files and of the modules that the user imports."""
    files = sorted(Path(anoseg_d2.__file__).parent.rglob("*.py"))
    files += [Path(f) for name in imports if (f := getattr(sys.modules[name], "__file__", None))]
    return {str(file): file_hash(file) for file in files}
