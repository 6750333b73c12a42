"""Fixtures that several test modules share."""

import logging
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test touches the network

import pytest
import small_sets
import tiny_models
import torch

small_sets.register_copies()


@pytest.fixture(autouse=True)
def _same_seed_for_every_test():
    torch.manual_seed(0)


@pytest.fixture
def tiny_vit():
    """Factory of a small DINOv2 ViT; see `tiny_models.tiny_vit`."""
    return tiny_models.tiny_vit


@pytest.fixture
def tiny_eomt():
    """Factory of a small EoMT; see `tiny_models.tiny_eomt`."""
    return tiny_models.tiny_eomt


@pytest.fixture
def tiny_batch():
    """Factory of training samples; see `tiny_models.tiny_batch`."""
    return tiny_models.tiny_batch


@pytest.fixture
def tiny_cfg():
    """Factory of a config of a small EoMT; see `tiny_models.tiny_cfg`."""
    return tiny_models.tiny_cfg


@pytest.fixture(autouse=True)
def _no_logging_left_behind():
    """A run set up by a test configures loggers of the process; the next test has them afresh."""
    yield
    for name in ("detectron2", "fvcore", "anoseg_d2"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.NOTSET)


@pytest.fixture
def fresh_loggers():
    """A root logger without handlers during the test, for one that sets up a run."""
    from anoseg_d2.utils import cli

    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    root.handlers = []
    yield
    root.handlers, root.level = before, level
    cli.set_verbosity(0)
