"""Read images and label maps from disk, and write them whole or not at all.

Pillow decodes, because it reads every format of the benchmarks (jpg, png, webp, tiff), keeps
palette indices and reports EXIF orientation. The whole package reads pixels through this module.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from anoseg_d2.utils.files import write_atomic

__all__ = ["IMAGE_EXTENSIONS", "MAX_PIXELS", "read_image", "read_label", "write_image"]

# A file of a few bytes can declare any size, so the size is checked before decoding. This is more
# than twice the pixels of an 8K frame, and a little under the size at which Pillow warns.
MAX_PIXELS = 80_000_000

# Exceptions that Pillow raises on files that are not images, are damaged, or are absurdly large.
_UNREADABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
)

# Decoders that a file may choose by its content, whatever its name is. Pillow has many more, and
# among them are rarely tested ones, and EPS, which runs Ghostscript on the file.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def _open(path) -> Image.Image:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such image file: {path}")
    try:
        image = Image.open(path, formats=_FORMATS)
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
    channel is dropped, and of 16-bit values the high byte is kept.

    Args:
        path: image file in one of the formats of `IMAGE_EXTENSIONS`.
    Returns:
        (H, W, 3) uint8, RGB.
    Raises:
        FileNotFoundError: there is no file at `path`.
        ValueError: the file is not an image, is truncated, or holds floats, whose range is
            unknown; the message names it.
    """
    image = ImageOps.exif_transpose(_open(path))
    if image.mode == "F":
        raise ValueError(
            f"{path} holds 32-bit floats, whose range is unknown; save it with 8 or 16 bits"
        )
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        # Some writers store 8-bit values in 32-bit integers; only wider ones are scaled down.
        values = values >> 8 if image.mode.startswith("I;16") or values.max() > 255 else values
        return np.repeat(values.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


def read_label(path) -> np.ndarray:
    """Read a label map as stored: palette indices, the first of several channels, no resampling.

    Args:
        path: image file that holds one integer per pixel.
    Returns:
        (H, W) uint8, or int32 when the file has more than 8 bits.
    Raises:
        FileNotFoundError, ValueError: as in `read_image`.
    """
    image = _open(path)
    if image.mode == "F":
        raise ValueError(f"{path} holds fractions; a label map has one integer per pixel")
    label = np.array(image)
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
