"""Read images and label maps, and write them atomically.

Pillow decodes, because it reads every format of the benchmarks (jpg, png, webp, tiff), keeps
palette indices and reports EXIF orientation. The whole package reads pixels through this module.
"""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from anoseg_d2.utils.cli import printable
from anoseg_d2.utils.files import write_atomic

# A file of a few bytes can declare any size, so the size is checked before decoding. This is more
# than twice the pixels of an 8K frame, and a little under the size at which Pillow warns.
MAX_PIXELS = 80_000_000

# Exceptions that Pillow raises on files that are not images, are damaged, or are absurdly large.
_UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, SyntaxError),
    *(struct.error, Image.DecompressionBombError),
)

# Decoders that a file may choose by its content, whatever its name is. Pillow has many more, and
# among them are rarely tested ones, and EPS, which runs Ghostscript on the file.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def _load(path) -> Image.Image:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such image file: {printable(path)}")
    try:
        image = Image.open(path, formats=_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(
                f"it declares {image.width}x{image.height} pixels; at most {MAX_PIXELS:,} are read"
            )
        image.load()
        image.getexif()  # parsed here, where damage is named
        return image
    except _UNREADABLE as error:
        raise ValueError(f"cannot read image {printable(path)}: {error}") from error


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
        ValueError: the file is not an image, is truncated, holds floats, whose range is unknown, or
            16-bit values that fill only 12 bits or fewer; the message names it.
    """
    return to_rgb(_load(path), path)


def to_rgb(image: Image.Image, name) -> np.ndarray:
    """Convert an image of any mode as described in `read_image`.

    Args:
        image: Pillow's.
        name: for messages.
    Returns:
        (H, W, 3) uint8, RGB.
    Raises:
        ValueError: it holds floats, or 16-bit values that fill only 12 bits or fewer.
    """
    if image.mode == "F":
        raise ValueError(f"{printable(name)} holds 32-bit floats, of any range; save 8 or 16 bits")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        # Some writers store 8-bit values in 32-bit integers; only wider ones are scaled down.
        if image.mode.startswith("I;16") or values.max() > 255:
            values = high_byte(values, name)
        return np.repeat(values.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


def read_cut_out(path) -> tuple[np.ndarray, np.ndarray]:
    """Read an object that was cut out of its photograph, upright.

    Args:
        path: image file with an alpha channel, or a transparent colour.
    Returns:
        (H, W, 3) uint8 RGB, and its alpha (H, W) uint8, 255 where it has none.
    Raises:
        FileNotFoundError, ValueError: as in `read_image`.
    """
    pixels = np.array(ImageOps.exif_transpose(_load(path)).convert("RGBA"))
    return np.ascontiguousarray(pixels[..., :3]), pixels[..., 3]


def high_byte(values: np.ndarray, name) -> np.ndarray:
    """Return 16-bit values as 8 bits: (value >> 8).

    Args:
        values: integers, meant to fill 0..65535.
        name: of the image, for messages.
    Raises:
        ValueError: they fill 12 bits or fewer, as those of many cameras do, which would make the
            image nearly black.
    """
    if 0 < values.max(initial=0) < 1 << 12:
        raise ValueError(
            f"{printable(name)} is stored with 16 bits, but its values fill 12 bits or fewer: it "
            "would be read nearly black. Scale it to 0..65535, or save 8 bits"
        )
    return values >> 8


def read_label(path) -> np.ndarray:
    """Read a label map as stored: palette indices, one of several equal channels, no resampling.

    Args:
        path: image file that holds one integer per pixel.
    Returns:
        (H, W) uint8, or int32 when the file has more than 8 bits.
    Raises:
        FileNotFoundError, ValueError: as in `read_image`; also for what has not one integer per
            pixel: fractions, colours, transparent pixels, several frames; and for a label that EXIF
            turns.
    """
    image, name = _load(path), printable(path)
    if image.mode == "F":
        raise ValueError(f"{name} holds fractions; a label map has one integer per pixel")
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        raise ValueError(f"{name} has an EXIF orientation; store a label the way it is seen")
    if getattr(image, "n_frames", 1) > 1 and image.format not in ("JPEG", "MPO"):
        raise ValueError(f"{name} has {image.n_frames} frames; save the one that is the label map")
    label = np.array(image)
    if label.ndim == 3:
        bands = np.array(image.getbands())
        colors = label[..., bands != "A"]
        if (label[..., bands == "A"] != 255).any():
            raise ValueError(
                f"{name} has transparent pixels; give them a value of their own, in one channel"
            )
        if (colors != colors[..., :1]).any():
            raise ValueError(
                f"{name} is a colour picture; a label map has one integer per pixel, in one channel"
            )
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
