"""Convert our checkpoints to the format of Hugging Face's EoMT.

It knows only a linear class head. Cosine and normalised heads divide by a norm that differs from
query to query, so they have no counterpart and are refused.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anoseg_d2.checkpoint.adapters import merge_lora_state
from anoseg_d2.checkpoint.files import write_tensors
from anoseg_d2.checkpoint.formats import split_fused
from anoseg_d2.checkpoint.names import TABLES, from_ours
from anoseg_d2.checkpoint.rules import fold_position_prefix
from anoseg_d2.checkpoint.spec import FORMAT_NAME, Checkpoint, ModelSpec
from anoseg_d2.utils.constants import NO_OBJECT_WEIGHT, PIXEL_MEAN, PIXEL_STD
from anoseg_d2.utils.files import write_atomic, write_json

__all__ = ["to_huggingface", "write_folder"]

logger = logging.getLogger(__name__)


def linear_state(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the weights of a whole EoMT with a linear head, with adapters merged.

    Args:
        checkpoint: any EoMT checkpoint of `read_checkpoint`.
    Raises:
        ValueError: not a whole EoMT, or a head that a linear layer cannot reproduce.
    """
    state, spec = dict(checkpoint.state_dict), checkpoint.spec
    needed = ("query.weight", "class_head.weight", "mask_head.0.weight")
    needed += ("backbone.pos_embed",) if spec.backbone != "dinov3" else ()
    missing = [name for name in needed if name not in state]
    checkpoint.require_whole()
    if missing:
        raise ValueError(
            f"{checkpoint.source} ({checkpoint.format}) is not a whole EoMT, it lacks "
            f"{', '.join(missing)}"
        )
    if spec.has_adapters:
        state = merge_lora_state(state, spec.adapters)
    state |= fold_position_prefix(state, spec.pos_prefix or 0)
    extra = [name for name in state if name.startswith("patch_maps.")]
    for name in extra:
        # Scores that read patch tokens, such as `memory`; no other output depends on them.
        logger.warning("%s: %s is left out, only our format holds it", checkpoint.source, name)
        del state[name]
    head = spec.head or ("linear" if spec.has_bias else "arcface")
    # LogitNorm that is used raw divides by nothing at inference: it is a linear layer then.
    if head != "linear" and spec.head_options.get("inference") != "raw":
        raise ValueError(
            f"{checkpoint.source} has a {head} head, which other formats cannot hold: its logits "
            "are divided by a norm that differs from query to query"
        )
    return state


