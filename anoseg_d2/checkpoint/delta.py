"""Recognise released differences to a backbone ("deltas"), and add them to it.

EoMT's authors release their DINOv3 models without DINOv3's own weights: tensors of the encoder are
differences to them, all others are whole.
"""

import logging
from dataclasses import replace

import torch

from anoseg_d2.checkpoint.spec import FORMAT_NAME, Checkpoint

__all__ = ["add_delta", "warn_of_delta"]

logger = logging.getLogger(__name__)


def warn_of_delta(checkpoint: Checkpoint) -> None:
    """Warn if a checkpoint looks like a delta, because the file itself does not state it.

    A trained LayerNorm has gains near 1; those of a difference are near 0.
    """
    gains = [
        tensor
        for name, tensor in checkpoint.state_dict.items()
        if name.startswith("backbone.") and name.endswith(("norm1.weight", "norm2.weight"))
    ]
    if not gains or torch.cat([gain.float().flatten() for gain in gains]).abs().mean() > 0.02:
        return
    logger.warning(
        "%s: the LayerNorm gains of the encoder are near 0. It looks like a delta that is to be "
        "added to other weights: name them in MODEL.DELTA_BASE, or add them once with "
        "`anoseg convert --delta-base`",
        checkpoint.source,
    )


def add_delta(checkpoint: Checkpoint, base: Checkpoint) -> Checkpoint:
    """Add the encoder of a delta checkpoint to the weights that it is a difference to.

    Args:
        checkpoint: a released delta: encoder tensors are differences, all others are whole.
        base: the ViT that it started from, of the same size.
    Raises:
        ValueError: the checkpoint is a whole model of ours, or its encoder tensors have no
            counterpart of the same shape in the base.
    """
    if checkpoint.meta.get("format") == FORMAT_NAME:
        raise ValueError(
            f"{checkpoint.source} was saved whole, so there is nothing to add it to: unset "
            "MODEL.DELTA_BASE (--delta-base)"
        )
    state = dict(checkpoint.state_dict)
    encoder = [name for name in state if name.startswith("backbone.")]
    for name in encoder:
        other = base.state_dict.get(name)
        if other is None and name.endswith((".attn.q_bias", ".attn.v_bias")):
            continue  # zero in DINOv3's released weights, which some files leave out
        if other is None or other.shape != state[name].shape:
            found = "none" if other is None else tuple(other.shape)
            raise ValueError(
                f"{base.source} is not the base of {checkpoint.source}: {name} is "
                f"{tuple(state[name].shape)} in the delta, {found} in the base"
            )
        state[name] = state[name].float() + other.float()
    source = f"{checkpoint.source} + {base.source}"
    spec = replace(checkpoint.spec, heads=checkpoint.spec.heads or base.spec.heads)
    return replace(checkpoint, state_dict=state, spec=spec, source=source)
