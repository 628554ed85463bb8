r"""The bytes of a request → pixels → what a model is fed with; what cannot be a picture is refused before it costs.

Decoding is `data.images`, the same that calibration and verification used; here stand only a server's limits, and
which answer a client gets.

A JPEG of 12 megapixels (4000×3000, quality 85, 2 MB; best of 5, processor time on one core of a shared machine) costs
86 ms to decode and 54 ms to make a tensor of 224×224 from; reduced for that tensor (`reduced_for`) 17 ms and 1 ms, its
values then differ by half a level of 255 in the mean, 4 at most. For 640×640: 86 + 61 ms, reduced 19 + 5 ms.

    python -m timeit -n 5 -s 'from vitesse.serve.images import pixels_of; from vitesse.serve.limits import Limits' \
        -s 'body = open("photo.jpg", "rb").read()' 'pixels_of(body, Limits())'
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vitesse.data.images import (
    ImageTooLarge,
    Pixels,
    Rgb,
    open_image,
    reduce_jpeg,
    rgb_image,
    size_of,
    upright_size,
)
from vitesse.data.preprocess import feeds, place
from vitesse.data.scaling import Size
from vitesse.errors import DataError
from vitesse.serve.image_parts import check_parts, stated_size
from vitesse.serve.limits import Limits
from vitesse.serve.refusals import Refusal
from vitesse.serve.work import Arrays
from vitesse.spec import ModelSpec

TAKEN = "JPEG, PNG, WebP or BMP"
# First bytes of formats that are pictures but are not read: rarely needed, and their decoders had the worst holes.
_OTHER_FORMATS = (
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"SIMPLE  =", "FITS"),
    (b"8BPS", "PSD"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\1\0", "ICO"),
    (b"%PDF", "PDF"),
    *((b"P%d" % kind + blank, "PPM") for kind in range(1, 7) for blank in (b"\n", b" ", b"\r", b"\t")),
)


@dataclass(frozen=True)
class Extent:
    """What is left of an image while its answer is waited for: `decoded` and `size` as `Picture` has them."""

    decoded: Size
    size: Size


@dataclass(frozen=True, eq=False)
class Picture:
    """One decoded image.

    Args:
        image: in mode RGB, upright; of a reduced decoding smaller than the image itself. It stays Pillow's, who
            resizes it: there and back its pixels would be copied twice.
        size: (height, width) of the upright image as it was sent; boxes are answered in its pixels.
    """

    image: Image.Image
    size: Size

    @property
    def pixels(self) -> Pixels:
        """A copy of the pixels: uint8 (height, width, 3) RGB."""
        return np.asarray(self.image)

    @property
    def decoded(self) -> Size:
        """(height, width) of the pixels."""
        return size_of(self.image)

    @property
    def extent(self) -> Extent:
        """The sizes alone."""
        return Extent(self.decoded, self.size)


def pixels_of(
    body: bytes, limits: Limits, *, fast_decode: bool = False, spec: ModelSpec | None = None
) -> Pixels:
    """Return the pixels of an image file: uint8 (height, width, 3) RGB, 0..255, upright by its EXIF orientation.

    Args:
        body: the file; its first bytes say what it is, not a name or a Content-Type.
        limits: image_pixels, image_side, image_side_least and image_aspect are judged from the header.
        fast_decode: decode a JPEG at a reduced scale, not below what `spec` makes of it. The pixels then differ
            slightly from those the model was verified with, and are of another size than the image: take
            `picture_of`, which says both.

    Raises:
        Refusal: 400 "bad_image" (empty, damaged, no picture, too small or too narrow), 413 "too_large",
            415 "unsupported" (a picture of another format), 503 "backend" (no memory).
        ValueError: fast_decode without a spec.
    """
    if fast_decode and spec is None:
        raise ValueError("fast_decode needs the spec: it says how small the picture may become")
    return picture_of(body, limits, reduced_for=spec if fast_decode else None).pixels


def picture_of(body: bytes, limits: Limits, *, reduced_for: ModelSpec | None = None) -> Picture:
    """Return an image file's pixels and its own size; as `pixels_of`, reduced where a spec is given."""
    kind = _kind(body)
    name = f"the image ({len(body)} bytes)"
    try:
        check_parts(body)
        with open_image(io.BytesIO(body), name, formats=(kind,), max_pixels=limits.image_pixels) as image:
            _check_size(image.size, limits)
            if reduced_for is not None:
                return _reduced(image, name, reduced_for)
            decoded = rgb_image(image, name, max_pixels=limits.image_pixels)
    except ImageTooLarge as error:
        raise _too_large(error.what, limits) from error
    except DataError as error:
        raise _undecodable(error) from error
    except MemoryError as error:
        raise Refusal(
            503,
            "backend",
            f"no memory to decode {name}; expected to have some. Likely cause: many large images at once. Next step: "
            "send it again, or start the server with a smaller --image-pixels",
            {"Retry-After": "1"},
        ) from error
    return Picture(decoded, size_of(decoded))


