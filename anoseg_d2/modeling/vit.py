"""The DINOv2 or DINOv3 vision transformer (timm) that carries the queries.

Shape letters: B images, N tokens, C width, (H, W) image size in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import timm
from timm.layers import LayerNorm
from torch import nn

from anoseg_d2.utils.constants import VIT_SIZES, ViTSize
from anoseg_d2.utils.options import check_options, names_of, option
from anoseg_d2.utils.ranges import integer, number, one_of


@dataclass(frozen=True)
class VitOptions:
    """Architecture of the ViT."""

    backbone: str = option(
        "dinov2", one_of("dinov2", "dinov3"), "kind of ViT: dinov2, or dinov3 (rotary positions)"
    )
    size: str = option(
        "L",
        one_of("S", "B", "L", "G"),
        "S, B, L, G: ViT small to giant (G: only DINOv2); query blocks follow it",
    )
    depth: int = option(
        0,
        integer(0, 100, "0: by SIZE"),
        "blocks of the ViT; a custom ViT sets DEPTH, WIDTH and HEADS",
    )
    width: int = option(0, integer(0, 8192, "0: by SIZE"), "channels of the ViT")
    heads: int = option(0, integer(0, 1000, "0: by SIZE"), "attention heads of the ViT")
    patch_size: int = option(
        16, integer(1, 128), "side of a patch, pixels; 14-pixel weights are resampled when loaded"
    )
    num_registers: int = option(
        4,
        integer(0, 1000),
        "register tokens: DINOv3 and DINOv2 with registers have 4, DINOv2 without has 0",
    )
    drop_path: float = option(0.0, number(0, 0.99), "stochastic depth of the ViT")
    norm_eps: float = option(
        0.0,
        number(0, 1),
        "epsilon of the ViT's layer norms; 0: the backbone's own (1e-6, DINOv3 1e-5)",
    )

    def __post_init__(self):
        check_options(self)
        # Names as the user wrote them: config keys, or arguments.
        size, backbone, width, heads = names_of(self, "size", "backbone", "width", "heads")
        if self.size == "G" and self.backbone == "dinov3":
            raise ValueError(f"{size} is 'G'; with {backbone} dinov3: S, B or L")
        # Rotary positions turn pairs of channels along two axes, so a head has a multiple of four.
        step = (4 if self.backbone == "dinov3" else 1) * self.shape.heads
        if self.shape.width % step:
            raise ValueError(
                f"{width} is {self.shape.width}; with {heads} {self.shape.heads} it must be a "
                f"multiple of {step}"
            )

    @property
    def shape(self) -> ViTSize:
        """Depth, width and heads of `size`, or those that were set."""
        base = VIT_SIZES[self.size]
        return base._replace(
            depth=self.depth or base.depth,
            width=self.width or base.width,
            heads=self.heads or base.heads,
        )


@dataclass(frozen=True)
class EoMTOptions:
    """Options of what EoMT adds to its ViT, except head and criterion."""

    num_classes: int = option(
        19,
        integer(1, 253),  # labels are bytes: anomaly and void follow
        "K, the number of known classes",
    )
    anomaly_class: bool = option(False, says="learn the anomaly as class K, from pasted objects")
    num_queries: int = option(
        100, integer(1, 2000), "learned queries, each of which predicts one mask and its class"
    )
    num_blocks: int = option(
        0,
        integer(0, 100, "0: by SIZE"),
        "last ViT blocks that see the queries; 0: by SIZE (S, B 3; L 4; G 5)",
    )
    masked_attention: bool = option(
        True,
        says="in training, queries attend only to their own masks, ever less; off in fine-tuning",
    )
    annealing_power: float = option(
        0.9, number(0, above=True), "a mask is kept with probability (1 - progress)^power"
    )
    recompute: str = option(
        "heads",
        one_of("none", "heads", "all"),
        "activation memory: none saves nothing; heads frees the prediction heads (half the memory, "
        "same speed); all also recomputes the ViT blocks (least memory, slower)",
    )
    compile: bool = option(False, says="compile the ViT blocks with torch.compile")

    def __post_init__(self):
        check_options(self)


def check_image_size(image_size: tuple[int, int], patch_size: int) -> None:
    """Raise ValueError unless patches tile an image (H, W)."""
    size = tuple(image_size)
    if any(side % patch_size or side <= 0 for side in size):
        # A size that would do saves the user the arithmetic.
        near = tuple(max(1, round(side / patch_size)) * patch_size for side in size)
        raise ValueError(
            f"INPUT.CROP_SIZE {size} is not divisible by MODEL.EOMT.PATCH_SIZE {patch_size}; "
            f"nearest: {near}"
        )


def _build_dinov2(size: str, num_registers: int, norm_eps: float, **options) -> nn.Module:
    return timm.create_model(
        f"vit_{size}_patch14_reg4_dinov2",
        reg_tokens=num_registers,
        no_embed_class=True,  # only patches have positions, and these are resampled
        norm_layer=partial(LayerNorm, eps=norm_eps or 1e-6),
        **options,
    )


def _build_dinov3(size: str, num_registers: int, norm_eps: float, **options) -> nn.Module:
    """Build the ViT of "DINOv3" (arXiv:2508.10104): rotary positions, keys without bias.

    In training the coordinates are rescaled by a random factor of up to 2, as in the pre-training
    of DINOv3 and in EoMT.
    """
    vit = timm.create_model(
        f"vit_{size}_patch16_dinov3_qkvb",
        num_reg_tokens=num_registers,
        dynamic_img_size=False,
        rope_rescale_coords=2.0,  # in training only
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


def build_vit(size: str = "L", *, image_size: tuple[int, int], **options) -> nn.Module:
    """Build a timm ViT without weights.

    The position embedding of DINOv2 holds patches only (`no_embed_class`), so that it can be
    resampled without knowing the prefix; DINOv3 has none.

    Args:
        size: "S", "B", "L", or "G" (DINOv2 only).
        image_size: (H, W) in pixels, each divisible by `patch_size`.
        options: the other fields of `VitOptions` by name.
    Returns:
        timm `VisionTransformer` (DINOv2) or `Eva` (DINOv3) with prefix `[cls, registers]` and no
        classifier.
    Raises:
        ValueError: an option out of its range, a size that the backbone does not have, or an image
            size that the patch does not divide.
    """
    wanted = VitOptions(size=size, **options)
    check_image_size(image_size, wanted.patch_size)
    shape = wanted.shape
    return BACKBONES[wanted.backbone](
        shape.timm_name,
        wanted.num_registers,
        wanted.norm_eps,
        pretrained=False,
        num_classes=0,
        img_size=tuple(image_size),
        patch_size=wanted.patch_size,
        depth=shape.depth,
        embed_dim=shape.width,
        num_heads=shape.heads,
        drop_path_rate=wanted.drop_path,
    )
