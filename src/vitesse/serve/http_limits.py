"""Bounds of a request's body, before and while it is read: size and time; and an answer that says so.

Headers and connections have theirs in `connection`; what a body unpacks to, in `protocol`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitesse.serve.connection import RECEIVED
from vitesse.serve.limits import Limits
from vitesse.serve.refusals import Refusal


def header_of(scope: Scope, name: bytes) -> str | None:
    """Return a request's first header of this name (in lower case), None where it has none."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None


def refusal_answer(refusal: Refusal) -> JSONResponse:
    """Return a refusal as an answer: `{"error", "code"}` with its status and headers."""
    return JSONResponse(refusal.document(), refusal.status, dict(refusal.headers))


class BodyLimits:
    """ASGI middleware: refuses a body by its Content-Length before reading, any other while it is read.

    A connection whose body was not read to its end, or that meets a server on its way out, is closed after the answer.

    Args:
        app: what is wrapped; reading from it raises Refusal 413 or 408 inside the app's own call to `receive`.
        leaving: whether the server has begun to shut down.
    """

    def __init__(self, app: ASGIApp, limits: Limits, leaving: Callable[[], bool] = lambda: False) -> None:
        self._app, self._limits, self._leaving = app, limits, leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, self._limits, scope)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and (self._leaving() or not body.ended):
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        try:
            body.check_length()
        except Refusal as refusal:
            await refusal_answer(refusal)(scope, receive, answer)
            return
        await self._app(scope, body.receive, answer)


class _Body:
    """A request's body as it comes, counted and timed."""

    def __init__(self, receive: Receive, limits: Limits, scope: Scope) -> None:
        self._receive, self._limits = receive, limits
        self._length = header_of(scope, b"content-length")
        self._got = 0
        self._deadline: float | None = None
        self._here: Collection[bytes] = scope.get("extensions", {}).get(RECEIVED, ())
        self.ended = self._length in (None, "0") and header_of(scope, b"transfer-encoding") is None

    def check_length(self) -> None:
        """Raise Refusal 413 for a body that says it is too large, 400 for a length that is no number."""
        if self._length is None:
            return
        if not (self._length.isascii() and self._length.isdigit()):
            text = f"Content-Length is {self._length[:40]!r}, expected a number of bytes"
            raise Refusal(400, "bad_request", text)
        if int(self._length) > self._limits.body_bytes:
            raise self._too_large(f"Content-Length says {int(self._length)} bytes")

    async def receive(self) -> Message:
        """Return the next part; once the body has ended, wait for the client to go, however long that takes."""
        if self.ended:
            return await self._receive()
        loop = asyncio.get_running_loop()
        if self._deadline is None:
            self._deadline = loop.time() + self._limits.body_s
        try:
            if self._here:  # most bodies are, as a whole: nothing is waited for
                message = await self._receive()
            else:
                async with asyncio.timeout_at(self._deadline):
                    message = await self._receive()
        except TimeoutError:
            text = (
                f"the body did not come within {self._limits.body_s:g} s: at least {self._got} bytes did; "
                "send it faster, or start the server with a larger --body-s"
            )
            raise Refusal(408, "deadline", text) from None
        if message["type"] == "http.disconnect":
            self.ended = True
            return message
        self._got += len(message.get("body", b""))
        if self._got > self._limits.body_bytes:
            raise self._too_large(f"{self._got} bytes have come")
        self.ended = not message.get("more_body", False)
        return message

    def _too_large(self, found: str) -> Refusal:
        return Refusal(
            413,
            "too_large",
            f"the body is too large: {found}, at most {self._limits.body_bytes} are taken; "
            "send fewer or smaller tensors or images, or start the server with a larger --body",
        )
