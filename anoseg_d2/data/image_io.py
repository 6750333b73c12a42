"""Read images and label maps, and write them atomically.

Pillow decodes, because it reads every format of the benchmarks (jpg, png, webp, tiff), keeps
palette indices and reports EXIF orientation. The whole package reads pixels through this module.
"""

import io
import struct
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from anoseg_d2.utils.cli import printable
from anoseg_d2.utils.files import write_atomic

__all__ = [
    "IMAGE_EXTENSIONS",
    "MAX_PIXELS",
    "ImageFacts",
    "high_byte",
    "read_cut_out",
    "read_facts",
    "read_image",
    "read_label",
    "read_palette",
    "to_rgb",
    "warn_of_transparency",
    "write_image",
]


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
    struct.error,
    KeyError,
    TypeError,
)

# Decoders that a file may choose by its content, whatever its name is. Pillow has many more, and
# among them are rarely tested ones, and EPS, which runs Ghostscript on the file.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class ImageFacts:
    """How an image is stored.

    Args:
        width, height: pixels, before any turn.
        mode: Pillow's, such as "RGB" or "P".
        bits: of a value; Pillow itself reads 16-bit colours as 8 bits.
        orientation: of EXIF, 1..8; 1 is upright, 3 upside down, even numbers up to 4 and odd ones
            from 5 are mirrored, those from 5 on are rotated by 90 degrees.
        frames: pages of a tiff, or pictures of an animation.
    """

    width: int
    height: int
    mode: str
    bits: int
    orientation: int
    frames: int = 1

    def __str__(self) -> str:
        turned = f", EXIF orientation {self.orientation}" if self.orientation != 1 else ""
        frames = f", {self.frames} frames" if self.frames > 1 else ""
        return f"{self.mode.partition(';')[0]} of {self.bits} bits{turned}{frames}"

    @property
    def size_tells_turn(self) -> bool:
        """Whether turning the image upright swaps its width and height."""
        return self.orientation == 1 or (self.orientation >= 5 and self.width != self.height)


def read_facts(path) -> ImageFacts:
    """Read how an image is stored, without decoding it.

    Raises:
        FileNotFoundError, ValueError: as in `read_image`.
    """
    return _open(path)[1]


