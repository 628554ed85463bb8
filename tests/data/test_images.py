import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from vitesse.data.images import ImageTooLarge, decode_image, open_image, reduce_jpeg, rgb_pixels, upright_size
from vitesse.errors import DataError

RAMP = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


def encoded(image, form="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def photo(form="JPEG", size=(64, 48)):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return encoded(Image.fromarray(noise), form)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_pixels_of_a_lossless_file_come_back_unchanged(form):
    options = {"lossless": True} if form == "WEBP" else {}
    flat = np.zeros((5, 7, 3), np.uint8) + np.array([200, 10, 90], np.uint8)
    assert np.array_equal(decode_image(encoded(Image.fromarray(flat), form, **options)), flat)


def test_path_string_bytes_image_and_array_give_the_same_pixels(tmp_path):
    path = tmp_path / "ramp.png"
    Image.fromarray(RAMP).save(path)
    for source in (path, str(path), path.read_bytes(), Image.open(path), RAMP):
        pixels = decode_image(source)
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, RAMP)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(orientation, form):
    image = Image.fromarray(np.kron(RAMP, np.ones((8, 8, 1), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, form, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    pixels = decode_image(data)
    assert pixels.shape == ((32, 48, 3) if orientation < 5 else (48, 32, 3))
    assert np.array_equal(pixels, np.asarray(upright))


def test_damaged_exif_does_not_cost_the_picture():
    data = encoded(Image.fromarray(RAMP), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0\1\1\x12\0\3")
    assert decode_image(data).shape == (4, 6, 3)


def test_gray_is_repeated_on_three_channels():
    gray = RAMP[..., 0]
    for source in (gray, gray[..., None], encoded(Image.fromarray(gray))):
        assert np.array_equal(decode_image(source), np.repeat(gray[..., None], 3, axis=2))


def test_one_bit_image_becomes_black_and_white():
    image = Image.fromarray(RAMP[..., 0]).convert("1")
    assert set(np.unique(decode_image(encoded(image)))) <= {0, 255}


def test_16_bit_gray_is_rounded_to_8_bits():
    values = np.array([[0, 257, 65535, 128, 129]], np.uint16)
    pixels = decode_image(encoded(Image.fromarray(values)))
    assert pixels[0, :, 0].tolist() == [0, 1, 255, 0, 1]


def test_transparency_is_laid_on_white():
    clear = np.zeros((2, 2, 4), np.uint8)
    clear[0, 0] = (10, 20, 30, 255)
    pixels = decode_image(encoded(Image.fromarray(clear)))
    assert pixels[0, 0].tolist() == [10, 20, 30]
    assert pixels[1, 1].tolist() == [255, 255, 255]


def test_palette_with_transparency_is_converted_without_a_warning():
    image = Image.fromarray(RAMP).quantize(8)
    data = encoded(image, transparency=bytes([0, 128, 255, 255, 255, 255, 255, 255]))
    assert decode_image(data).shape == (4, 6, 3)


def test_cmyk_becomes_rgb():
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert decode_image(encoded(red, "TIFF"))[0, 0].tolist() == [255, 0, 0]


def test_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data)[0, 0].tolist() == [255, 0, 0]


def png_header_of(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(10_000, 9_000), (14_000, 10_000), (60_000, 60_000)])
def test_decompression_bomb_is_refused_by_its_header_and_without_a_warning(size):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with pytest.raises(ImageTooLarge, match="too large") as caught:
            decode_image(png_header_of(*size))
    assert not heard
    assert "at most 89478485 pixels" in str(caught.value)
    assert "decompression bomb" in str(caught.value)


def test_limit_counts_for_arrays_and_pillow_images_too():
    for source in (RAMP, Image.fromarray(RAMP), encoded(Image.fromarray(RAMP))):
        with pytest.raises(DataError, match="at most 23 pixels"):
            decode_image(source, max_pixels=23)
        assert decode_image(source, max_pixels=24).shape == RAMP.shape


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_truncated_file_is_refused_by_name(form, tmp_path):
    path = tmp_path / "cut.img"
    data = photo(form)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"damaged|not an image") as caught:
        decode_image(path)
    assert str(path) in str(caught.value)
    assert "next step" in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(
    form=st.sampled_from(["JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP"]),
    edits=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=8),
    keep=st.floats(0, 1),
)
def test_damaged_bytes_give_pixels_or_a_data_error_and_nothing_else(form, edits, keep):
    data = bytearray(photo(form, (16, 12)))
    for place, value in edits:
        data[int(place * len(data))] = value
    try:
        pixels = decode_image(bytes(data[: round(keep * len(data))]))
    except DataError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3


