"""A stand-in for the app behind a connection or a limit: it reads a body and answers."""

from __future__ import annotations

from typing import Any


class BodyReader:
    """An ASGI app that keeps the parts in which a body came, and answers 200 without a body."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            self.parts.append(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
