"""Patch heads compute maps from patch tokens instead of queries.

- `PatchHead`, `PATCH_HEADS`: the base class, and the registered patch heads.
- `PatchMemory`: how far a patch is from all that normal photographs show.
- `RatioHead`: how much more likely a place is unknown than known, learned from pasted outliers.
"""

from anoseg_d2.modeling.patch_heads.base import PATCH_HEADS, PATCH_PREFIX, PatchHead, free_block
from anoseg_d2.modeling.patch_heads.memory import PatchMemory
from anoseg_d2.modeling.patch_heads.ratio import RatioHead, RatioOptions

__all__ = [
    "PATCH_HEADS",
    "PATCH_PREFIX",
    "PatchHead",
    "PatchMemory",
    "RatioHead",
    "RatioOptions",
    "free_block",
]