def test_missing_file_empty_file_folder_and_text_are_each_named(tmp_path):
    empty = tmp_path / "empty.jpg"
    empty.touch()
    text = tmp_path / "page.jpg"
    text.write_text("<html>404</html>")
    for path, words in (
        (tmp_path / "absent.jpg", "no image at"),
        (empty, "is empty (0 bytes)"),
        (tmp_path, "is a folder"),
        (text, "is not an image that can be read"),
    ):
        with pytest.raises(DataError) as caught:
            decode_image(path)
        assert words in str(caught.value)
        assert str(path) in str(caught.value)


def test_formats_beyond_the_six_are_refused():
    with pytest.raises(DataError, match="JPEG, PNG, WebP, BMP, TIFF or GIF"):
        decode_image(encoded(Image.fromarray(RAMP), "PPM"))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), "dtype float32"),
        (np.zeros((3, 8, 8), np.uint8), r"pass image\.transpose\(1, 2, 0\)"),
        (np.zeros((8, 8, 4), np.uint8), "shape 8×8×4"),
        (np.zeros((2, 8, 8, 3), np.uint8), "one at a time"),
        (np.zeros((0, 8, 3), np.uint8), "no pixels: 0×8×3"),
    ],
)
def test_array_that_is_no_picture_is_refused_with_its_shape_or_dtype(array, words):
    with pytest.raises(DataError, match=words):
        decode_image(array)


def test_float_and_32_bit_pixels_are_refused():
    with pytest.raises(DataError, match="float pixels"):
        decode_image(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))
    with pytest.raises(DataError, match="32-bit gray values from 0 to 70000"):
        decode_image(encoded(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF"))


def test_other_types_are_refused():
    with pytest.raises(DataError, match="cannot read an image from int"):
        decode_image(7)


def test_threads_that_decode_at_the_same_time_leave_the_warning_filters_as_they_were():
    before = list(warnings.filters)
    data = photo("TIFF")
    threads = [threading.Thread(target=lambda: [decode_image(data) for _ in range(30)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


def test_no_memory_is_not_called_a_damaged_image(monkeypatch):
    def full(*_, **__):
        raise MemoryError

    data = photo()
    for target in ("PIL.ImageFile.ImageFile.load", "PIL.Image.open"):
        with monkeypatch.context() as patch:
            patch.setattr(target, full)
            with pytest.raises(MemoryError):
                decode_image(data)


@pytest.mark.parametrize(
    ("formats", "words"), [(("PNG",), "expected: PNG"), (("PNG", "WEBP"), "expected: PNG or WebP")]
)
def test_only_the_formats_asked_for_are_opened(formats, words):
    with pytest.raises(DataError, match=words):
        open_image(io.BytesIO(photo("JPEG")), "the image", formats=formats)
    assert open_image(io.BytesIO(photo("PNG")), "the image", formats=formats).size == (64, 48)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_jpeg_is_reduced_by_whole_steps_and_never_below_the_size_asked_for(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.kron(RAMP, np.ones((8, 8, 1), np.uint8))), "JPEG", exif=exif)
    upright = (32, 48) if orientation < 5 else (48, 32)
    for least, step in (((1, 1), 8), ((4, 6), 8), ((5, 6), 4), ((16, 24), 2), ((17, 1), 1), ((99, 99), 1)):
        image = open_image(io.BytesIO(data), "the image")
        assert upright_size(image) == upright
        reduce_jpeg(image, least if orientation < 5 else least[::-1])
        assert rgb_pixels(image, "the image").shape[:2] == tuple(side // step for side in upright)
