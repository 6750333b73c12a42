"""Reading pixels: hostile and damaged files end in a named error, before memory is taken."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anoseg_d2.data.image_io import (
    MAX_PIXELS,
    read_image,
    read_label,
    write_image,
)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A png of a few bytes that declares any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("read", [read_image, read_label])
@pytest.mark.parametrize("size", [(10**9, 10**9), (100_000, 1000), (1, MAX_PIXELS + 1)])
def test_declared_sizes_are_checked_before_anything_is_unpacked(tmp_path, read, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(*size))
    with pytest.raises(ValueError, match="bomb.png"):
        read(path)


@pytest.mark.slow
def test_a_text_bomb_inside_a_png_is_refused(tmp_path):
    path = tmp_path / "text.png"
    Image.new("RGB", (4, 4)).save(path)
    data = path.read_bytes()
    text = chunk(b"zTXt", b"note\0\0" + zlib.compress(b"x" * 200_000_000))
    path.write_bytes(data[:33] + text + data[33:])
    with pytest.raises(ValueError, match="text.png"):
        read_image(path)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/proc/self/mem", "/"])
def test_what_is_not_a_regular_file_with_an_image_is_refused(path):
    with pytest.raises((FileNotFoundError, ValueError), match=path):
        read_image(path)


def test_a_label_of_fractions_is_refused_and_not_cut_off(tmp_path):
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "label.tiff")
    with pytest.raises(ValueError, match="label.tiff holds fractions"):
        read_label(tmp_path / "label.tiff")


@pytest.mark.parametrize("kind", ["eps", "pcx", "tga"])
def test_a_files_content_chooses_only_among_the_usual_decoders(tmp_path, kind):
    Image.new("RGB", (16, 16)).save(tmp_path / "photo.png", kind)
    with pytest.raises(ValueError, match="cannot read image .*photo.png"):
        read_image(tmp_path / "photo.png")


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (2, 8)])
def test_narrow_images_are_images(tmp_path, shape):
    image = np.full((*shape, 3), 7, np.uint8)
    write_image(tmp_path / "a.png", image)
    assert (read_image(tmp_path / "a.png") == image).all()


WHOLE = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([".png", ".jpg", ".webp", ".tif", ".bmp"]),
    st.integers(0, 10**6), st.integers(0, 255), st.booleans(),
)  # fmt: skip
def test_a_damaged_image_is_read_or_named(tmp_path_factory, kind, place, byte, cut):
    path = tmp_path_factory.getbasetemp() / f"damaged{kind}"
    write_image(path, WHOLE)
    data = bytearray(path.read_bytes())
    place %= len(data)
    data[place] = byte
    path.write_bytes(data[:place] if cut else data)
    for read in (read_image, read_label):
        try:
            assert read(path).size
        except ValueError as error:
            assert path.name in str(error)


def test_a_colour_mask_is_no_label_map_and_equal_channels_are(tmp_path):
    mask = np.zeros((4, 4, 3), np.uint8)
    mask[:2] = 255
    write_image(tmp_path / "grey.png", mask)
    assert (read_label(tmp_path / "grey.png") == mask[..., 0]).all()
    mask[0] = 255, 0, 0  # the same red as white
    write_image(tmp_path / "colours.png", mask)
    with pytest.raises(ValueError, match="colours.png is a colour picture"):
        read_label(tmp_path / "colours.png")


def turned(path, orientation, size=(6, 4)):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("L", size).save(path, exif=exif)


def test_a_label_that_exif_turns_is_refused(tmp_path):
    turned(tmp_path / "a.png", 3)
    with pytest.raises(ValueError, match="a.png has an EXIF"):
        read_label(tmp_path / "a.png")


@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("extension", ["png", "tiff"])
def test_cameras_of_few_bits_in_16_bit_files_are_not_read_nearly_black(tmp_path, bits, extension):
    path = tmp_path / f"a.{extension}"
    Image.fromarray(np.full((4, 4), 2**bits - 1, np.uint16)).save(path)
    with pytest.raises(ValueError, match=r"a\.\w+ is stored with 16 bits"):
        read_image(path)


def test_16_bits_keep_their_high_byte(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(0, 65536, 4096, dtype=np.uint16).reshape(4, 4)).save(path)
    assert (read_image(path)[..., 0] == np.arange(0, 256, 16).reshape(4, 4)).all()


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_label_may_have_alpha_only_where_all_is_opaque(tmp_path, mode):
    image = Image.new(mode, (4, 4), (1, 255) if mode == "LA" else (1, 1, 1, 255))
    image.save(tmp_path / "opaque.png")
    assert (read_label(tmp_path / "opaque.png") == 1).all()
    image.putpixel((0, 0), (1, 0) if mode == "LA" else (1, 1, 1, 0))
    image.save(tmp_path / "clear.png")
    with pytest.raises(ValueError, match="clear.png has transparent pixels"):
        read_label(tmp_path / "clear.png")


def test_a_label_of_several_frames_is_refused(tmp_path):
    frames = [Image.new("L", (4, 4), value) for value in (1, 2)]
    frames[0].save(tmp_path / "a.tiff", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="a.tiff has 2 frames"):
        read_label(tmp_path / "a.tiff")
