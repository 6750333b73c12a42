"""Build data loaders: an endless training stream that can start anywhere, and sharded test sets."""

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

logger = logging.getLogger(__name__)

# A worker process takes seconds to start; fewer images than this are read faster without one.
IMAGES_PER_WORKER = 50


class TrainingStream(Sampler):
    """Endless batches of (sample number, image index), in a new order each epoch.

    Sample n of a run is image `permutation(n // size)[n % size]` for any number of processes, so
    batch t can be computed without the batches before it, and a resumed run continues where it
    stopped. Each process takes its own part of every batch.

    Args:
        size: number of training images.
        batch_size: images per batch, over all processes.
        seed: seed of the run, the same in all processes.
        start: number of batches already taken; may be changed until iteration begins.
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
                f"SOLVER.IMS_PER_BATCH is {batch_size}, no multiple of {self.world_size} processes"
            )

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        own = self.batch_size // self.world_size
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for batch in itertools.count(self.start):
            first = batch * self.batch_size + self.rank * own
            items = []
            for number in range(first, first + own):
                # A batch may span two epochs, because no image is dropped at the end of one.
                if number // self.size != epoch:
                    epoch = number // self.size
                    order = self.permutation(epoch)
                items.append((number, int(order[number % self.size])))
            yield items

    def permutation(self, epoch: int) -> np.ndarray:
        """Return the order of the images in an epoch, (size,) int64."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.size)


class _MappedDicts(Dataset):
    """Dataset dicts passed through a mapper; training items are indexed by (number, index)."""

    def __init__(self, dicts: Sequence[dict], mapper, seed: int | None = None):
        self.dicts, self.mapper, self.seed = dicts, mapper, seed

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, item):
        # A test image is given by its index alone: nothing about it is random.
        if self.seed is None:
            return self.mapper(self.dicts[item])
        number, index = item
        return self.mapper({**self.dicts[index], "sample": (self.seed, number, index)})


def training_dicts(cfg) -> list[dict]:
    """List the images of DATASETS.TRAIN, checked against the model's classes.

    Raises:
        ValueError: no dataset is named, or one is unknown, is only for evaluation, or has other
            classes than the model.
    """
    if not cfg.DATASETS.TRAIN:
        known = ", ".join(sorted(builtin.DATASETS))
        raise ValueError(f"DATASETS.TRAIN is empty; known datasets: {known}")
    # Labels may hold pasted anomalies if these have a class, or if only RATIO trains.
    learns_anomalies = cfg.MODEL.EOMT.ANOMALY_CLASS or cfg.MODEL.RATIO.ALONE
    for name in cfg.DATASETS.TRAIN:
        _check_classes(cfg, name, learns_anomalies)
    if cfg.INPUT.CUT_PASTE.ENABLED and not learns_anomalies:
        raise ValueError(
            "INPUT.CUT_PASTE.ENABLED pastes anomalies, but MODEL.EOMT.ANOMALY_CLASS is False"
        )
    pasted = any("anomaly_id" in _metadata(n).as_dict() for n in cfg.DATASETS.TRAIN)
    if not pasted and not cfg.INPUT.CUT_PASTE.ENABLED:
        nothing = (
            f"none of DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} has pasted anomalies and "
            "INPUT.CUT_PASTE.ENABLED is False"
        )
        if cfg.MODEL.RATIO.ENABLED or cfg.MODEL.RATIO.ALONE:
            raise ValueError(f"MODEL.RATIO trains on pasted anomalies, but {nothing}")
        if cfg.MODEL.EOMT.ANOMALY_CLASS:
            logger.warning("MODEL.EOMT.ANOMALY_CLASS will not see an example: %s", nothing)
    return [entry for name in cfg.DATASETS.TRAIN for entry in DatasetCatalog.get(name)]


def build_train_loader(cfg, mapper=None, *, start: int = 0) -> DataLoader:
    """Build the endless training loader.

    Args:
        cfg: config; reads DATASETS.TRAIN, SOLVER.IMS_PER_BATCH (over all processes),
            SOLVER.ACCUMULATION, SEED (negative: random, shared by the processes) and
            DATALOADER.NUM_WORKERS.
        mapper: None for `AnosegDatasetMapper(cfg, True)`.
        start: number of batches already taken. A trainer that learns it later, as on resume,
            sets `loader.batch_sampler.start` before iterating.
    Returns:
        loader that yields lists, this process's part of each batch.
    Raises:
        FileNotFoundError, ValueError: a dataset is missing, incomplete, or does not fit the model.
    """
    dicts = training_dicts(cfg)
    mapper = AnosegDatasetMapper(cfg, True) if mapper is None else mapper
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    # One step accumulates the gradients of SOLVER.ACCUMULATION of these batches.
    batch_size = cfg.SOLVER.IMS_PER_BATCH // cfg.SOLVER.ACCUMULATION
    stream = TrainingStream(len(dicts), batch_size, seed, start)
    return DataLoader(
        _MappedDicts(dicts, mapper, seed),
        batch_sampler=stream,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,  # detectron2's models take a list of dicts
        worker_init_fn=_start_worker,
        generator=torch.Generator().manual_seed(seed),  # does not touch torch's global state
        pin_memory=torch.cuda.is_available(),
    )


def build_test_loader(cfg, name: str, mapper=None) -> DataLoader:
    """Build the loader of one evaluation set: batches of one, each image once over all processes.

    Args:
        cfg: config; uses at most DATALOADER.NUM_WORKERS workers, fewer for small datasets.
        name: registered dataset.
        mapper: None for `AnosegDatasetMapper(cfg, False)`.
    Raises:
        FileNotFoundError, ValueError: the dataset is unknown, missing, or incomplete.
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
        collate_fn=list,
        worker_init_fn=_start_worker,
    )


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # the workers themselves already use all cores


def _metadata(name: str):
    if name not in DatasetCatalog:
        raise ValueError(
            f"unknown dataset {name!r}; known: {', '.join(sorted(builtin.DATASETS))}. Register "
            "your own with a card in DATASETS.CARDS."
        )
    builtin.complete_dataset(name)
    return MetadataCatalog.get(name)


def _check_classes(cfg, name: str, learns_anomalies: bool) -> None:
    metadata = _metadata(name)
    builtin.complete_dataset(name, needed=True)
    if metadata.get("evaluator_type") != "closed_set":
        raise ValueError(
            f"DATASETS.TRAIN has {name!r}, which has no classes to learn; datasets to train on: "
            + ", ".join(n for n, d in builtin.DATASETS.items() if d.evaluator_type == "closed_set")
        )
    classes = len(metadata.stuff_classes)
    if classes != cfg.MODEL.EOMT.NUM_CLASSES:
        raise ValueError(
            f"MODEL.EOMT.NUM_CLASSES is {cfg.MODEL.EOMT.NUM_CLASSES}, but {name!r} has {classes}"
        )
    if metadata.get("anomaly_id") is not None and not learns_anomalies:
        raise ValueError(f"{name!r} has pasted anomalies, but MODEL.EOMT.ANOMALY_CLASS is False")
