"""A bare ViT with patch heads: anomaly scores without any segmentation network.

`anoseg memory` builds one from released weights and normal photographs. It shares the ViT, windows,
strips and patch heads with EoMT, and has neither queries nor classes.

Shape letters: B images, N tokens, C width, (H, W) image size, (gh, gw) patch grid.
"""

from collections.abc import Sequence
from dataclasses import asdict

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from anoseg_d2.modeling import scores
from anoseg_d2.modeling.inference import InferenceOptions, infer_images
from anoseg_d2.modeling.model_info import ModelInfo
from anoseg_d2.modeling.patch_heads import PATCH_HEADS
from anoseg_d2.modeling.vit import VitOptions, build_vit
from anoseg_d2.utils.cli import import_modules
from anoseg_d2.utils.constants import PIXEL_MEAN, PIXEL_STD
from anoseg_d2.utils.options import options_of
from anoseg_d2.utils.precision import amp_dtype


class VitModel(nn.Module):
    """What models on a ViT share: their input, and how they are used.

    Args:
        backbone: ViT of `build_vit`.
        inference: how images are segmented and scored.
        info: what is known about the model besides its weights.
        pixel_mean, pixel_std: statistics of RGB 0..255; applied once, here.
    """

    def __init__(self, backbone: nn.Module, inference, info, pixel_mean, pixel_std):
        super().__init__()
        self.backbone = backbone
        self.inference, self.info = inference, info
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            # Not in checkpoints, whose tensors are those of the network; the config has them.
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    @staticmethod
    def vit_parts(cfg) -> dict:
        """Return the arguments that every such model takes from a config, except `info`."""
        import_modules(cfg.MODEL.IMPORTS)
        vit = options_of(cfg, "MODEL.EOMT", VitOptions)
        precision = None
        if cfg.TEST.AMP:
            precision = amp_dtype(cfg.SOLVER.AMP.PRECISION, torch.device(cfg.MODEL.DEVICE))
        return {
            "backbone": build_vit(image_size=cfg.INPUT.CROP_SIZE, **asdict(vit)),
            "inference": options_of(cfg, "", InferenceOptions, dtype=precision),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def score_names(self) -> list[str]:
        """Anomaly scores at inference; ValueError when one needs what the model does not have."""
        return self.check_scores(self.inference.scores)

    @property
    def device(self) -> torch.device:
        """The device that the parameters are on."""
        return self.pixel_mean.device

    @property
    def image_size(self) -> tuple[int, int]:
        """Size (H, W) in pixels of the images that the network sees."""
        return tuple(self.backbone.patch_embed.img_size)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.backbone.patch_embed.patch_size[0]

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Normalise images and make tokens of them.

        Args:
            images: (B, 3, H, W) RGB 0..255 of size `image_size`, uint8 or float.
        Returns:
            (B, prefix + N, C), and the rotation that the blocks of a DINOv3 need.
        Raises:
            ValueError: images of another size.
        """
        if tuple(images.shape[-2:]) != self.image_size:
            raise ValueError(
                f"images are {tuple(images.shape[-2:])}, but the model sees {self.image_size} "
                "(INPUT.CROP_SIZE); the position embedding must be resampled for another size"
            )
        normalised = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        return self._add_positions(self.backbone.patch_embed(normalised))

    def _add_positions(self, patches: Tensor) -> tuple[Tensor, Tensor | None]:
        """Add prefix and positions; returns (B, prefix + patches, C) and the blocks' rotation."""
        # timm has no public way to the tokens of a ViT before its first block.
        x = self.backbone._pos_embed(patches)
        x, rope = x if isinstance(x, tuple) else (x, None)
        return self.backbone.norm_pre(x), rope


@META_ARCH_REGISTRY.register()
class PatchModel(VitModel):
    """A ViT whose patch heads are all that it says: it has no classes, and cannot be trained.

    Its outputs are those of an EoMT with zero known classes: `sem_seg` is 255 (void) everywhere,
    `confidence` is 0.

    Args: see `VitModel`. Patch heads come with a checkpoint, or are put into `patch_maps`.
    """

    num_known, has_anomaly = 0, False
    num_blocks = 0  # that see queries

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        inference: InferenceOptions = InferenceOptions(),  # noqa: B008 - frozen
        info: ModelInfo = ModelInfo(),  # noqa: B008 - frozen
        pixel_mean: tuple[float, ...] = PIXEL_MEAN,
        pixel_std: tuple[float, ...] = PIXEL_STD,
    ):
        super().__init__(backbone, inference, info, pixel_mean, pixel_std)
        _refuse_masks(inference.scores)
        self.patch_maps = nn.ModuleDict()  # named as in EoMT, so that checkpoints fit both
        self.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg) -> dict:
        return cls.vit_parts(cfg)

    def forward(self, batched_inputs: list[dict], score_names: Sequence[str] | None = None):
        """Score images of any size, see `infer_images`.

        Raises:
            ValueError: in training mode.
        """
        if self.training:
            raise ValueError("MODEL.META_ARCHITECTURE is PatchModel, in which nothing is trained")
        return infer_images(self, batched_inputs, score_names)

    def check_scores(self, names: Sequence[str]) -> list[str]:
        """Return the scores in `names`, or all that apply when there are none.

        Raises:
            ValueError: an unknown name, or a score that needs what the model does not have.
        """
        _refuse_masks(names)
        found = scores.available_scores(False, names, self.patch_maps)
        # Without names all scores without the anomaly class apply, also those of masks.
        return found if names else [name for name in found if not _reads_masks(name)]

    def run_network(
        self, images: Tensor, final_only: bool = True, blocks: Sequence[int] = ()
    ) -> tuple[list[tuple[Tensor, Tensor]], dict[int, Tensor]]:
        """Run the ViT up to the last block whose tokens are wanted.

        Args:
            images: see `embed`.
            final_only: nothing here; as in EoMT.
            blocks: ViT blocks, counted from 0, whose output is returned.
        Returns:
            one prediction of no query, mask logits (B, 0, gh, gw) and class logits (B, 0, 1), and
            {block: patch tokens (B, N, C)}.
        """
        vit = self.backbone
        x, rope = self.embed(images)
        tokens: dict[int, Tensor] = {}
        for index, block in enumerate(vit.blocks[: max(blocks, default=-1) + 1]):
            x = block(x) if rope is None else block(x, rope=rope)
            if index in blocks:
                tokens[index] = x[:, vit.num_prefix_tokens :]
        masks = x.new_empty(len(x), 0, *vit.patch_embed.grid_size)
        return [(masks, x.new_empty(len(x), 0, 1))], tokens


def _reads_masks(score: str) -> bool:
    return any(name not in PATCH_HEADS for name in scores.SCORES[score].maps)


def _refuse_masks(names: Sequence[str]) -> None:
    for name in scores.single_scores(names):
        if _reads_masks(name):
            raise ValueError(
                f"score {name!r} needs the masks of a segmentation network, and this is a memory "
                "on a bare backbone, which gives the score 'memory'"
            )
