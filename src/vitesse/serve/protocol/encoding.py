"""Content-Encoding of a request: a compressed body, opened no further than it may grow."""

from __future__ import annotations

import zlib

from vitesse.serve.limits import Limits
from vitesse.serve.protocol.wording import bad_request, shown
from vitesse.serve.refusals import Refusal

# zlib's name for the two formats: 16 more than the window size asks for gzip's header.
_WINDOWS = {"gzip": zlib.MAX_WBITS + 16, "x-gzip": zlib.MAX_WBITS + 16, "deflate": zlib.MAX_WBITS}


def inflate(body: bytes, content_encoding: str | None, limits: Limits) -> bytes:
    """Return the body as it was before Content-Encoding (RFC 9110, 8.4): gzip of one member, or zlib's deflate.

    Args:
        body: as it came.
        content_encoding: the request header, None where it is absent; `identity` and an empty one change nothing.
        limits: inflating stops at `inflated_bytes`; no more memory than that is taken.

    Raises:
        Refusal: 413 where it would grow beyond the limit, 415 for another encoding or several, 400 for a damaged or
            cut stream and for bytes behind it.
    """
    encoding = (content_encoding or "").strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOWS:
        raise Refusal(
            415,
            "unsupported",
            f"unsupported Content-Encoding {shown(content_encoding)}; expected gzip, deflate or none",
            {"Accept-Encoding": "gzip, deflate, identity"},
        )
    return _inflated(body, encoding, limits.inflated_bytes)


def _inflated(body: bytes, encoding: str, most: int) -> bytes:
    stream = zlib.decompressobj(_WINDOWS[encoding])
    try:
        inflated = stream.decompress(body, most + 1)
    except zlib.error as error:
        raise bad_request(
            f"the request body is not {encoding}: {error}; expected what Content-Encoding says"
        ) from error
    if len(inflated) > most:
        raise Refusal(
            413,
            "too_large",
            f"the request body inflates to more than the {most} bytes allowed; send fewer items "
            "at once, or start the server with a higher --inflated-bytes",
        )
    if not stream.eof:
        raise bad_request(f"the {encoding} stream of the request body ends early, after {len(body)} bytes")
    if stream.unused_data:
        raise bad_request(
            f"{len(stream.unused_data)} bytes follow the {encoding} stream of the request body; expected one stream"
        )
    return inflated
