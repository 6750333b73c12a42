"""Reading images and label maps from disk, and writing them whole or not at all.

Pillow decodes: it knows every extension of the benchmarks (jpg, png, webp, tiff), keeps palette
indices, and tells EXIF orientation. Everything in the package reads pixels through here.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from anoseg_d2.utils.files import write_atomic

__all__ = ["IMAGE_EXTENSIONS", "MAX_PIXELS", "read_image", "read_label", "write_image"]

# A file of a few bytes can declare any size, so that it is checked before anything is unpacked.
# Twice as many pixels as an 8K photograph has; Pillow itself begins to warn a little above.
MAX_PIXELS = 80_000_000

# What Pillow raises on files that are not images, are damaged, or have an absurd size.
_UNREADABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
)

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def _open(path) -> Image.Image:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such image file: {path}")
    try:
        image = Image.open(path)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(
                f"it declares {image.width}x{image.height} pixels; at most {MAX_PIXELS:,} are read"
            )
        image.load()
    except _UNREADABLE as error:
        raise ValueError(f"cannot read image {path}: {error}") from error
    return image


def read_image(path) -> np.ndarray:
    """Read a photograph.

    EXIF orientation is applied, grayscale is repeated, CMYK and palettes are converted, an alpha
    channel is dropped, and 16-bit values keep their high byte.

    Args:
        path: file of any format in `IMAGE_EXTENSIONS`.
    Returns:
        (H, W, 3) uint8, RGB.
    Raises:
        FileNotFoundError: nothing lies at `path`.
        ValueError: the file is not an image, is truncated, or holds floats, whose range nobody
            states; the message names it.
    """
    image = ImageOps.exif_transpose(_open(path))
    if image.mode == "F":
        raise ValueError(
            f"{path} holds 32-bit floats, of which white is unknown; save it with 8 or 16 bits"
        )
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        values = values >> 8 if image.mode.startswith("I;16") or values.max() > 255 else values
        return np.repeat(values.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


def read_label(path) -> np.ndarray:
    """Read a label map as it is stored: palette indices, first of several channels, no resampling.

    Args:
        path: image file that holds one integer per pixel.
    Returns:
        (H, W) uint8, or int32 when the file has more than 8 bits.
    Raises:
        FileNotFoundError, ValueError: as `read_image`.
    """
    label = np.array(_open(path))
    if label.ndim == 3:
        label = np.ascontiguousarray(label[..., 0])
    if label.dtype == bool:
        return label.astype(np.uint8)
    return label if label.dtype == np.uint8 else label.astype(np.int32)


def write_image(path, image: np.ndarray, **options) -> None:
    """Encode an array by the extension of `path` and write it atomically.

    Args:
        path: destination; the extension chooses the format.
        image: (H, W, 3) uint8 RGB, or (H, W) uint8 / uint16.
        options: passed to Pillow's encoder (`quality`, `compress_level`, ...).
    """

    buffer = io.BytesIO()
    extension = Path(path).suffix.lower()
    Image.fromarray(np.ascontiguousarray(image)).save(
        buffer, format=Image.registered_extensions()[extension], **options
    )
    write_atomic(path, buffer.getvalue())
