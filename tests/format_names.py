"""Names of tensors in the public formats, as their files have them: one two-way table for each.

A row pairs the name in a file with ours. `{n}` and `{i}` stand for numbers, the same on both sides.
A name that ends in "." (or is empty) is a beginning, whose rest is kept; any other name is whole.
The first row that fits wins in either direction, so a particular row comes before a general one.
"""

import functools
import re
from typing import NamedTuple

from anoseg_d2.checkpoint.names import FUSED


class Row(NamedTuple):
    """A tensor's name in another format and in ours."""

    theirs: str
    ours: str
    read_only: bool = False  # a second spelling, found in files but never written


def _transformers_blocks(theirs: str, read_only: bool = False) -> tuple[Row, ...]:
    """Return rows for DINOv3's blocks as transformers names them; `theirs` is a block's prefix."""
    ours = "backbone.blocks.{n}."
    rows = (
        # The key has no bias, so query and value keep theirs apart from the fused weight.
        ("attention.q_proj.bias", "attn.q_bias"),
        ("attention.v_proj.bias", "attn.v_bias"),
        ("attention.o_proj.", "attn.proj."),
        ("attention.", "attn."),
        ("layer_scale{i}.lambda1", "gamma_{i}"),
        ("mlp.up_proj.", "mlp.fc1."),
        ("mlp.down_proj.", "mlp.fc2."),
        ("", ""),
    )
    return tuple(Row(theirs + left, ours + right, read_only) for left, right in rows)


_TIMM = (Row("", "backbone."),)

_DINOV2 = (Row("register_tokens", "backbone.reg_token"), *_TIMM)

_DINOV2_GATED = (
    Row("blocks.{n}.mlp.w12.", "backbone.blocks.{n}.mlp.fc1."),
    Row("blocks.{n}.mlp.w3.", "backbone.blocks.{n}.mlp.fc2."),
    *_DINOV2,
)

_DINOV3 = (
    Row("storage_tokens", "backbone.reg_token"),
    Row("blocks.{n}.ls{i}.gamma", "backbone.blocks.{n}.gamma_{i}"),
    *_TIMM,
)

_DINOV3_TRANSFORMERS = (
    Row("embeddings.cls_token", "backbone.cls_token"),
    Row("embeddings.register_tokens", "backbone.reg_token"),
    Row("embeddings.patch_embeddings.", "backbone.patch_embed.proj."),
    *_transformers_blocks("layer.{n}."),
    *_transformers_blocks("model.layer.{n}.", read_only=True),
    Row("model.", "backbone.", read_only=True),
    *_TIMM,
)

# transformers writes its files with the second spelling of the attention, and names its modules
# by the first.
_DINOV2_TRANSFORMERS = (
    Row("embeddings.cls_token", "backbone.cls_token"),
    Row("embeddings.register_tokens", "backbone.reg_token"),
    Row("embeddings.position_embeddings", "backbone.pos_embed"),
    Row("embeddings.patch_embeddings.projection.", "backbone.patch_embed.proj."),
    Row("encoder.layer.{n}.attention.q_proj.", "backbone.blocks.{n}.attn.q_proj.", True),
    Row("encoder.layer.{n}.attention.k_proj.", "backbone.blocks.{n}.attn.k_proj.", True),
    Row("encoder.layer.{n}.attention.v_proj.", "backbone.blocks.{n}.attn.v_proj.", True),
    Row("encoder.layer.{n}.attention.o_proj.", "backbone.blocks.{n}.attn.proj.", True),
    Row("encoder.layer.{n}.attention.attention.query.", "backbone.blocks.{n}.attn.q_proj."),
    Row("encoder.layer.{n}.attention.attention.key.", "backbone.blocks.{n}.attn.k_proj."),
    Row("encoder.layer.{n}.attention.attention.value.", "backbone.blocks.{n}.attn.v_proj."),
    Row("encoder.layer.{n}.attention.output.dense.", "backbone.blocks.{n}.attn.proj."),
    Row("encoder.layer.{n}.layer_scale{i}.lambda1", "backbone.blocks.{n}.ls{i}.gamma"),
    Row("encoder.layer.{n}.", "backbone.blocks.{n}."),
    Row("layernorm.", "backbone.norm."),
)

_DINOV2_TRANSFORMERS_GATED = (
    Row("encoder.layer.{n}.mlp.weights_in.", "backbone.blocks.{n}.mlp.fc1.", True),
    Row("encoder.layer.{n}.mlp.weights_out.", "backbone.blocks.{n}.mlp.fc2.", True),
    Row("encoder.layer.{n}.mlp.down_proj.", "backbone.blocks.{n}.mlp.fc2."),
    *_DINOV2_TRANSFORMERS,
)

_OFFICIAL = (Row("q.", "query."), Row("encoder.backbone.", "backbone."))

