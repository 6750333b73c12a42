"""Pure functions that fit positions, tokens and class rows to another model.

Shape letters: K known classes, R class rows `[known, (anomaly), no-object]`, C width, (h, w) grid
of the position embedding.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


def resample_position_embedding(
    embed: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]
) -> Tensor:
    """Resample patch positions bicubically without antialiasing, as DINOv2 does.

    Args:
        embed: (1, h w, C), patches only.
        grid, new_grid: (rows, columns) before and after; equal grids return `embed` unchanged.
    Returns:
        (1, h' w', C) float32.
    """
    if tuple(grid) == tuple(new_grid):
        return embed.float()
    image = embed.float().reshape(1, *grid, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=tuple(new_grid), mode="bicubic", align_corners=False)
    return image.flatten(2).transpose(1, 2)


def fold_position_prefix(state: Mapping[str, Tensor], prefix: int) -> dict[str, Tensor]:
    """Add the positions of prefix tokens to the tokens: the model only ever sees their sum.

    Args:
        state: our names to tensors, with `backbone.pos_embed` (1, prefix + h w, C).
        prefix: rows before the patches: 0, 1 (class token) or more (registers too).
    Returns:
        Only the changed tensors, float32: tokens, and the positions of patches.
    Raises:
        ValueError: there are positions but no token to add them to.
    """
    if prefix == 0:  # positions of patches only, as in our models
        return {}
    embed = state["backbone.pos_embed"].float()
    token, registers = state.get("backbone.cls_token"), state.get("backbone.reg_token")
    found = sum(0 if part is None else part.shape[1] for part in (token, registers))
    if token is None or (prefix > 1 and prefix != found):
        raise ValueError(f"pos_embed has {prefix} rows before its patches, but {found} tokens")
    folded = {"backbone.pos_embed": embed[:, prefix:]}
    folded["backbone.cls_token"] = token.float() + embed[:, :1]
    if prefix > 1:
        folded["backbone.reg_token"] = registers.float() + embed[:, 1:prefix]
    return folded


def transfer_class_rows(
    rows: Tensor, had_anomaly: bool, has_anomaly: bool, seed: int = 0
) -> tuple[Tensor, str]:
    """Insert or drop the anomaly row of class weights (R, C) or biases (R,).

    A new row is a seeded Gaussian direction with the mean norm of the known rows, so that it starts
    with logits of their size but resembles none of them; a new bias is their mean bias.

    Returns:
        float32 rows `[known, (anomaly), no-object]`, and what was done ("" for nothing).
    """
    rows = rows.float()
    known, last = rows[: len(rows) - 1 - int(had_anomaly)], rows[-1:]
    if had_anomaly == has_anomaly:
        return rows, ""
    if had_anomaly:
        return torch.cat([known, last]), "anomaly row dropped"
    if rows.dim() == 1:
        return torch.cat([known, known.mean().reshape(1), last]), "anomaly bias = mean known bias"
    # A mean of known rows would score every known pixel as a bit anomalous from the start.
    generator = torch.Generator().manual_seed(seed)
    direction = F.normalize(torch.randn(1, rows.shape[1], generator=generator), dim=-1)
    new = direction * known.norm(dim=-1).mean()
    note = f"anomaly row {len(known)} inserted before no-object: Gaussian, seed {seed}, mean norm"
    return torch.cat([known, new, last]), note
