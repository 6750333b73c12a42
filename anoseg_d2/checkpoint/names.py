"""Translate the tensor names of every public format into ours.

All formats hold the same parts of an EoMT and a ViT, so one table of spellings reads them all; only
within a block a DINOv3 means something else by the same words than a DINOv2.
"""

import re
from collections.abc import Iterable

# Formats that hold only a ViT, without queries and heads.
BARE_VITS = ("timm_vit", "dinov2", "dinov2_transformers", "dinov3", "dinov3_transformers")

# Beginnings of names, or whole ones where they end in `$`, to ours; the first that fits wins.
_PARTS = {
    # What is outside of the blocks in transformers, and in the authors' DINOv3, whose embeddings
    # are named as there but are where timm has them.
    r"(?:embeddings|encoder\.backbone\.patch_embed)\.cls_token$": "backbone.cls_token",
    r"(?:embeddings|encoder\.backbone\.patch_embed)\.register_tokens$": "backbone.reg_token",
    r"(?:embeddings|encoder\.backbone\.patch_embed)\.patch_embeddings\.(?:projection\.)?": (
        "backbone.patch_embed.proj."
    ),
    r"embeddings\.position_embeddings(?:\.weight)?$": "backbone.pos_embed",
    r"layernorm\.": "backbone.norm.",
    r"(?:register|storage)_tokens$": "backbone.reg_token",  # of DINOv2's and DINOv3's authors
    r"(?:encoder\.backbone|model)\.": "backbone.",
    r"q\.": "query.",
    r"class_predictor\.": "class_head.",
    r"mask_head\.fc1\.": "mask_head.0.",
    r"mask_head\.fc2\.": "mask_head.2.",
    r"mask_head\.fc3\.": "mask_head.4.",
    r"upscale_block\.block\.([0-9]+)\.layernorm2d\.": r"upscale.\1.norm.",
    r"upscale_block\.block\.([0-9]+)\.": r"upscale.\1.",
}
_BLOCK = re.compile(
    r"(?:encoder\.backbone\.|model\.)?(?:blocks|layers|(?:encoder\.)?layer)\.([0-9]+)\."
)
# The same for what follows the number of a block, in a DINOv2 and in a DINOv3.
_IN_DINOV2 = {
    r"attention\.attention\.query\.": "attn.q_proj.",
    r"attention\.attention\.key\.": "attn.k_proj.",
    r"attention\.attention\.value\.": "attn.v_proj.",
    r"attention\.(?:output\.dense|o_proj|out_proj)\.": "attn.proj.",
    r"attention\.": "attn.",
    r"layer_scale([12])\.lambda1$": r"ls\1.gamma",
    r"mlp\.(?:w12|weights_in)\.": "mlp.fc1.",  # gate and value in one layer
    r"mlp\.(?:w3|weights_out|down_proj)\.": "mlp.fc2.",
}
_IN_DINOV3 = {
    # The key has no bias, so query and value keep theirs apart from the fused weight.
    r"attention\.(q|v)_proj\.bias$": r"attn.\1_bias",
    r"attention\.o_proj\.": "attn.proj.",
    r"attention\.": "attn.",
    r"layer_scale([12])\.lambda1$": r"gamma_\1",
    r"ls([12])\.gamma$": r"gamma_\1",
    r"mlp\.up_proj\.": "mlp.fc1.",
    r"mlp\.down_proj\.": "mlp.fc2.",
}

# Layers that we keep fused, and the parts that transformers stores, in the order of their rows.
FUSED = {
    ".attn.qkv.": (".attn.q_proj.", ".attn.k_proj.", ".attn.v_proj."),
    ".mlp.fc1.": (".mlp.gate_proj.", ".mlp.up_proj."),
}

_DINOV3_MARKS = (".gamma_1", "storage_tokens", ".attention.o_proj.weight", ".attn.o_proj.weight")


def is_dinov3(names: Iterable[str]) -> bool:
    """Tell a DINOv3 from a DINOv2 by tensor names of any format."""
    names = list(names)
    # DINOv3's positions are computed; both share the names of transformers' attention.
    learned = "embeddings.position_embeddings" in names
    return not learned and any(name.endswith(_DINOV3_MARKS) for name in names)


def to_ours(name: str, fmt: str, dinov3: bool) -> str:
    """Translate a name of a file into ours; a name that no row knows stays.

    Args:
        name: as `clean_names` leaves it.
        fmt: one of `formats.FORMATS`.
        dinov3: see `is_dinov3`.
    """
    if fmt == "anoseg":
        return name
    if block := _BLOCK.match(name):
        inner = _translate(name[block.end() :], _IN_DINOV3 if dinov3 else _IN_DINOV2)
        return f"backbone.blocks.{block[1]}.{inner}"
    ours = _translate(name, _PARTS)
    # A bare ViT of timm has our names, without what tells them from those of an EoMT.
    return f"backbone.{name}" if ours == name and fmt in BARE_VITS else ours


def _translate(name: str, table: dict[str, str]) -> str:
    for theirs, ours in table.items():
        if match := re.match(theirs, name):
            return match.expand(ours) + name[match.end() :]
    return name