def check_header(body: bytes, limits: Limits) -> None:
    """Refuse what its first bytes say is no picture, or one of a wrong size: no decoder is asked, no thread needed.

    What passes may still be refused by `picture_of`, which has the last word on the size as well.

    Raises:
        Refusal: 400 "bad_image", 413 "too_large" or 415 "unsupported", as `pixels_of`.
    """
    _kind(body)
    size = stated_size(body)
    if size is not None:
        _check_size(size, limits)


def feeds_of(images: Sequence[Rgb], spec: ModelSpec) -> Arrays:
    """Return what a model is fed with for these images, on the first axis; they belong into one bucket of the spec.

    Raises:
        Refusal: 400 "bad_image": the spec does not resize and the size is wrong, the image is too thin to be cropped,
            or images of several buckets.
        SpecError: the spec contradicts itself.
    """
    try:
        return feeds(images, spec, [_called(image) for image in images])
    except DataError as error:
        raise Refusal(400, "bad_image", _sentences(error)) from error


def _kind(body: bytes) -> str:
    if body.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if body.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if body.startswith(b"RIFF") and body[8:12] == b"WEBP":
        return "WEBP"
    if body.startswith(b"BM"):
        return "BMP"
    other = next((name for magic, name in _OTHER_FORMATS if body.startswith(magic)), None)
    if body[4:8] == b"ftyp":
        other = "HEIF, AVIF or video"
    if other is not None:
        raise Refusal(
            415,
            "unsupported",
            f"the body is {other}; expected {TAKEN}. Next step: convert it to JPEG or PNG",
        )
    if not body:
        raise Refusal(
            400,
            "bad_image",
            f"cannot decode the image: the body is empty (0 bytes); expected a {TAKEN} file. Likely cause: a file name "
            "sent in place of its bytes. Next step: curl --data-binary @photo.jpg",
        )
    raise Refusal(
        400,
        "bad_image",
        f"cannot decode the image: {len(body)} bytes that begin with {body[:8].hex(' ')} are no picture; expected "
        f"{TAKEN}. Likely cause: a page or text, a form (multipart), or base64. Next step: send the file's bytes "
        "themselves: curl --data-binary @photo.jpg",
    )


def _check_size(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    short, long = min(size), max(size)
    said = f"{width}×{height} pixels (width×height)"
    if short < limits.image_side_least:
        raise _unfit(f"{said}; expected sides of at least {limits.image_side_least}")
    if long > limits.image_aspect * short:
        raise _unfit(
            f"{said}; expected a longer side of at most {limits.image_aspect:g} times the shorter one"
        )
    if long > limits.image_side or width * height > limits.image_pixels:
        raise _too_large(said, limits)


def _reduced(image: Image.Image, name: str, spec: ModelSpec) -> Picture:
    size = upright_size(image)
    reduce_jpeg(image, place(size, spec.preprocessing, name).resized)
    return Picture(rgb_image(image, name), size)


def _called(image: Rgb) -> str:
    height, width = size_of(image)
    return f"the image of {width}×{height}"


def _unfit(text: str) -> Refusal:
    return Refusal(
        400,
        "bad_image",
        f"cannot use the image: {text}. Next step: send the picture itself, not a line of it",
    )


def _too_large(found: str, limits: Limits) -> Refusal:
    return Refusal(
        413,
        "too_large",
        f"the image is too large: {found}; expected sides of at most {limits.image_side} and at most "
        f"{limits.image_pixels} pixels. Likely cause: a decompression bomb, or a scan at full resolution. "
        "Next step: scale it down, or start the server with higher limits",
    )


def _undecodable(error: DataError) -> Refusal:
    return Refusal(400, "bad_image", f"cannot decode the image: {_sentences(error)}")


def _sentences(error: DataError) -> str:
    """An error's parts on one line, as the answers of a server are."""
    parts = [error.what + (f"; expected {error.expected}" if error.expected else "")]
    parts += [f"Likely cause: {error.cause}"] if error.cause else []
    parts += [f"Next step: {error.fix}"] if error.fix else []
    return ". ".join(parts)
