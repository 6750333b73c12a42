"""Tensor names of the public checkpoint formats, as rules to and from ours."""

import re

__all__ = []


# (pattern, replacement) in order; ours on the right. `None` drops the tensor with the reason.
_OFFICIAL = (
    (r"encoder\.backbone\.", "backbone."),
    (r"q\.weight$", "query.weight"),
)

_HUGGINGFACE = (
    (r"embeddings\.cls_token$", "backbone.cls_token"),
    (r"embeddings\.register_tokens$", "backbone.reg_token"),
    (r"embeddings\.patch_embeddings\.(?:projection\.)?", "backbone.patch_embed.proj."),
    (r"embeddings\.position_embeddings\.weight$", "backbone.pos_embed"),
    (r"layernorm\.", "backbone.norm."),
    (r"class_predictor\.", "class_head."),
    (r"mask_head\.fc1\.", "mask_head.0."),
    (r"mask_head\.fc2\.", "mask_head.2."),
    (r"mask_head\.fc3\.", "mask_head.4."),
    (r"upscale_block\.block\.(\d+)\.layernorm2d\.", r"upscale.\1.norm."),
    (r"upscale_block\.block\.(\d+)\.", r"upscale.\1."),
    (r"layers\.(\d+)\.attention\.(q_proj|k_proj|v_proj)\.", r"backbone.blocks.\1.attn.\2."),
    (r"layers\.(\d+)\.attention\.out_proj\.", r"backbone.blocks.\1.attn.proj."),
    (r"layers\.(\d+)\.layer_scale([12])\.lambda1$", r"backbone.blocks.\1.ls\2.gamma"),
    (r"layers\.(\d+)\.mlp\.weights_in\.", r"backbone.blocks.\1.mlp.fc1."),
    (r"layers\.(\d+)\.mlp\.(?:weights_out|down_proj)\.", r"backbone.blocks.\1.mlp.fc2."),
    (r"layers\.(\d+)\.", r"backbone.blocks.\1."),
)

_VIT = (
    (r"register_tokens$", "backbone.reg_token"),
    (r"blocks\.(\d+)\.mlp\.w12\.", r"backbone.blocks.\1.mlp.fc1."),
    (r"blocks\.(\d+)\.mlp\.w3\.", r"backbone.blocks.\1.mlp.fc2."),
    (r"embeddings\.", "backbone.patch_embed."),
    (r"model\.", "backbone."),
    (r"", "backbone."),
)

# What is left to do for a ViT of DINOv3, whoever named it; timm's names on the right.
_BLOCK, _OURS = r"backbone\.(?:blocks|layer)\.(\d+)\.", r"backbone.blocks.\1."

# What is left to do for a ViT of DINOv3, whoever named it; timm's names on the right.
_BLOCK, _OURS = r"backbone\.(?:blocks|layer)\.(\d+)\.", r"backbone.blocks.\1."

_DINOV3 = (
    (r"backbone\.storage_tokens$", "backbone.reg_token"),
    (r"backbone\.patch_embed\.cls_token$", "backbone.cls_token"),
    (r"backbone\.patch_embed\.register_tokens$", "backbone.reg_token"),
    (r"backbone\.patch_embed\.patch_embeddings\.", "backbone.patch_embed.proj."),
    (_BLOCK + r"(?:attn|attention)\.([qv])_proj\.bias$", _OURS + r"attn.\2_bias"),
    (_BLOCK + r"attention\.o_proj\.", _OURS + "attn.proj."),
    (_BLOCK + r"attention\.", _OURS + "attn."),
    (_BLOCK + r"layer_scale([12])\.lambda1$", _OURS + r"gamma_\2"),
    (_BLOCK + r"ls([12])\.gamma$", _OURS + r"gamma_\2"),
    (_BLOCK + r"mlp\.up_proj\.", _OURS + "mlp.fc1."),
    (_BLOCK + r"mlp\.down_proj\.", _OURS + "mlp.fc2."),
    (_BLOCK, _OURS),
)

_TO_OFFICIAL = ((r"backbone\.", "encoder.backbone."), (r"query\.", "q."))

_TO_OFFICIAL_DINOV3 = (
    (r"backbone\.cls_token$", "encoder.backbone.patch_embed.cls_token"),
    (r"backbone\.reg_token$", "encoder.backbone.patch_embed.register_tokens"),
    *_TO_OFFICIAL,
)

# DINOv3's blocks as transformers names them; the rest of the ViT goes by the names of DINOv2's.
_TO_DINOV3 = (
    (r"(.*)\.attn\.([qv])_bias$", r"\1.attention.\2_proj.bias"),
    (r"(.*)\.attn\.proj\.", r"\1.attention.o_proj."),
    (r"(.*)\.attn\.", r"\1.attention."),
    (r"(.*)\.gamma_([12])$", r"\1.layer_scale\2.lambda1"),
    (r"(.*blocks\.\d+)\.mlp\.fc1\.", r"\1.mlp.up_proj."),
    (r"(.*blocks\.\d+)\.mlp\.fc2\.", r"\1.mlp.down_proj."),
    (r"(.*)patch_embed\.proj\.", r"\1patch_embed.patch_embeddings."),
)

_TO_HUGGINGFACE = (
    (r"backbone\.patch_embed\.patch_embeddings\.", "embeddings.patch_embeddings."),
    (r"backbone\.cls_token$", "embeddings.cls_token"),
    (r"backbone\.reg_token$", "embeddings.register_tokens"),
    (r"backbone\.patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"backbone\.pos_embed$", "embeddings.position_embeddings.weight"),
    (r"backbone\.norm\.", "layernorm."),
    (r"backbone\.blocks\.(\d+)\.attn\.proj\.", r"layers.\1.attention.out_proj."),
    (r"backbone\.blocks\.(\d+)\.attn\.", r"layers.\1.attention."),
    (r"backbone\.blocks\.(\d+)\.ls([12])\.gamma$", r"layers.\1.layer_scale\2.lambda1"),
    (r"backbone\.blocks\.(\d+)\.", r"layers.\1."),
    (r"class_head\.", "class_predictor."),
    (r"mask_head\.0\.", "mask_head.fc1."),
    (r"mask_head\.2\.", "mask_head.fc2."),
    (r"mask_head\.4\.", "mask_head.fc3."),
    (r"upscale\.(\d+)\.norm\.", r"upscale_block.block.\1.layernorm2d."),
    (r"upscale\.(\d+)\.", r"upscale_block.block.\1."),
)


def _rename(name: str, rules) -> str:
    for pattern, replacement in rules:
        match = re.match(pattern, name)
        if match:
            return match.expand(replacement) + name[match.end() :]
    return name
