"""Image files whose parts cost more than their pixels: counted in the raw bytes, before a decoder reads any of them.

A decoder walks over every chunk, segment and scan, and inflates every compressed comment, whatever the size of the
picture. Photographs have a few dozen of them; a hostile file of some kilobytes can have enough for minutes of work.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from vitesse.serve.refusals import Refusal

# PNG encoders write chunks of 8 KiB or more: 10,000 of them are twice what a body of 32 MiB can need, read in 20 ms.
MOST_CHUNKS = 10_000
# Pillow inflates each to 1 MiB at most, in 2 ms.
MOST_COMPRESSED = 16
# A profile of 16 MiB in segments of 64 KiB is 256 of them; 4,096 are read in 3 ms.
MOST_SEGMENTS = 4096
# Bytes between segments that belong to none; a decoder takes them one by one, 64 KiB in 20 ms.
MOST_FILLING = 65_536
# Encoders write about ten scans; each goes once more over all coefficients, 4 ms at 12 megapixels.
MOST_SCANS = 64
# A photograph's frame header is about the tenth segment; behind more of them the decoder finds it.
_LOOKED_AT = 32

_COMPRESSED = {b"zTXt", b"iTXt", b"iCCP"}
_SCAN, _END = 0xDA, 0xD9
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0-15, without DHT, JPG and DAC
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}  # SOF2, SOF6, SOF10, SOF14 (ITU-T T.81, table B.1)
# Leaves out what may come a million times: stuffed and filling bytes, and markers without a length (TEM, RST0-7, SOI).
# One byte of 0xFF, not a run of them: from every byte of a long run a pattern for runs would walk to its end.
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")


def check_parts(body: bytes) -> None:
    """Refuse a PNG or JPEG file with more parts than any camera or program writes; others pass.

    Args:
        body: the whole file; it is read, not copied.

    Raises:
        Refusal: 400 "bad_image"; names the part, how many there are at least and how many are taken.
    """
    if body.startswith(b"\x89PNG"):
        _check_chunks(body)
    elif body.startswith(b"\xff\xd8"):
        _check_segments(body)


def stated_size(body: bytes) -> tuple[int, int] | None:
    """Return the (width, height) that a PNG or JPEG file states near its beginning, in microseconds.

    None for other formats, for no pixels at all (damaged, or lines that are told behind the first scan), and where it
    stands elsewhere than encoders put it: a decoder has to look then.
    """
    if body[:4] == b"\x89PNG" and body[12:16] == b"IHDR" and len(body) >= 24:
        width, height = struct.unpack_from(">II", body, 16)
        return (width, height) if width and height else None
    place = 2
    for _ in range(_LOOKED_AT if body[:2] == b"\xff\xd8" else 0):
        found = _MARKER.match(body, place)
        if found is None or len(body) < place + 9:
            return None
        if found[1][0] in _FRAMES:  # its length, the bits of a sample, the lines, the samples of a line
            height, width = struct.unpack_from(">HH", body, place + 5)
            return (width, height) if width and height else None
        place += 2 + int.from_bytes(body[place + 2 : place + 4], "big")
    return None


def _check_chunks(body: bytes) -> None:
    compressed = 0
    for index, kind in enumerate(_chunks(body)):
        if index >= MOST_CHUNKS:
            raise _too_many("PNG chunks", MOST_CHUNKS)
        compressed += kind in _COMPRESSED
        if compressed > MOST_COMPRESSED:
            raise _too_many("compressed comments and profiles", MOST_COMPRESSED)


def _chunks(body: bytes) -> Iterator[bytes]:
    place = 8
    while place + 8 <= len(body):
        kind = body[place + 4 : place + 8]
        yield kind
        if kind == b"IEND":
            return
        place += 12 + int.from_bytes(body[place : place + 4], "big")


def _check_segments(body: bytes) -> None:
    """Count the segments; of a progressive file also the scans (a sequential one cannot repeat its data for free)."""
    segments = scans = filling = 0
    progressive = False
    for marker, skipped in _markers(body):
        filling += 0 if scans else skipped  # behind a scan it is the scan's data
        segments += marker != _SCAN
        scans += marker == _SCAN
        progressive = progressive or marker in _PROGRESSIVE
        if segments > MOST_SEGMENTS:
            raise _too_many("JPEG segments", MOST_SEGMENTS)
        if filling > MOST_FILLING:
            raise _too_many("bytes between JPEG segments", MOST_FILLING)
        if scans > MOST_SCANS:
            raise _too_many("JPEG scans", MOST_SCANS)
        if scans and not progressive:
            return


def _markers(body: bytes) -> Iterator[tuple[int, int]]:
    """Markers with a length, up to the end of the image, and how many bytes were skipped before each."""
    place = 2
    while found := _MARKER.search(body, place):
        marker, skipped, place = found[1][0], found.start() - place, found.end()
        if marker == _END:
            return
        yield marker, skipped
        place += int.from_bytes(body[place : place + 2], "big")


def _too_many(parts: str, most: int) -> Refusal:
    return Refusal(
        400,
        "bad_image",
        f"cannot decode the image: more than {most} {parts}; expected at most {most}. Likely cause: a file made to "
        "keep a decoder busy. Next step: save the picture again with any image program",
    )
