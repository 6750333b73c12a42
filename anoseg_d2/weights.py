"""MODEL.WEIGHTS of a config: what it stands for, and loading it."""

import logging

from torch import nn

from anoseg_d2.checkpoint import Checkpoint, load_into, read_checkpoint

__all__ = ["load_weights", "resolve_weights", "restore_statistics"]

logger = logging.getLogger(__name__)

_TIMM_SIZES = {"S": "small", "B": "base", "L": "large"}


def resolve_weights(cfg) -> str:
    """MODEL.WEIGHTS, with `dinov2` spelled out for the configured size."""
    weights = cfg.MODEL.WEIGHTS
    if weights != "dinov2":
        return weights
    registers = "_reg4" if cfg.MODEL.EOMT.NUM_REGISTERS else ""
    size = _TIMM_SIZES.get(cfg.MODEL.EOMT.SIZE, cfg.MODEL.EOMT.SIZE)
    return f"timm://vit_{size}_patch14{registers}_dinov2.lvd142m"


def load_weights(cfg, model: nn.Module) -> None:
    """Load MODEL.WEIGHTS into `model`; the log says what became of every tensor."""
    weights = resolve_weights(cfg)
    if not weights:
        logger.warning("MODEL.WEIGHTS is empty: every tensor keeps its random initialisation")
        return
    checkpoint = read_checkpoint(weights)
    load_into(
        model,
        checkpoint,
        allow_unused=tuple(cfg.MODEL.ALLOW_UNUSED_WEIGHTS),
        seed=max(cfg.SEED, 0),
    )
    restore_statistics(model, checkpoint)


def restore_statistics(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Take over the score statistics of a checkpoint, so that its ensembles need no measuring."""
    stored = checkpoint.meta.get("score_statistics") or {}
    model.score_statistics = {name: (mean, spread) for name, (mean, spread) in stored.items()}
