"""The DINOv2 or DINOv3 vision transformer (timm) that carries the queries.

Shape letters: B images, N tokens, C width, (H, W) image size in pixels.
"""

from collections.abc import Callable
from functools import partial

import timm
from timm.layers import LayerNorm
from torch import nn

from anoseg_d2.utils.constants import VIT_SIZES, ViTSize

__all__ = ["BACKBONES", "backbone_kind", "build_vit", "default_num_blocks", "vit_size"]


def vit_size(size: str) -> ViTSize:
    """Return a size by name; ValueError for an unknown one."""
    if size not in VIT_SIZES:
        raise ValueError(f"MODEL.EOMT.SIZE is {size!r}; known: {', '.join(VIT_SIZES)}")
    return VIT_SIZES[size]


def default_num_blocks(size: str) -> int:
    """Return how many last blocks see the queries: S and B 3, L 4, G 5 (arXiv:2503.19108)."""
    return vit_size(size).num_blocks


def _build_dinov2(size: str, num_registers: int, norm_eps: float, **options) -> nn.Module:
    return timm.create_model(
        f"vit_{size}_patch14_reg4_dinov2",
        reg_tokens=num_registers,
        no_embed_class=True,
        norm_layer=partial(LayerNorm, eps=norm_eps or 1e-6),
        **options,
    )


def _build_dinov3(size: str, num_registers: int, norm_eps: float, **options) -> nn.Module:
    """Build the ViT of "DINOv3" (arXiv:2508.10104): rotary positions, keys without bias.

    In training the coordinates are rescaled by a random factor of up to 2, as in the pre-training
    of DINOv3 and in EoMT.
    """
    if size == "giant":
        raise ValueError("MODEL.EOMT.SIZE G exists only for DINOv2; DINOv3 has S, B and L")
    vit = timm.create_model(
        f"vit_{size}_patch16_dinov3_qkvb",
        num_reg_tokens=num_registers,
        dynamic_img_size=False,
        rope_rescale_coords=2.0,
        norm_layer=partial(LayerNorm, eps=norm_eps or 1e-5),
        **options,
    )
    for block in vit.blocks:
        # Otherwise attention reads `qkv.weight` directly, and an adapter there has no effect.
        block.attn.qkv_bias_separate = True
    return vit


BACKBONES: dict[str, Callable[..., nn.Module]] = {"dinov2": _build_dinov2, "dinov3": _build_dinov3}


def backbone_kind(vit: nn.Module) -> str:
    """Return the name in `BACKBONES` of a built ViT."""
    return "dinov3" if getattr(vit, "rope", None) is not None else "dinov2"


def build_vit(
    size: str = "L",
    *,
    image_size: tuple[int, int],
    backbone: str = "dinov2",
    patch_size: int = 16,
    num_registers: int = 4,
    depth: int = 0,
    width: int = 0,
    heads: int = 0,
    drop_path: float = 0.0,
    norm_eps: float = 0.0,
) -> nn.Module:
    """Build a timm ViT without weights.

    The position embedding of DINOv2 holds patches only (`no_embed_class`), so that it can be
    resampled without knowing the prefix; DINOv3 has none.

    Args:
        size: "S", "B", "L", or "G" (DINOv2 only).
        image_size: (H, W) in pixels, each divisible by `patch_size`.
        backbone: "dinov2" or "dinov3".
        patch_size: side of a patch in pixels.
        num_registers: register tokens next to CLS: 4 for DINOv3 and the `reg4` weights of DINOv2,
            0 for those without.
        depth, width, heads: override `size` where not 0 (tiny models for tests).
        drop_path: stochastic depth rate.
        norm_eps: epsilon of the layer norms; 0 for the backbone's own (1e-6, DINOv3 1e-5).
    Returns:
        timm `VisionTransformer` (DINOv2) or `Eva` (DINOv3) with prefix `[cls, registers]` and no
        classifier.
    Raises:
        ValueError: unknown size or backbone, a size that the backbone does not have, or an image
            size that the patch does not divide.
    """
    if any(side % patch_size or side <= 0 for side in image_size):
        raise ValueError(
            f"INPUT.CROP_SIZE {tuple(image_size)} is not divisible by "
            f"MODEL.EOMT.PATCH_SIZE {patch_size}; nearest: "
            f"{tuple(max(1, round(side / patch_size)) * patch_size for side in image_size)}"
        )
    if backbone not in BACKBONES:
        raise ValueError(f"MODEL.EOMT.BACKBONE is {backbone!r}; known: {', '.join(BACKBONES)}")
    base = vit_size(size)
    return BACKBONES[backbone](
        base.timm_name,
        num_registers,
        norm_eps,
        pretrained=False,
        num_classes=0,
        img_size=tuple(image_size),
        patch_size=patch_size,
        depth=depth or base.depth,
        embed_dim=width or base.width,
        num_heads=heads or base.heads,
        drop_path_rate=drop_path,
    )