def to_huggingface(
    checkpoint: Checkpoint,
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Rename an EoMT for transformers' `EomtForUniversalSegmentation` (on DINOv3 `EomtDinov3...`).

    Args:
        checkpoint: see `linear_state`. `spec.num_blocks` must be known.
    Returns:
        tensors for model.safetensors, config.json, preprocessor_config.json.
    Raises:
        ValueError: as in `linear_state`, or the grid is not square, as that class requires.
    """
    state, spec = linear_state(checkpoint), checkpoint.spec
    rows, columns = spec.grid or (0, 0)
    if rows != columns or not rows:
        raise ValueError(
            f"{checkpoint.source} sees a grid of {rows} x {columns} patches; Hugging Face's class "
            "is square only. Evaluate or train it at a square INPUT.CROP_SIZE and save that"
        )
    table = TABLES["huggingface", _variant(spec)]
    split = split_fused(state, spec.swiglu)
    named = {from_ours(name, table): tensor for name, tensor in split.items()}
    # An embedding's weight has no batch dimension.
    positions = named.get("embeddings.position_embeddings.weight")
    if positions is not None:
        named["embeddings.position_embeddings.weight"] = positions[0]
    _fill_absent(named, spec)
    named["attn_mask_probs"] = _mask_probs(checkpoint)
    named["criterion.empty_weight"] = _empty_weight(state)
    return named, _config(checkpoint, state), _preprocessor(spec)


def write_folder(
    folder: Path,
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any],
    card: str,
) -> list[str]:
    """Write the folder that transformers' `from_pretrained` reads.

    Args:
        folder: created if needed.
        state, config, preprocessor: of `to_huggingface`.
        card: text of README.md.
    Returns:
        names of the files.
    """
    write_tensors(state, folder / "model.safetensors")
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", preprocessor)
    write_atomic(folder / "README.md", card.encode())
    return ["README.md", "config.json", "preprocessor_config.json", "model.safetensors"]


def _variant(spec: ModelSpec) -> str:
    """Return the second part of a key of `TABLES`."""
    return "dinov2_gated" if spec.swiglu else spec.backbone


def _fill_absent(named: dict[str, Tensor], spec: ModelSpec) -> None:
    """Add tensors that their model always has, with values that leave the outputs unchanged."""
    width = spec.width
    named.setdefault("embeddings.register_tokens", torch.zeros(1, 0, width))
    if spec.backbone == "dinov3":
        return
    # Ones and zeros: what a missing layer scale or bias does.
    for block in range(spec.depth):
        for part in (1, 2):
            named.setdefault(f"layers.{block}.layer_scale{part}.lambda1", torch.ones(width))
        for part in ("q_proj", "k_proj", "v_proj"):
            named.setdefault(f"layers.{block}.attention.{part}.bias", torch.zeros(width))


def _mask_probs(checkpoint: Checkpoint) -> Tensor:
    """Return how strongly each query block masks attention at inference: as read, or 0."""
    blocks = checkpoint.spec.num_blocks
    if not blocks:
        raise ValueError(
            f"{checkpoint.source} does not say how many query blocks it has (--num-blocks)"
        )
    return torch.tensor(checkpoint.spec.mask_probs or [0.0] * blocks)


def _empty_weight(state: Mapping[str, Tensor]) -> Tensor:
    weight = torch.ones(state["class_head.weight"].shape[0])
    weight[-1] = NO_OBJECT_WEIGHT  # as both codes initialise it; only their losses read it
    return weight


def _config(checkpoint: Checkpoint, state: Mapping[str, Tensor]) -> dict[str, Any]:
    spec, hidden = checkpoint.spec, state["backbone.blocks.0.mlp.fc1.weight"].shape[0]
    labels = _labels(checkpoint, state["class_head.weight"].shape[0] - 1)
    config = {
        "architectures": ["EomtForUniversalSegmentation"],
        "model_type": "eomt",
        "layer_norm_eps": spec.norm_eps or 1e-6,
        "mlp_ratio": 4 if spec.swiglu else hidden // spec.width,
        "use_swiglu_ffn": spec.swiglu,
    }
    if spec.backbone == "dinov3":
        config = {
            "architectures": ["EomtDinov3ForUniversalSegmentation"],
            "model_type": "eomt_dinov3",
            "layer_norm_eps": spec.norm_eps or 1e-5,
            "intermediate_size": hidden,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        }
    return config | {
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.attention_heads(),
        "hidden_act": "gelu",
        "image_size": spec.grid[0] * spec.patch_size,
        "patch_size": spec.patch_size,
        "num_register_tokens": spec.num_registers,
        "num_blocks": len(_mask_probs(checkpoint)),
        "num_queries": spec.num_queries,
        # Each block has one.
        "num_upscale_blocks": sum(name.endswith("conv2.weight") for name in state),
        "no_object_weight": NO_OBJECT_WEIGHT,
        "id2label": {str(index): name for index, name in enumerate(labels)},
        "label2id": {name: index for index, name in enumerate(labels)},
        FORMAT_NAME: {"has_anomaly": bool(spec.has_anomaly)},
    }


def _labels(checkpoint: Checkpoint, count: int) -> list[str]:
    """Return a name for every class row except no-object; unnamed known classes are class_0, ..."""
    anomaly = ["anomaly"] if checkpoint.spec.has_anomaly else []
    names = list(checkpoint.spec.class_names or [])
    if len(names) == count:  # names that already include the anomaly's
        return names
    known = count - len(anomaly)
    if len(names) != known:
        names = [f"class_{index}" for index in range(known)]
    return names + anomaly


def _preprocessor(spec: ModelSpec) -> dict[str, Any]:
    """Return the preprocessor config of windows as the official evaluation cuts them."""
    side = spec.grid[0] * spec.patch_size
    return {
        "image_processor_type": "EomtImageProcessor",
        "do_resize": True,
        # Windows as high as the model's, along the long side: `do_split_image`.
        "size": {"shortest_edge": side, "longest_edge": None},
        "do_split_image": True,
        "do_pad": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [v / 255 for v in spec.pixel_mean or PIXEL_MEAN],
        "image_std": [v / 255 for v in spec.pixel_std or PIXEL_STD],
        "resample": 2,
    }
