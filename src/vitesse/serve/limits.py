"""How much a server takes before it says no; every number is an option of `vitesse serve`."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Bounds of a request, an image, a connection and a shutdown.

    Args:
        body_bytes: of a request as it comes; inflated_bytes: after Content-Encoding.
        header_bytes: of a request's header block; header_s, body_s: seconds in which they must have come.
        keep_alive_s: an idle connection is closed; connections: at once.
        image_pixels, image_side: of one image; image_aspect: longer side over shorter one; image_side_least: pixels.
        json_depth: nesting of a JSON body.
        queue_s: a request may wait for a worker; request_s: from its arrival to its answer.
        drain_s: from not ready to closing the listener; stop_s: for accepted work after that.
    """

    body_bytes: int = 32 * MIB
    inflated_bytes: int = 64 * MIB
    header_bytes: int = 64 * 1024
    header_s: float = 10.0
    body_s: float = 30.0
    keep_alive_s: float = 5.0
    connections: int = 256
    image_pixels: int = 50_000_000
    image_side: int = 16_384
    image_aspect: float = 50.0
    image_side_least: int = 2
    json_depth: int = 64
    queue_s: float = 1.0
    request_s: float = 30.0
    drain_s: float = 5.0
    stop_s: float = 30.0
