"""Reading images and label maps from disk, and writing them whole or not at all.

Pillow decodes: it knows every extension of the benchmarks (jpg, png, webp, tiff), keeps palette
indices, and tells EXIF orientation. Everything in the package reads pixels through here.
"""

import contextlib
import io
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = [
    "IMAGE_EXTENSIONS",
    "as_bgr",
    "atomic_path",
    "read_image",
    "read_label",
    "write_atomic",
    "write_image",
]

# What Pillow raises at files that are no image, damaged, or of an absurd size.
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


def as_bgr(image: np.ndarray) -> np.ndarray:
    """Bring an image in memory, as cv2 reads it with any flag, to what the predictor takes.

    One channel is repeated, an alpha channel is dropped (transparent pixels show the colour that
    is stored under them), 16-bit values keep their high byte: they are taken to fill 0..65535.

    Args:
        image: (H, W), (H, W, 1), (H, W, 3) BGR or (H, W, 4) BGRA; uint8, uint16 or bool.
    Returns:
        (H, W, 3) uint8 BGR; the very array when it is that already.
    Raises:
        ValueError: another shape or type; the message says what to convert.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or image.size == 0:
        hint = "; transpose it: channels come last" if image.shape[:1] in ((1,), (3,)) else ""
        raise ValueError(
            f"an image is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {image.shape}{hint}"
        )
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    elif image.dtype == bool:
        image = image.astype(np.uint8) * 255
    elif image.dtype != np.uint8:
        raise ValueError(
            f"an image is uint8 or uint16, not {image.dtype}; bring it to 0..255 and to uint8"
        )
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[..., :3]


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


@contextlib.contextmanager
def atomic_path(path, suffix: str = ".part"):
    """Give a temporary path beside `path` that takes its place when the block ends well.

    Args:
        path: where the file shall lie; its folder is made.
        suffix: of the temporary name, for writers that choose a format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=suffix)
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_atomic(path, data: bytes) -> None:
    """Write `data` to `path` so that a half-written file never bears the final name.

    Args:
        path: where the file shall lie; its folder is made.
        data: content.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


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
