"""MODEL.WEIGHTS of a config: what it stands for, and loading it."""

import logging

from torch import nn

from anoseg_d2.checkpoint import Checkpoint, load_into, read_checkpoint
from anoseg_d2.checkpoint.export import add_delta
from anoseg_d2.modeling.vit import BACKBONES, vit_size

__all__ = ["load_weights", "resolve_weights", "restore_statistics", "with_delta_base"]

logger = logging.getLogger(__name__)


def resolve_weights(cfg) -> str:
    """MODEL.WEIGHTS, with `dinov2` and `dinov3` spelled out for the configured size.

    Raises:
        ValueError: they are named for a model with the other backbone.
    """
    weights, node = cfg.MODEL.WEIGHTS, cfg.MODEL.EOMT
    if weights not in BACKBONES:
        return weights
    if weights != node.BACKBONE:
        raise ValueError(
            f"MODEL.WEIGHTS is {weights}, MODEL.EOMT.BACKBONE is {node.BACKBONE}: set both alike"
        )
    size = vit_size(node.SIZE).timm_name
    if weights == "dinov3":
        return f"timm://vit_{size}_patch16_dinov3_qkvb.lvd1689m"
    registers = "_reg4" if node.NUM_REGISTERS else ""
    return f"timm://vit_{size}_patch14{registers}_dinov2.lvd142m"


def with_delta_base(cfg, checkpoint: Checkpoint) -> Checkpoint:
    """Add a checkpoint to MODEL.DELTA_BASE where that is set."""
    if not cfg.MODEL.DELTA_BASE:
        return checkpoint
    return add_delta(checkpoint, read_checkpoint(cfg.MODEL.DELTA_BASE))


def load_weights(cfg, model: nn.Module) -> None:
    """Load MODEL.WEIGHTS into `model`; the log says what became of every tensor."""
    weights = resolve_weights(cfg)
    if not weights:
        logger.warning("MODEL.WEIGHTS is empty: every tensor keeps its random initialisation")
        return
    checkpoint = with_delta_base(cfg, read_checkpoint(weights))
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
