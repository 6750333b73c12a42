"""The DINOv2 vision transformer (timm) that carries the queries.

Shape letters: B images, N tokens, C width, (H, W) image size in pixels.
"""

from typing import NamedTuple

import timm
from torch import nn

__all__ = ["VIT_SIZES", "build_vit", "default_num_blocks"]


class ViTSize(NamedTuple):
    """Depth, width, heads, query blocks, and timm's stem of one size."""

    depth: int
    width: int
    heads: int
    num_blocks: int
    timm_name: str


VIT_SIZES = {
    "S": ViTSize(12, 384, 6, 3, "vit_small_patch14_reg4_dinov2"),
    "B": ViTSize(12, 768, 12, 3, "vit_base_patch14_reg4_dinov2"),
    "L": ViTSize(24, 1024, 16, 4, "vit_large_patch14_reg4_dinov2"),
}


def _vit_size(size: str) -> ViTSize:
    if size not in VIT_SIZES:
        raise ValueError(f"MODEL.EOMT.SIZE is {size!r}; known: {', '.join(VIT_SIZES)}")
    return VIT_SIZES[size]


def default_num_blocks(size: str) -> int:
    """Number of last blocks that see the queries: 3 for S and B, 4 for L (arXiv:2503.19108)."""
    return _vit_size(size).num_blocks


def build_vit(
    size: str = "L",
    *,
    image_size: tuple[int, int],
    patch_size: int = 16,
    num_registers: int = 4,
    depth: int = 0,
    width: int = 0,
    heads: int = 0,
    drop_path: float = 0.0,
) -> nn.Module:
    """Build a timm DINOv2 ViT without weights.

    The position embedding holds patches only (`no_embed_class`), so that it can be resampled
    without knowing the prefix.

    Args:
        size: "S", "B" or "L".
        image_size: (H, W) in pixels, each divisible by `patch_size`.
        patch_size: side of a patch in pixels.
        num_registers: register tokens beside CLS: 4 for `reg4` weights, 0 for those without.
        depth, width, heads: override `size` where not 0 (tiny models for tests).
        drop_path: stochastic depth rate.
    Returns:
        timm `VisionTransformer` with prefix `[cls, registers]` and no classifier.
    Raises:
        ValueError: unknown size, or an image size that the patch does not divide.
    """
    if any(side % patch_size or side <= 0 for side in image_size):
        raise ValueError(
            f"INPUT.CROP_SIZE {tuple(image_size)} is not divisible by "
            f"MODEL.EOMT.PATCH_SIZE {patch_size}; nearest: "
            f"{tuple(max(1, round(side / patch_size)) * patch_size for side in image_size)}"
        )
    base = _vit_size(size)
    return timm.create_model(
        base.timm_name,
        pretrained=False,
        num_classes=0,
        img_size=tuple(image_size),
        patch_size=patch_size,
        reg_tokens=num_registers,
        no_embed_class=True,
        depth=depth or base.depth,
        embed_dim=width or base.width,
        num_heads=heads or base.heads,
        drop_path_rate=drop_path,
    )
