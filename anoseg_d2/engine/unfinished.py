"""Skip the datasets that an interrupted evaluation has finished."""

import hashlib
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from anoseg_d2.checkpoint.metadata import model_tensors, weights_hash
from anoseg_d2.engine.evaluate import versions
from anoseg_d2.utils.config_files import flat_items
from anoseg_d2.utils.files import read_json, write_json


class UnfinishedEvaluation:
    """The datasets that an evaluation in OUTPUT_DIR has `finished` so far.

    They are noted in `inference/unfinished.json` until all are evaluated, so an evaluation that was
    completed is always repeated in full. Figures are kept for the same weights, config, versions,
    lists of images and label rules. What the images show is not compared: reading them all would
    take as long as the evaluation.

    Every method is called on all ranks; only the main process reads and writes the file.

    Args:
        cfg: config node.
        model: with the weights that are evaluated.
        resume: take up what is noted.
    """

    def __init__(self, cfg, model, resume: bool):
        self.finished: list[str] = []
        self._path = Path(cfg.OUTPUT_DIR) / "inference" / "unfinished.json"
        self._key = None
        if resume and comm.is_main_process():
            # A folder may be moved; whatever else differs may change a figure.
            config = [item for item in flat_items(cfg) if item[0] != "OUTPUT_DIR"]
            data = [(DatasetCatalog.get(n), MetadataCatalog.get(n)) for n in cfg.DATASETS.TEST]
            facts = (config, data, versions(), getattr(model, "info", None))
            text = f"{weights_hash(model_tensors(model))} {facts!r}"
            self._key = hashlib.sha256(text.encode()).hexdigest()
            noted = read_json(self._path) if self._path.is_file() else {}
            if noted.get("key") == self._key:
                self.finished = noted["finished"]
        self.finished = comm.all_gather(self.finished)[0]  # as the main process has it

    def add(self, dataset: str) -> None:
        """Record that this dataset is evaluated."""
        self.finished.append(dataset)
        if self._key is not None:
            write_json(self._path, {"key": self._key, "finished": self.finished})

    def end(self) -> None:
        """Forget all datasets: the evaluation is complete."""
        if self._key is not None:
            self._path.unlink(missing_ok=True)
