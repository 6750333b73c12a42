"""Log a run's changes from the default config, its data and its parameters."""

import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import detectron2
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from tabulate import tabulate
from torch import nn

import anoseg_d2
from anoseg_d2.config import changed_keys
from anoseg_d2.modeling.lora import lora_state_dict
from anoseg_d2.utils.cli import set_verbosity
from anoseg_d2.utils.files import write_atomic

logger = logging.getLogger(__name__)

LOGGERS = ("detectron2", "fvcore", "anoseg_d2")


def set_up_run(cfg, *, verbosity: int = 0, training: bool = True) -> None:
    """Take the place of detectron2's `default_setup`: log, seed, and OUTPUT_DIR/config.yaml.

    The log starts with the command and with what the config changes, instead of with every key and
    the environment; these are in config.yaml, and in the log after `--verbose`.

    Args:
        cfg: config node.
        verbosity: -1 warnings only on the terminal, 0, or 1 with debugging output; log.txt has
            everything but the last in any case.
        training: else evaluation, for which cuDNN does not search for the fastest kernels.
    """
    set_verbosity(verbosity)
    rank = comm.get_rank()
    # Colours are for people; files and pipes get plain text, and a daemon has no stream at all.
    color = sys.stdout is not None and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    terminal = {-1: logging.WARNING, 0: logging.INFO, 1: logging.DEBUG}[verbosity]
    for name in LOGGERS:
        for handler in setup_logger(cfg.OUTPUT_DIR, rank, name=name, color=color).handlers:
            on_terminal = handler.stream in (sys.stdout, sys.stderr)
            handler.setLevel(terminal if on_terminal else min(terminal, logging.INFO))
            if on_terminal:
                # detectron2 logs a traceback of its own; the command prints the message.
                handler.addFilter(lambda r: not str(r.msg).startswith("Exception during training"))
    versions = {"anoseg_d2": anoseg_d2, "detectron2": detectron2, "torch": torch}
    said = ", ".join(f"{name} {module.__version__}" for name, module in versions.items())
    where = cfg.MODEL.DEVICE
    if torch.device(where).type == "cuda":
        where = f"{where} ({torch.cuda.get_device_name(where)})"
    logger.info("%s, %d process(es) on %s", said, comm.get_world_size(), where)
    logger.info("Command: %s", " ".join(sys.argv))
    if verbosity > 0:  # collecting it takes a second, and imports what warns
        logger.debug("Environment:\n%s", collect_env_info())
    lines = [f"  {key}: {value!r}" for key, value in changed_keys(cfg).items()]
    logger.info("Config, where it differs from the defaults:\n%s", "\n".join(lines))
    if comm.is_main_process():
        write_atomic(Path(cfg.OUTPUT_DIR, "config.yaml"), cfg.dump().encode())
        logger.debug("The whole config:\n%s", cfg.dump())
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    torch.backends.cudnn.benchmark = bool(training and cfg.CUDNN_BENCHMARK)


def log_data(train: Iterable[str], test: Iterable[str]) -> None:
    """Log use, name, image count and folder of each dataset."""
    rows = []
    for use, names in (("train", train), ("test", test)):
        for name in names:
            files = [str(entry["file_name"]) for entry in DatasetCatalog.get(name)]
            folder = os.path.commonpath([os.path.dirname(f) or "." for f in files]) if files else ""
            rows.append([use, name, len(files), folder])
    logger.info("Data:\n%s", tabulate(rows, headers=["", "dataset", "images", "folder"]))


def parameter_table(model: nn.Module) -> str:
    """Return a table of total, trainable and adapter parameters and their training memory.

    Gradients and AdamW's two moments are counted at 4 bytes each; activations are not.
    """
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    adapters = sum(value.numel() for value in lora_state_dict(model).values())
    rows = [
        [name, f"{count:,}", f"{100 * count / max(total, 1):.2f} %", memory]
        for name, count, memory in (
            ("all parameters", total, ""),
            ("trainable", trainable, f"{12 * trainable / 2**20:,.1f} MiB"),
            ("only LoRA adapters", adapters, f"{12 * adapters / 2**20:,.1f} MiB"),
        )
    ]
    return tabulate(rows, headers=["", "parameters", "fraction", "gradients + AdamW state"])
