"""Any image a user has → RGB pixels; what cannot be one is refused by name, before it costs memory."""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vitesse.data.scaling import Size
from vitesse.errors import DataError

ImageSource = str | Path | bytes | Image.Image | NDArray[np.uint8]
Pixels = NDArray[np.uint8]
# A picture that is RGB and upright already: pixels (height, width, 3), or an image of Pillow, which spares the copy.
Rgb = Pixels | Image.Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
FORMAT_NAMES = {"WEBP": "WebP"}  # as people write them, where Pillow's names differ
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
# Pillow's own limit, 268 MB of RGB: above any camera's single shot, below what a server should decode.
MAX_PIXELS = 89_478_485
_PILLOW_BOUND = 2 * MAX_PIXELS  # files above it Pillow itself refuses to open

_ORIENTATION_TAG = 0x0112  # EXIF 2.32, 4.6.4 A
_TURNED_ASIDE = range(5, 9)  # orientations that exchange width and height
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EIGHT_OF_16 = ((np.arange(65536) * 255 + 32767) // 65535).astype(np.uint8)
# `catch_warnings` swaps a process-wide list, so threads that decode at the same time must take turns in it.
_warnings_turn = threading.Lock()
if hasattr(os, "register_at_fork"):  # not on Windows
    # A process that is forked while another thread has the turn would wait for it forever.
    os.register_at_fork(
        before=_warnings_turn.acquire,
        after_in_parent=_warnings_turn.release,
        after_in_child=_warnings_turn.release,
    )


class ImageTooLarge(DataError):
    """An image with more pixels than its reader takes; known from the header, before any pixel is read."""


def decode_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Return the picture as RGB: uint8 (height, width, 3), values 0..255, upright by its EXIF orientation.

    Args:
        source: a path, the bytes of an image file, a Pillow image, or uint8 pixels: (H, W, 3) RGB, (H, W) gray.
            Files may be JPEG, PNG, WebP, BMP, TIFF or GIF; of several frames the first is taken.
        max_pixels: largest width x height that is decoded; compared with the header before any pixel is read.

    Gray is repeated on three channels, transparency is laid on white, CMYK and palettes are converted, 16-bit
    gray is rounded to 8 bits.

    Raises:
        DataError: names the file and the cause: missing, empty, damaged, no image, too large, float pixels.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        return rgb_pixels(source, f"the {source.mode} image", max_pixels=max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_stream(io.BytesIO(source), f"the image ({len(source)} bytes)", len(source), max_pixels)
    if isinstance(source, str | Path):
        return _from_file(Path(source), max_pixels)
    raise DataError(
        f"cannot read an image from {type(source).__name__}",
        expected="a path, the bytes of an image file, a Pillow image or a uint8 array",
    )


def _from_file(path: Path, max_pixels: int) -> Pixels:
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, io.SEEK_END)
            stream.seek(0)
            return _from_stream(stream, str(path), size, max_pixels)
    except FileNotFoundError as error:
        raise DataError(
            f"no image at {path}",
            expected="an image file",
            cause="a typing error, or the file was moved",
            fix="name a file that is there; a relative path begins in the current folder",
        ) from error
    except IsADirectoryError as error:
        raise DataError(
            f"{path} is a folder", expected="an image file", fix=f"name the files in it, such as {path}/*.jpg"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {path}", cause=error.strerror or str(error)) from error


def _from_stream(stream: BinaryIO, name: str, size: int, max_pixels: int) -> Pixels:
    if size == 0:
        raise DataError(
            f"{name} is empty (0 bytes)",
            expected="an image file",
            cause="a download or copy that was cut off",
        )
    with open_image(stream, name, max_pixels=max_pixels) as image:
        return rgb_pixels(image, name, max_pixels=max_pixels)


def open_image(
    stream: BinaryIO, name: str, *, formats: Sequence[str] = FORMATS, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Read the header of an image file: format and size are known then, no pixel is decoded.

    Args:
        stream: stays open as long as the image is used.
        name: what errors call the file.
        formats: those of `FORMATS` that are tried; nothing else is looked at.
        max_pixels: named by the error where Pillow itself finds the picture too large.

    Raises:
        ImageTooLarge: above the 178,956,970 pixels that Pillow opens.
        DataError: no image of these formats, or a damaged header.
    """
    try:
        with _without_warnings():
            return Image.open(stream, formats=tuple(formats))
    except UnidentifiedImageError as error:
        *most, last = [FORMAT_NAMES.get(form, form) for form in formats]
        raise DataError(
            f"{name} is not an image that can be read",
            expected=f"{', '.join(most)} or {last}" if most else last,
            cause="another kind of file under this name, or a damaged header",
            fix="convert it to JPEG or PNG, or remove it",
        ) from error
    except Image.DecompressionBombError as error:
        raise _too_large(name, str(error), max_pixels) from error
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # Pillow's parsers raise many kinds on damaged headers
        raise _damaged(name, error) from error


def upright_size(image: Image.Image) -> Size:
    """Return (height, width) of an opened image once it is upright by its EXIF orientation."""
    width, height = image.size
    return (width, height) if _orientation(image) in _TURNED_ASIDE else (height, width)


def reduce_jpeg(image: Image.Image, least: Size) -> None:
    """Have an opened JPEG decoded at 1/2, 1/4 or 1/8 of its sides, as small as `least` allows; others stay.

    The scaling is done on the 8×8 blocks' frequencies (ITU-T T.81, A.3.3), which costs a fraction of decoding every
    pixel and gives slightly different ones than decoding and resizing.

    Args:
        least: (height, width) of the upright picture below which it is not reduced, in pixels.
    """
    if image.format in {"JPEG", "MPO"}:  # MPO: several JPEGs in one file, as some phones write
        height, width = reversed(least) if _orientation(image) in _TURNED_ASIDE else least
        image.draft(None, (max(width, 1), max(height, 1)))


def size_of(image: Rgb) -> Size:
    """Return (height, width) of a picture."""
    return (image.height, image.width) if isinstance(image, Image.Image) else (image.shape[0], image.shape[1])


def rgb_pixels(image: Image.Image, name: str, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode an opened image: RGB uint8 (height, width, 3), upright; raises as `decode_image`."""
    return np.asarray(rgb_image(image, name, max_pixels=max_pixels))


def rgb_image(image: Image.Image, name: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an opened image and return it in mode RGB, upright; the pixels are those of `rgb_pixels`."""
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(name, f"{width}×{height} = {width * height} pixels", max_pixels)
    if width == 0 or height == 0:
        raise DataError(f"{name} has no pixels: {width}×{height}", expected="width and height of at least 1")
    try:
        if image.format in {
            "TIFF",
            "GIF",
        }:  # their decoders warn; the others are silent and need not take turns
            with _without_warnings():
                image.load()
        else:
            image.load()
        upright = _upright(image)
        return _rgb(upright, name)
    except (DataError, MemoryError):  # the latter says nothing about the file
        raise
    except (
        Exception
    ) as error:  # OSError, SyntaxError, ValueError, struct.error …: whatever a damaged file provokes
        raise _damaged(name, error) from error


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURN.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        with _without_warnings():
            return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF says nothing about the pixels
        return 1


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(np.asarray(image), name)).convert("RGB")
    if image.mode == "F":
        raise DataError(
            f"{name} holds float pixels",
            expected="8 or 16 bits a channel",
            fix="scale it to 0..255 and save as PNG",
        )
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _eight_bits(values: NDArray[np.generic], name: str) -> Pixels:
    """16-bit gray → 8-bit, rounded: 65535 becomes 255."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise DataError(
            f"{name} holds 32-bit gray values from {low} to {high}",
            expected="8 or 16 bits a channel",
            fix="scale it to 0..255 and save as PNG",
        )
    eight: Pixels = _EIGHT_OF_16[values]  # a table: no copy of the picture in wide integers
    return eight


def _from_array(array: NDArray[np.generic], max_pixels: int) -> Pixels:
    shape = "×".join(map(str, array.shape)) or "a scalar"
    if array.dtype != np.uint8:
        fix = "np.clip(image, 0, 255).astype(np.uint8), times 255 before if it lies in 0..1"
        raise DataError(
            f"an image array of dtype {array.dtype}", expected="uint8 with values 0..255", fix=f"pass {fix}"
        )
    gray = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    if not gray and (array.ndim != 3 or array.shape[2] != 3):
        channels_first = array.ndim == 3 and array.shape[0] == 3
        raise DataError(
            f"an image array of shape {shape}",
            expected="(height, width, 3) in RGB order, or (height, width) gray",
            cause="channels first" if channels_first else "",
            fix="pass image.transpose(1, 2, 0)"
            if channels_first
            else "pass images one at a time, without alpha",
        )
    if array.size == 0:
        raise DataError(f"the image array has no pixels: {shape}", expected="height and width of at least 1")
    if array.shape[0] * array.shape[1] > max_pixels:
        raise _too_large("the image array", shape, max_pixels)
    pixels = array.astype(np.uint8, copy=False)
    return _gray_to_rgb(pixels.reshape(pixels.shape[:2])) if gray else pixels


def _gray_to_rgb(gray: Pixels) -> Pixels:
    return np.repeat(gray[..., None], 3, axis=2)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep Pillow's warnings (large image, odd metadata) away from the user: the size check here decides."""
    with _warnings_turn, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _too_large(name: str, found: str, max_pixels: int) -> ImageTooLarge:
    most = min(max_pixels, _PILLOW_BOUND)
    return ImageTooLarge(
        f"{name} is too large: {found}",
        expected=f"at most {most} pixels",
        cause="a decompression bomb, or a scan at full resolution",
        fix="scale the image down" + (", or raise max_pixels" if most < _PILLOW_BOUND else ""),
    )


def _damaged(name: str, error: Exception) -> DataError:
    return DataError(
        f"{name} is damaged: {error or type(error).__name__}",
        expected="a complete image file",
        cause="a download or copy that was cut off",
        fix="fetch it again, or remove it",
    )
