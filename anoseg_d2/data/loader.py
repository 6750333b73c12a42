"""Data loaders: an endless training stream that can be entered anywhere, and sharded test sets."""

import itertools
import logging
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from anoseg_d2.data import builtin
from anoseg_d2.data.dataset_mapper import AnosegDatasetMapper

__all__ = ["TrainingStream", "build_test_loader", "build_train_loader", "training_dicts"]

logger = logging.getLogger(__name__)

# A worker process takes seconds to start: less than this many images read faster without it.
IMAGES_PER_WORKER = 50


class TrainingStream(Sampler):
    """Batches of (sample number, image index), each epoch in a new order.

    Sample n of a run is image `permutation(n // size)[n % size]`, whatever the number of processes,
    so batch t can be computed without the t before it: a resumed run continues where it stopped.
    Each process takes its own part of every batch.

    Args:
        size: number of training images.
        batch_size: of all processes together.
        seed: of the run, the same in all processes.
        start: number of batches already taken; may be set until iteration begins.
        rank, world_size: of this process; None asks detectron2's `comm`.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ):
        self.size, self.batch_size, self.seed, self.start = size, batch_size, seed, start
        self.rank = comm.get_rank() if rank is None else rank
        self.world_size = comm.get_world_size() if world_size is None else world_size
        if batch_size < 1 or batch_size % self.world_size:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {batch_size}; it must be a multiple of the "
                f"{self.world_size} processes"
            )

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        own = self.batch_size // self.world_size
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for batch in itertools.count(self.start):
            first = batch * self.batch_size + self.rank * own
            items = []
            for number in range(first, first + own):
                if number // self.size != epoch:
                    epoch = number // self.size
                    order = self.permutation(epoch)
                items.append((number, int(order[number % self.size])))
            yield items

    def permutation(self, epoch: int) -> np.ndarray:
        """Return the order of the images in an epoch, (size,) int64."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.size)


class _MappedDicts(Dataset):
    """Dataset dicts behind a mapper; training items are asked for by (number, index)."""

    def __init__(self, dicts: Sequence[dict], mapper, seed: int | None = None):
        self.dicts, self.mapper, self.seed = dicts, mapper, seed

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, item):
        if self.seed is None:
            return self.mapper(self.dicts[item])
        number, index = item
        return self.mapper({**self.dicts[index], "sample": (self.seed, number, index)})


def training_dicts(cfg) -> list[dict]:
    """List the images of DATASETS.TRAIN, checked against the model's classes.

    Raises:
        ValueError: no set named, an unknown one, one for evaluation only, or one whose classes
            are not the model's.
    """
    if not cfg.DATASETS.TRAIN:
        raise ValueError(f"DATASETS.TRAIN is empty; known sets: {_known_sets()}")
    for name in cfg.DATASETS.TRAIN:
        _check_classes(cfg, name)
    if cfg.INPUT.CUT_PASTE.ENABLED and not cfg.MODEL.EOMT.ANOMALY_CLASS:
        raise ValueError(
            "INPUT.CUT_PASTE.ENABLED pastes anomalies, but MODEL.EOMT.ANOMALY_CLASS is False; set "
            "it True, or paste nothing"
        )
    pasted = any("anomaly_id" in _metadata(n).as_dict() for n in cfg.DATASETS.TRAIN)
    if cfg.MODEL.EOMT.ANOMALY_CLASS and not pasted and not cfg.INPUT.CUT_PASTE.ENABLED:
        logger.warning(
            "MODEL.EOMT.ANOMALY_CLASS is on, but none of DATASETS.TRAIN %s has pasted anomalies "
            "and INPUT.CUT_PASTE.ENABLED is off: the anomaly class will see no example",
            cfg.DATASETS.TRAIN,
        )
    return [entry for name in cfg.DATASETS.TRAIN for entry in DatasetCatalog.get(name)]


def build_train_loader(cfg, mapper=None, *, start: int = 0) -> DataLoader:
    """Build the endless training loader.

    Args:
        cfg: config; DATASETS.TRAIN, SOLVER.IMS_PER_BATCH (of all processes together), SEED
            (negative: random, shared by the processes) and DATALOADER.NUM_WORKERS are read.
        mapper: None for `AnosegDatasetMapper(cfg, True)`.
        start: number of batches already taken. A trainer that learns it later, as on resume,
            sets `loader.batch_sampler.start` before it iterates.
    Returns:
        loader of lists, this process's part of each batch.
    Raises:
        FileNotFoundError, ValueError: a set is not there, not complete, or does not fit.
    """
    dicts = training_dicts(cfg)
    mapper = AnosegDatasetMapper(cfg, True) if mapper is None else mapper
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    # A step takes SOLVER.ACCUMULATION of these batches.
    batch_size = cfg.SOLVER.IMS_PER_BATCH // cfg.SOLVER.ACCUMULATION
    stream = TrainingStream(len(dicts), batch_size, seed, start)
    return DataLoader(
        _MappedDicts(dicts, mapper, seed),
        batch_sampler=stream,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=_as_list,
        worker_init_fn=_start_worker,
        generator=torch.Generator().manual_seed(seed),  # leaves torch's global state alone
        pin_memory=torch.cuda.is_available(),
    )


def build_test_loader(cfg, name: str, mapper=None) -> DataLoader:
    """Build the loader of one evaluation set: batches of one, each image once over all processes.

    Args:
        cfg: config; DATALOADER.NUM_WORKERS is read, and is the most; a small set has fewer.
        name: registered dataset.
        mapper: None for `AnosegDatasetMapper(cfg, False)`.
    Raises:
        FileNotFoundError, ValueError: the set is unknown, not there, or not complete.
    """
    _metadata(name)
    dicts = DatasetCatalog.get(name)
    workers = min(cfg.DATALOADER.NUM_WORKERS, len(dicts) // IMAGES_PER_WORKER)
    mapper = AnosegDatasetMapper(cfg, False) if mapper is None else mapper
    return DataLoader(
        _MappedDicts(dicts, mapper),
        batch_size=1,
        sampler=InferenceSampler(len(dicts)),
        num_workers=workers,
        collate_fn=_as_list,
        worker_init_fn=_start_worker,
    )


def _as_list(batch: list) -> list:
    return batch


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # workers are the parallelism


def _known_sets() -> str:
    return ", ".join(sorted(builtin.DATASETS))


def _metadata(name: str):
    if name not in DatasetCatalog:
        raise ValueError(
            f"unknown dataset {name!r}; known: {_known_sets()}. A dataset of your own is "
            "registered by a card in DATASETS.CARDS."
        )
    return MetadataCatalog.get(name)


def _check_classes(cfg, name: str) -> None:
    metadata = _metadata(name)
    if metadata.get("evaluator_type") != "closed_set":
        raise ValueError(
            f"DATASETS.TRAIN has {name!r}, which has no classes to learn; sets to train on: "
            + ", ".join(n for n, d in builtin.DATASETS.items() if d.evaluator_type == "closed_set")
        )
    classes = len(metadata.stuff_classes)
    if classes != cfg.MODEL.EOMT.NUM_CLASSES:
        raise ValueError(
            f"MODEL.EOMT.NUM_CLASSES is {cfg.MODEL.EOMT.NUM_CLASSES}, but {name!r} has {classes} "
            "known classes"
        )
    if metadata.get("anomaly_id") is not None and not cfg.MODEL.EOMT.ANOMALY_CLASS:
        raise ValueError(
            f"{name!r} has pasted anomalies, but MODEL.EOMT.ANOMALY_CLASS is False; set it True, "
            "or train on the plain set"
        )
