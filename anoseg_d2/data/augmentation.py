"""Augment training images as EoMT and Mask2Former do: colours, scale, flip and crop.

The order and ranges are those of EoMT (arXiv:2503.19108): colours, scale jitter, flip, padding to
the right and the bottom, random crop. Image and label always move together.

All functions are pure. Those that draw random numbers take a `numpy.random.Generator`, and the same
generator state gives the same result everywhere.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from anoseg_d2.utils.constants import VOID
from anoseg_d2.utils.options import check_options, option
from anoseg_d2.utils.ranges import integer, number, sequence

# Colour factors are drawn from 1 - x to 1 + x, and hue angles from -x to x.
BRIGHTNESS = 32 / 255
CONTRAST = 0.5
SATURATION = 0.5
HUE_DEGREES = 18.0
IMAGE_PADDING = 0  # black, as the official code pads
MAX_REDRAWS = 10
_GREY_WEIGHTS = np.array([[0.299, 0.587, 0.114]], dtype=np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class Augmentation:
    """The whole augmentation chain.

    Its fields are keys of INPUT.
    """

    crop_size: tuple[int, int] = option(
        (1024, 1024),
        sequence(integer(1, 16_384), (2,)),
        "(H, W) that the model sees, divisible by PATCH_SIZE",
    )
    color_jitter: bool = option(
        True, says="change brightness, contrast, saturation and hue in training"
    )
    scale_jitter: tuple[float, float] = option(
        (0.5, 2.0),
        sequence(number(0, 16, above=True), (2,), ascending=True),
        "range of a random factor in training, on the scale that fits the image inside the crop",
    )
    flip: bool = option(True, says="mirror half of the training images")

    def __post_init__(self):
        check_options(self)

    def __call__(
        self, image: np.ndarray, label: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw one augmented pair; a crop that is all void is redrawn, at most 10 times.

        Args:
            image: (H, W, 3) uint8 RGB.
            label: (H, W) uint8 train ids, 255 void.
            generator: source of all random numbers.
        Returns:
            (crop_h, crop_w, 3) uint8 and (crop_h, crop_w) uint8; padding is 0 and 255.
        """
        for _ in range(1 + MAX_REDRAWS):
            drawn = self._draw(image, label, generator)
            if (drawn[1] != VOID).any():
                break
        return drawn

    def _draw(self, image, label, generator):
        # Before the crop, because contrast is relative to the mean grey of the whole photograph.
        if self.color_jitter:
            image = jitter_colors(image, generator)
        factor = generator.uniform(*self.scale_jitter)
        scale = fit_scale(label.shape, self.crop_size) * factor
        image, label = resize(image, label, scale)
        if self.flip and generator.random() < 0.5:
            image, label = flip(image, label)
        image, label = pad(image, label, self.crop_size)
        corner = tuple(
            int(generator.integers(size - wanted + 1))
            for size, wanted in zip(label.shape, self.crop_size, strict=True)
        )
        return crop(image, label, corner, self.crop_size)


def fit_scale(size: tuple[int, int], crop_size: tuple[int, int]) -> float:
    """Return the scale at which an image of `size` (H, W) just fits inside `crop_size` (H, W)."""
    return min(wanted / have for wanted, have in zip(crop_size, size, strict=True))


def resize(image: np.ndarray, label: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Resize both to floor(scale * size): image bilinear with antialiasing, label nearest."""
    height, width = (max(1, int(scale * side)) for side in label.shape)
    if (height, width) == label.shape:
        return image, label
    to = (width, height)
    return (
        np.asarray(Image.fromarray(image).resize(to, Image.Resampling.BILINEAR)),
        np.asarray(Image.fromarray(label).resize(to, Image.Resampling.NEAREST)),
    )


def flip(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirror both left to right."""
    return image[:, ::-1], label[:, ::-1]


def pad(
    image: np.ndarray, label: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Pad both on the right and at the bottom to at least `size` (H, W), with 0 and 255."""
    below, right = (max(0, wanted - have) for wanted, have in zip(size, label.shape, strict=True))
    if not below and not right:
        return image, label
    widths = ((0, below), (0, right))
    return (
        np.pad(image, (*widths, (0, 0)), constant_values=IMAGE_PADDING),
        np.pad(label, widths, constant_values=VOID),
    )


def crop(
    image: np.ndarray, label: np.ndarray, corner: tuple[int, int], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Cut `size` (H, W) at `corner` (top, left) out of both."""
    rows, columns = (slice(a, a + n) for a, n in zip(corner, size, strict=True))
    return image[rows, columns], label[rows, columns]


def jitter_colors(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue, each with probability 0.5.

    Contrast comes before or after saturation and hue, at random.

    Args:
        image: (H, W, 3) uint8 RGB.
        generator: source of all random numbers.
    Returns:
        (H, W, 3) uint8, rounded and clipped after each change.
    """

    def factor(spread: float) -> float:
        return generator.uniform(1 - spread, 1 + spread)

    def maybe_contrast(image: np.ndarray) -> np.ndarray:
        return scale_contrast(image, factor(CONTRAST)) if generator.random() < 0.5 else image

    if generator.random() < 0.5:
        image = scale_brightness(image, factor(BRIGHTNESS))
    contrast_first = generator.random() < 0.5
    if contrast_first:
        image = maybe_contrast(image)
    if generator.random() < 0.5:
        image = scale_saturation(image, factor(SATURATION))
    if generator.random() < 0.5:
        image = rotate_hue(image, generator.uniform(-HUE_DEGREES, HUE_DEGREES))
    return image if contrast_first else maybe_contrast(image)


def scale_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply (H, W, 3) uint8 by `factor`."""
    return _through_table(image, np.arange(256) * factor)


def scale_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Scale the contrast of (H, W, 3) uint8 around the image's mean grey by `factor`."""
    mean = float(cv2.transform(image, _GREY_WEIGHTS).mean())
    return _through_table(image, mean + (np.arange(256) - mean) * factor)


def scale_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Scale the colours of (H, W, 3) uint8 around each pixel's own grey by `factor`."""
    # One 3x3 matrix does it: factor * identity + (1 - factor) * grey in every channel.
    grey = np.repeat(_GREY_WEIGHTS, 3, axis=0)
    matrix = factor * np.eye(3, dtype=np.float32) + (1 - factor) * grey
    return cv2.transform(image, matrix.astype(np.float32))


def rotate_hue(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate the hue of (H, W, 3) uint8 RGB by an angle; saturation and value stay."""
    hsv = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + degrees) % 360
    return np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)).clip(0, 255).astype(np.uint8)


def _through_table(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    return cv2.LUT(image, np.rint(values).clip(0, 255).astype(np.uint8))