# The official code takes its DINOv3 from transformers and moves the embeddings to where timm has
# them, so its files mix both vocabularies.
_OFFICIAL_DINOV3 = (
    Row("encoder.backbone.patch_embed.cls_token", "backbone.cls_token"),
    Row("encoder.backbone.patch_embed.register_tokens", "backbone.reg_token"),
    Row("encoder.backbone.patch_embed.patch_embeddings.", "backbone.patch_embed.proj."),
    *_transformers_blocks("encoder.backbone.blocks.{n}."),
    *_transformers_blocks("encoder.backbone.layer.{n}.", read_only=True),
    *_OFFICIAL,
)

_HUGGINGFACE_HEADS = (
    Row("class_predictor.", "class_head."),
    Row("mask_head.fc1.", "mask_head.0."),
    Row("mask_head.fc2.", "mask_head.2."),
    Row("mask_head.fc3.", "mask_head.4."),
    Row("upscale_block.block.{n}.layernorm2d.", "upscale.{n}.norm."),
    Row("upscale_block.block.{n}.", "upscale.{n}."),
    Row("embeddings.cls_token", "backbone.cls_token"),
    Row("embeddings.register_tokens", "backbone.reg_token"),
    Row("layernorm.", "backbone.norm."),
)

_HUGGINGFACE = (
    *_HUGGINGFACE_HEADS,
    Row("embeddings.patch_embeddings.projection.", "backbone.patch_embed.proj."),
    Row("embeddings.position_embeddings.weight", "backbone.pos_embed"),
    Row("layers.{n}.attention.out_proj.", "backbone.blocks.{n}.attn.proj."),
    Row("layers.{n}.attention.", "backbone.blocks.{n}.attn."),
    Row("layers.{n}.layer_scale{i}.lambda1", "backbone.blocks.{n}.ls{i}.gamma"),
    Row("layers.{n}.", "backbone.blocks.{n}."),
)

_HUGGINGFACE_GATED = (
    Row("layers.{n}.mlp.down_proj.", "backbone.blocks.{n}.mlp.fc2."),
    Row("layers.{n}.mlp.weights_in.", "backbone.blocks.{n}.mlp.fc1.", read_only=True),
    Row("layers.{n}.mlp.weights_out.", "backbone.blocks.{n}.mlp.fc2.", read_only=True),
    *_HUGGINGFACE,
)

_HUGGINGFACE_DINOV3 = (
    *_HUGGINGFACE_HEADS,
    Row("embeddings.patch_embeddings.", "backbone.patch_embed.proj."),
    *_transformers_blocks("layers.{n}."),
)

# (format, variant of the ViT) to its table.
TABLES: dict[tuple[str, str], tuple[Row, ...]] = {
    ("anoseg", "dinov2"): (),
    ("anoseg", "dinov2_gated"): (),
    ("anoseg", "dinov3"): (),
    ("timm_vit", "dinov2"): _TIMM,
    ("timm_vit", "dinov2_gated"): _TIMM,
    ("timm_vit", "dinov3"): _TIMM,
    ("dinov2", "dinov2"): _DINOV2,
    ("dinov2", "dinov2_gated"): _DINOV2_GATED,
    ("dinov2_transformers", "dinov2"): _DINOV2_TRANSFORMERS,
    ("dinov2_transformers", "dinov2_gated"): _DINOV2_TRANSFORMERS_GATED,
    ("dinov3", "dinov3"): _DINOV3,
    ("dinov3_transformers", "dinov3"): _DINOV3_TRANSFORMERS,
    ("eomt_official", "dinov2"): _OFFICIAL,
    ("eomt_official", "dinov2_gated"): _OFFICIAL,
    ("eomt_official", "dinov3"): _OFFICIAL_DINOV3,
    ("huggingface", "dinov2"): _HUGGINGFACE,
    ("huggingface", "dinov2_gated"): _HUGGINGFACE_GATED,
    ("huggingface", "dinov3"): _HUGGINGFACE_DINOV3,
}


def from_ours(name, table):
    """Translate one of our names into that of a file; a name that no row knows stays."""
    for row in table:
        match = None if row.read_only else _pattern(row.ours).match(name)
        if match:
            return row.theirs.format(**match.groupdict()) + name[match.end() :]
    return name


def split_fused(state, swiglu):
    """Split fused layers into one tensor for each part, as transformers stores them."""
    split = {}
    for name, tensor in state.items():
        parts = [name]
        for fused, names in FUSED.items():
            if fused in name and (swiglu or fused != ".mlp.fc1."):
                parts = [name.replace(fused, part) for part in names]
        split |= {n: t.clone() for n, t in zip(parts, tensor.chunk(len(parts)), strict=True)}
    return split


@functools.cache
def _pattern(name: str) -> re.Pattern:
    expression = re.sub(r"\\{(\w)\\}", r"(?P<\1>[0-9]+)", re.escape(name))
    is_beginning = not name or name.endswith(".")
    return re.compile(expression if is_beginning else expression + r"\Z")
