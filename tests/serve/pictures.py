"""Good, bad and hostile image files, made on the spot; numbers in comments are those of the catalogue of faults."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HTML = b"<!doctype html><html><body>404 Not Found</body></html>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"><rect width="4" height="4"/></svg>'
RANDOM = np.random.default_rng(3).bytes(4096)


def scene(width: int = 64, height: int = 48) -> NDArray[np.uint8]:
    """A smooth picture whose corners all differ, so that turns and mirror images show: uint8 (height, width, 3)."""
    down, across = np.mgrid[0:height, 0:width]
    channels = (across * 255 // max(width - 1, 1), down * 255 // max(height - 1, 1), (across + down) % 64 * 2)
    return np.stack(channels, axis=-1).astype(np.uint8)


def encoded(image: Image.Image | NDArray[Any], form: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    stream = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(stream, form, **options)
    return stream.getvalue()


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    """One chunk of a PNG file (PNG specification, 5.3)."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int,
    height: int,
    pixels: bytes | None = b"",
    *,
    depth: int = 8,
    colour: int = 2,
    before: Iterable[bytes] = (),
    after: Iterable[bytes] = (),
) -> bytes:
    """A PNG file made by hand; `pixels` are the filtered rows before deflating, None leaves IDAT out."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(pixels, 9)) if pixels is not None else b""
    return SIGNATURE + header + b"".join(before) + data + b"".join(after) + chunk(b"IEND")


def rows(width: int, height: int) -> bytes:
    """The rows of a black RGB picture, each with its filter byte."""
    return bytes(height * (1 + 3 * width))


def text_bomb(size: int) -> bytes:
    """A zTXt chunk that inflates to `size` zero bytes."""
    return chunk(b"zTXt", b"Comment\0\0" + deflated_zeros(size))


def profile_bomb(size: int) -> bytes:
    """An iCCP chunk that inflates to `size` zero bytes."""
    return chunk(b"iCCP", b"icc\0\0" + deflated_zeros(size))


def deflated_zeros(size: int) -> bytes:
    """A zlib stream of `size` zero bytes, made without holding them."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(1 << 20)) for _ in range(size >> 20)]
    return b"".join([*parts, packer.compress(bytes(size & 0xFFFFF)), packer.flush()])


def data_bomb(size: int) -> bytes:
    """A picture of 8×8 pixels whose IDAT inflates to `size` bytes (37)."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    return SIGNATURE + header + chunk(b"IDAT", deflated_zeros(size)) + chunk(b"IEND")


def bad_crc() -> bytes:
    """A whole PNG with one wrong byte in the check sum of its header (35)."""
    data = bytearray(encoded(scene()))
    data[32] ^= 0xFF
    return bytes(data)


def webp_of(width: int, height: int) -> bytes:
    """The header of a WebP that claims a canvas of that size, without a frame (RFC 9649, 2.7)."""
    body = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    parts = b"WEBP" + b"VP8X" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(parts)) + parts


def oriented(pixels: NDArray[np.uint8], orientation: int, form: str = "JPEG", **options: Any) -> bytes:
    """A file with an EXIF orientation of 1 to 8."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(pixels, form, exif=exif, **options)


def jpeg_with_segments(count: int) -> bytes:
    """A JPEG with `count` empty comments before its picture."""
    data = encoded(scene(), "JPEG")
    return data[:2] + b"\xff\xfe\x00\x02" * count + data[2:]


def jpeg_with_scans(width: int, height: int, scans: int) -> bytes:
    """A progressive gray JPEG that refines the same coefficients `scans` times (ITU-T T.81, G)."""
    data = encoded(Image.new("L", (width, height), 90), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    end = data.rindex(b"\xff\xd9")
    return data[:end] + data[last:end] * scans + data[end:]


def modes(pixels: NDArray[np.uint8]) -> dict[str, tuple[bytes, NDArray[np.uint8]]]:
    """Name → file and the RGB pixels that it shows, for every way of storing colour (42, 43)."""
    picture = Image.fromarray(pixels)
    gray = np.asarray(picture.convert("L"))
    clear = np.dstack([pixels, np.where(np.arange(pixels.shape[1]) < 8, 0, 255) + 0 * gray]).astype(np.uint8)
    on_white = np.where(clear[..., 3:] == 0, 255, pixels).astype(np.uint8)
    bits = gray > 127
    wide = gray.astype(np.uint16) * 257
    palette = picture.quantize(16)
    shown = np.asarray(palette.convert("RGB"))
    first = np.asarray(palette) == 0
    return {
        "RGB": (encoded(picture), pixels),
        "L": (encoded(gray), _gray(gray)),
        "1": (encoded(Image.fromarray(bits)), _gray(np.where(bits, 255, 0))),
        "I;16": (encoded(Image.fromarray(wide)), _gray(gray)),
        "RGBA": (encoded(clear), on_white),
        "LA": (
            encoded(Image.fromarray(clear).convert("LA")),
            np.where(clear[..., 3:] == 0, 255, _gray(gray)).astype(np.uint8),
        ),
        "P": (encoded(palette), shown),
        "P+tRNS": (
            encoded(palette, transparency=0),
            np.where(first[..., None], 255, shown).astype(np.uint8),
        ),
    }


def cmyk(rgb: Sequence[int]) -> bytes:
    """A JPEG of one colour stored as CMYK; Pillow writes and reads it inverted, as Adobe does."""
    return encoded(Image.new("CMYK", (16, 16), (*(255 - value for value in rgb), 0)), "JPEG", quality=100)


def unsupported() -> dict[str, bytes]:
    """Name → file of a picture format that is not read (44)."""
    picture = Image.fromarray(scene(8, 8))
    return {
        "GIF": encoded(picture, "GIF", save_all=True, append_images=[picture.rotate(90)]),
        "TIFF": encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
        "EPS": encoded(picture, "EPS"),
        "FITS": b"SIMPLE  =                    T".ljust(2880),
        "PSD": b"8BPS\0\1" + bytes(40),
        "JPEG 2000": encoded(picture, "JPEG2000"),
        "HEIF, AVIF or video": b"\0\0\0\x20ftypheic" + bytes(24),
        "ICO": encoded(picture, "ICO"),
        "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        "PPM": encoded(picture, "PPM"),
        "JPEG XL": b"\xff\x0a\xfa\x1f\x01",
    }


def _gray(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)
