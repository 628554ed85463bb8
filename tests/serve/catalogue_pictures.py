"""Pictures 31 to 47 of the catalogue: bad ones with what must come back, and good ones with what they show."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageOps

from serve import pictures
from vitesse.serve.limits import MIB

SCENE = pictures.scene()


@dataclass(frozen=True)
class Bad:
    """A file, the statuses that may answer it, and part of the sentence."""

    number: int
    body: bytes
    status: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Good:
    """A file, and a plain PNG of the pixels that it shows."""

    number: int
    body: bytes
    shown: bytes


@cache
def bad() -> dict[str, Bad]:
    """Name → a picture that is refused."""
    cannot, large = "cannot decode the image", "the image is too large"
    cut = pictures.encoded(SCENE, "JPEG")[:-200], pictures.encoded(SCENE)[:-80]
    point, line = (pictures.png(1, side, pictures.rows(1, side)) for side in (1, 60_000))
    bits = pictures.png(12_000, 12_000, bytes(12_000 * 1501), depth=1, colour=0)
    text, profile = (
        pictures.png(8, 8, pictures.rows(8, 8), before=[bomb(200 * MIB)])
        for bomb in (pictures.text_bomb, pictures.profile_bomb)
    )
    return {
        "empty": Bad(31, b"", (400,), "the body is empty (0 bytes)"),
        "html": Bad(32, pictures.HTML, (400,), "are no picture; expected JPEG"),
        "svg": Bad(32, pictures.SVG, (400,), "are no picture; expected JPEG"),
        "random": Bad(32, pictures.RANDOM, (400,), "are no picture; expected JPEG"),
        "cut jpeg": Bad(33, cut[0], (400,), cannot),
        "cut png": Bad(33, cut[1], (400,), cannot),
        "header only": Bad(34, pictures.encoded(SCENE)[:33], (400,), cannot),
        "bad crc": Bad(35, pictures.bad_crc(), (400,), cannot),
        "no width": Bad(36, pictures.png(0, 8), (400,), cannot),
        "no height": Bad(36, pictures.png(8, 0), (400,), cannot),
        "144 megapixels of 1 bit": Bad(37, bits, (413,), large),
        "60000x60000 without data": Bad(38, pictures.png(60_000, 60_000), (413,), large),
        "largest dimensions": Bad(39, pictures.png(2**31 - 1, 2**31 - 1), (413,), large),
        "text bomb": Bad(40, text, (400, 413), cannot),
        "profile bomb": Bad(40, profile, (400, 413), cannot),
        "point": Bad(41, point, (400,), "sides of at least 2"),
        "line": Bad(41, line, (400,), "sides of at least 2"),
        "thin": Bad(41, pictures.encoded(pictures.scene(4, 600)), (400,), "at most 50 times the shorter"),
        **{
            kind: Bad(44, body, (415,), f"the body is {kind}")
            for kind, body in pictures.unsupported().items()
        },
    }


@cache
def good() -> dict[str, Good]:
    """Name → a picture that is taken."""
    found = {
        name: Good(43 if name == "I;16" else 42, body, pictures.encoded(pixels))
        for name, (body, pixels) in pictures.modes(SCENE).items()
    }
    cmyk = pictures.cmyk((200, 40, 90))
    found["CMYK"] = Good(42, cmyk, shown(cmyk))
    for orientation in range(1, 9):
        body = pictures.oriented(SCENE, orientation)
        found[f"EXIF {orientation}"] = Good(45, body, shown(body))
    plain = pictures.encoded(SCENE)
    found["trailing garbage"] = Good(46, plain + b"garbage", plain)
    return found


def shown(body: bytes) -> bytes:
    """A PNG of what a viewer shows, by Pillow alone."""
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(body)))
    return pictures.encoded(np.asarray(picture.convert("RGB")))
