"""Resize uint8 images with two matrix products, for graphs that run outside PyTorch.

PyTorch resizes uint8 images (bilinear, antialiased) in fixed point: columns, rounding to a grey
level, rows, rounding again, with weights of 16 bits. A resize in floats differs from it by a grey
level in up to a sixth of the pixels, depending on the runtime. For a known size the weights are
two constant matrices, and all runtimes multiply matrices in the same way.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHT_LIMIT = 2**15  # PyTorch's weights are signed, of 16 bits
MOST_BITS = 22


def fixed_point_weights(source: int, target: int) -> Tensor:
    """Return the weights of an antialiased bilinear resize of a line, rounded as in PyTorch.

    Args:
        source, target: lengths in pixels.
    Returns:
        (source, target) float32; multiples of one power of two, columns sum to about 1.
    """
    line = torch.eye(source, dtype=torch.float64)[None, None]
    weights = F.interpolate(line, size=(source, target), mode="bilinear", antialias=True)[0, 0]
    largest, bits = weights.max().item(), 0
    while bits < MOST_BITS and int(0.5 + largest * 2 ** (bits + 1)) < WEIGHT_LIMIT:
        bits += 1
    return (torch.floor(weights * 2**bits + 0.5) / 2**bits).float()


class FixedResize(nn.Module):
    """Resize (B, 3, H, W) images 0..255 of one size to another.

    Equals `torchvision.transforms.v2.functional.resize(antialias=True)` of uint8 images on CPUs
    with AVX2 or NEON, where torchvision uses PyTorch's fixed point, to the last bit. The exception
    are sides that shrink more than fourfold, whose sums float32 cannot hold: single pixels may
    then be one level off.

    Args:
        source, target: (H, W).
    """

    def __init__(self, source: tuple[int, int], target: tuple[int, int]):
        super().__init__()
        columns = None if source[1] == target[1] else fixed_point_weights(source[1], target[1])
        rows = None if source[0] == target[0] else fixed_point_weights(source[0], target[0]).T
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Resize whole numbers 0..255 to whole numbers 0..255, all float32."""
        if self.columns is not None:
            image = torch.floor(image @ self.columns + 0.5).clamp(0, 255)
        if self.rows is not None:
            image = torch.floor(self.rows @ image + 0.5).clamp(0, 255)
        return image
