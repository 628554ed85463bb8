"""Pictures inside the report, as data URIs, small enough that the file stays one to mail around."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

from vitesse.errors import RunFolderError

LARGEST_SIDE = 720  # pixels; twice the width a picture has on the page, for dense screens
LARGEST_BYTES = 120_000  # above this a picture is stored again as JPEG


@dataclass(frozen=True)
class Embedded:
    """A data URI and the picture's size in pixels."""

    uri: str
    width: int
    height: int


def embed(encoded: bytes) -> Embedded:
    """Return a PNG or JPEG as a data URI; larger ones are scaled to 720 pixels and stored as JPEG.

    Raises:
        RunFolderError: the bytes are not a picture.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
            image.load()
            if max(image.size) <= LARGEST_SIDE and len(encoded) <= LARGEST_BYTES:
                return _embedded(encoded, image.format or "PNG", image.size)
            smaller = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RunFolderError(
            f"a picture of the report cannot be decoded: {error}",
            expected="PNG or JPEG in the run's pictures folder",
            cause="the file was cut off or replaced",
            fix="repeat the optimize command, or delete report-data.json for a report without pictures",
        ) from error
    smaller.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    smaller.save(buffer, "JPEG", quality=85, optimize=True)
    return _embedded(buffer.getvalue(), "JPEG", smaller.size)


def _embedded(content: bytes, kind: str, size: tuple[int, int]) -> Embedded:
    return Embedded(f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}", *size)