def _open(path) -> tuple[Image.Image, ImageFacts]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such image file: {printable(path)}")
    try:
        image = Image.open(path, formats=_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(
                f"it declares {image.width}x{image.height} pixels; at most {MAX_PIXELS:,} are read"
            )
        # Of a 16-bit RGB file, only the decoder's name tells that it has 16 bits.
        bits = {"1": 1, "I": 32, "F": 32}.get(image.mode, 16 if ";16" in str(image.tile) else 8)
        # Without this, Pillow would decode a whole png to look for it.
        orientation = _orientation(image) if "exif" in image.info else 1
        # The second frame of a phone's jpeg is a preview, or how bright the first one is.
        frames = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
        return image, ImageFacts(*image.size, image.mode, bits, orientation, frames)
    except _UNREADABLE as error:
        raise ValueError(f"cannot read image {printable(path)}: {error}") from error


def _load(path) -> tuple[Image.Image, ImageFacts]:
    image, facts = _open(path)
    try:
        image.load()
        return image, replace(facts, orientation=_orientation(image))
    except _UNREADABLE as error:
        raise ValueError(f"cannot read image {printable(path)}: {error}") from error


def _orientation(image: Image.Image) -> int:
    found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def read_image(path, labelled: bool = False, upright: bool = True) -> np.ndarray:
    """Read a photograph.

    EXIF orientation is applied, grayscale is repeated, CMYK and palettes are converted, an alpha
    channel is dropped, and of 16-bit values the high byte is kept. Where this may lose something,
    there is a warning.

    Args:
        path: image file in one of the formats of `IMAGE_EXTENSIONS`.
        labelled: whether it has a label, which must be drawn on the turned image.
        upright: whether EXIF orientation is applied.
    Returns:
        (H, W, 3) uint8, RGB.
    Raises:
        FileNotFoundError: there is no file at `path`.
        ValueError: the file is not an image, is truncated, holds floats, whose range is unknown, or
            16-bit values that fill only 12 bits or fewer; the message names it.
    """
    image, facts = _load(path)
    if labelled and not facts.size_tells_turn:
        warnings.warn(
            f"{printable(path)} is turned by its EXIF orientation {facts.orientation}; a label "
            "that was drawn on the image as it is stored is wrong in every pixel",
            stacklevel=2,
        )
    if facts.frames > 1:
        warnings.warn(
            f"{printable(path)} has {facts.frames} frames, of which the first is read", stacklevel=2
        )
    pixels = to_rgb(image, path, upright)
    if facts.bits == 16 and not image.mode.startswith("I"):
        _refuse_narrow_range(int(pixels.max()), path)
    return pixels


def to_rgb(image: Image.Image, name, upright: bool = True) -> np.ndarray:
    """Convert an image of any mode as described in `read_image`.

    Args:
        image: Pillow's.
        name: for messages.
        upright: whether its EXIF orientation is applied.
    Returns:
        (H, W, 3) uint8, RGB.
    Raises:
        ValueError: it holds floats, or 16-bit values that fill only 12 bits or fewer.
    """
    if image.mode == "F":
        raise ValueError(
            f"{printable(name)} holds 32-bit floats, whose range is unknown; save it with 8 or 16 "
            "bits"
        )
    if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
        warn_of_transparency(name)
    image = ImageOps.exif_transpose(image) if upright else image
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        # Some writers store 8-bit values in 32-bit integers; only wider ones are scaled down.
        if image.mode.startswith("I;16") or values.max() > 255:
            values = high_byte(values, name)
        return np.repeat(values.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


def warn_of_transparency(name) -> None:
    """Warn that transparent pixels are read with their hidden colours."""
    warnings.warn(
        f"{printable(name)} has transparent pixels, which show the colours that are stored under "
        "them",
        stacklevel=3,
    )


def read_cut_out(path) -> tuple[np.ndarray, np.ndarray]:
    """Read an object that was cut out of its photograph, upright.

    Args:
        path: image file with an alpha channel, or a transparent colour.
    Returns:
        (H, W, 3) uint8 RGB, and its alpha (H, W) uint8, 255 where it has none.
    Raises:
        FileNotFoundError, ValueError: as in `read_image`.
    """
    pixels = np.array(ImageOps.exif_transpose(_load(path)[0]).convert("RGBA"))
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
    highest = int(values.max(initial=0))
    _refuse_narrow_range(highest >> 8 if highest > 255 else min(highest, 1), name)
    return values >> 8


def _refuse_narrow_range(highest: int, name) -> None:
    """Refuse images of 16 bits that hardly use them, from their highest value's high byte."""
    name = printable(name)
    if 0 < highest < 16:
        raise ValueError(
            f"{name} is stored with 16 bits, but its values fill 12 bits or fewer, as those of "
            "many cameras do: it would be read nearly black. Scale it to 0..65535, or save 8 bits"
        )
    if 0 < highest < 64:
        warnings.warn(
            f"{name} is stored with 16 bits, but its values fill 14 bits or fewer; it is read very "
            "dark. If its camera has 14 bits, scale it to 0..65535",
            stacklevel=3,
        )


def read_label(path) -> np.ndarray:
    """Read a label map as stored: palette indices, one of several equal channels, no resampling.

    Args:
        path: image file that holds one integer per pixel.
    Returns:
        (H, W) uint8, or int32 when the file has more than 8 bits.
    Raises:
        FileNotFoundError, ValueError: as in `read_image`; also for what has not one integer per
            pixel: fractions, colours, transparent pixels; and for a label that EXIF turns.
    """
    image, facts = _load(path)
    name = printable(path)
    if image.mode == "F":
        raise ValueError(f"{name} holds fractions; a label map has one integer per pixel")
    if facts.orientation != 1:
        raise ValueError(
            f"{name} has EXIF orientation {facts.orientation}, which label maps do not have; store "
            "its pixels the way the photograph is seen"
        )
    if facts.frames > 1:
        raise ValueError(f"{name} has {facts.frames} frames; save the one that is the label map")
    label = np.array(image)
    if label.ndim == 3:
        bands = np.array(image.getbands())
        colors = label[..., bands != "A"]
        if facts.bits == 16 or (colors != colors[..., :1]).any():
            raise ValueError(
                f"{name} is a colour picture. A label map has one integer per pixel: replace every "
                "colour by a number, and save a png with one channel of 8 or 16 bits"
            )
        if (label[..., bands == "A"] != 255).any():
            raise ValueError(
                f"{name} has transparent pixels, and it is unknown whether they count; give them a "
                "value of their own, and save a png with one channel"
            )
        label = np.ascontiguousarray(label[..., 0])
    if label.dtype == bool:
        return label.astype(np.uint8)
    return label if label.dtype == np.uint8 else label.astype(np.int32)


def read_palette(path) -> list[tuple[int, ...]]:
    """Return the colours of a palette image, by index."""
    colors = _open(path)[0].getpalette() or []
    return list(zip(*[iter(colors)] * 3, strict=False))


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
