"""Mask the attention of queries, and anneal the masks away during training.

"Your ViT is Secretly an Image Segmentation Model" (arXiv:2503.19108): early in training a query
sees only the patches inside its own mask. The network learns to do without, block by block.

Shape letters: B images, Q queries, N tokens `[queries, prefix, patches]`, P patches, (h, w) mask
grid.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def annealing_windows(num_blocks: int) -> list[tuple[float, float]]:
    """Return start and end, as fractions of the run, of the annealing of every query block.

    Starts are spread evenly over 1/6..2/3 of the run, and each window lasts 1/6 of it.
    """
    starts = [1 / 6 + 0.5 * i / max(num_blocks - 1, 1) for i in range(num_blocks)]
    return [(start, start + 1 / 6) for start in starts]


def keep_probability(progress: float, start: float, end: float, power: float = 0.9) -> float:
    """Return the probability that a query keeps its mask: 1 before start, 0 after end."""
    if progress < start:
        return 1.0
    if progress >= end:
        return 0.0
    return (1 - (progress - start) / (end - start)) ** power


class QueryMask:
    """Patches that each query may attend to. All other pairs of tokens attend to each other.

    Pass it to a timm block as `attn_mask`. Only Q of N rows are masked at all, so the rows of the
    queries and those of the prefix and patches attend in two calls: the second needs no mask and
    keeps the fused kernel, and no mask of N x N is ever built.

    It is not a tensor: `__torch_function__` is what torch calls in place of
    `scaled_dot_product_attention` when it meets such an argument. So timm's attention layers work
    as they are, with rotary positions or without.

    Args:
        visible: (B, Q, P) bool, True where a query may attend to a patch.
        num_prefix: tokens between queries and patches, which every query sees.
    """

    def __init__(self, visible: Tensor, num_prefix: int):
        self.visible = visible
        self.num_prefix = num_prefix

    def query_rows(self) -> Tensor:
        """Return the rows of the queries, (B, 1, Q, N) bool.

        Queries and prefix always stay visible, so no row is ever empty.
        """
        images, queries, _ = self.visible.shape
        always = self.visible.new_ones(images, queries, queries + self.num_prefix)
        return torch.cat([always, self.visible], dim=-1)[:, None]

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is not F.scaled_dot_product_attention:
            return NotImplemented
        options = dict(kwargs or {})
        mask = options.pop("attn_mask")
        q, k, v = args
        queries = mask.visible.shape[1]
        masked = function(q[:, :, :queries], k, v, attn_mask=mask.query_rows(), **options)
        return torch.cat([masked, function(q[:, :, queries:], k, v, **options)], dim=2)


@torch.no_grad()
def draw_query_mask(
    mask_logits: Tensor, grid: tuple[int, int], num_prefix: int, keep: float
) -> QueryMask | None:
    """Turn predicted masks into the attention mask of the next block.

    Args:
        mask_logits: (B, Q, h, w).
        grid: size of the patch grid.
        num_prefix: see `QueryMask`.
        keep: probability that a query keeps its mask; otherwise it sees everything. It is drawn
            separately for each image and query.
    Returns:
        None when no query is masked.
    """
    if keep == 0:
        return None
    # A logit of 0 is a probability of 1/2: a query sees the patches that it more likely claims
    # than not.
    inside = F.interpolate(mask_logits.float(), size=grid, mode="bilinear") > 0
    inside = inside.flatten(2)
    # Whole rows, so that a query that is freed sees the image as it will at inference.
    freed = torch.rand(inside.shape[:2], device=inside.device) > keep
    return QueryMask(inside | freed[..., None], num_prefix)
