"""One HTTP connection: how many there may be, how long and how large a header block may be, and how it is closed.

uvicorn reads a header block of any size for any time, and answers what it cannot parse in plain text; here both have a
bound, and every answer is JSON.
"""

from __future__ import annotations

import asyncio
import http
import json
from collections import deque
from typing import Any

from uvicorn._types import ASGIReceiveEvent
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from vitesse.serve.limits import Limits
from vitesse.serve.refusals import Refusal

# A refused body is read and dropped for so long, or its sender would see a reset connection instead of the refusal.
LINGER_S = 2.0
# In a scope's extensions: the parts of the body that have come and were not taken yet.
RECEIVED = "vitesse.received"
# The app is not woken before so much of a body is here, or all of it: uvicorn wakes it, and stops and starts reading,
# for every 64 KiB. It bounds what is held of a body that nobody reads.
_GATHERED_BYTES = 1024 * 1024


def raw_answer(refusal: Refusal) -> bytes:
    """Return a whole HTTP/1.1 answer for what never reached the app; the connection closes after it."""
    body = json.dumps(refusal.document()).encode()
    lines = [
        f"HTTP/1.1 {refusal.status} {http.HTTPStatus(refusal.status).phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *(f"{name.lower()}: {value}" for name, value in refusal.headers.items()),
        "connection: close",
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


class _Lingering(asyncio.Transport):
    """A transport whose `close` first ends only its own half where the client is still sending.

    uvicorn writes an answer's head and its body apart: two system calls, and two packets that wake the client twice.
    The head is held until the body comes, at most until the loop's next turn.
    """

    def __init__(self, inner: asyncio.Transport, connection: Connection) -> None:
        super().__init__()
        self._inner, self._connection = inner, connection
        self._closing = False
        self._head = b""
        # The base class defines every method, as not implemented: what is not changed here is the inner one's.
        for name in _INHERITED:
            if (method := getattr(inner, name, None)) is not None:
                setattr(self, name, method)

    def is_closing(self) -> bool:
        return self._closing or self._inner.is_closing()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._head:
            self._inner.write(self._head + data)
            self._head = b""
        elif isinstance(data, bytes) and data.startswith(b"HTTP/1.1 "):
            self._head = data
            self._connection.loop.call_soon(self._flush)
        else:
            self._inner.write(data)

    def _flush(self) -> None:
        if self._head and not self._inner.is_closing():
            self._inner.write(self._head)
        self._head = b""

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._flush()
        if not self._connection.receiving or self._inner.is_closing() or not self._inner.can_write_eof():
            self._inner.close()
            return
        self._inner.write_eof()
        self._inner.resume_reading()
        self._connection.loop.call_later(LINGER_S, self._inner.close)


_INHERITED = tuple(
    name for name in dir(asyncio.Transport) if not name.startswith("_") and name not in vars(_Lingering)
)


class _Cycle(RequestResponseCycle):
    """uvicorn's request and response, whose body is handed over in the parts in which it came, without a copy."""

    parts: deque[bytes]

    async def receive(self) -> ASGIReceiveEvent:
        """Return the next part, when there is one; else wait for more, or for the client to go."""
        if not self.parts:
            message = await super().receive()
            if message["type"] == "http.disconnect" or not self.parts:
                return message
        part = self.parts.popleft()
        return {"type": "http.request", "body": part, "more_body": self.more_body or bool(self.parts)}


class Connection(HttpToolsProtocol):
    """uvicorn's connection with bounds. `connections_of(limits)` makes the class that uvicorn is given."""

    limits = Limits()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.receiving = False  # a message has begun and has not ended
        self._in_headers = True
        self._ended_headers = False  # before or in the data that is being parsed
        self._header_bytes = 0  # of whole lines, as the parser hands them over
        self._unparsed_bytes = 0  # of all that came while no header block had ended
        self._gathered_bytes = 0  # of a body, since the app was woken
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or answer 503 where there are too many."""
        super().connection_made(_Lingering(transport, self))
        if len(self.connections) > self.limits.connections:
            self._refuse(
                Refusal(
                    503,
                    "queue_full",
                    f"{self.limits.connections} connections are open, as many as this server takes; close idle "
                    "ones, or start it with a larger --connections",
                    {"Retry-After": "1"},
                )
            )
            return
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; drop it where the connection is being closed."""
        if self.transport.is_closing():
            return
        self._ended_headers = not self._in_headers
        super().data_received(data)
        if not self._in_headers or self.transport.is_closing():
            return
        # Most header blocks come in one piece, and need no timer.
        if self._timer is None and not self._ended_headers:
            self._start_timer()
        self._unparsed_bytes += 0 if self._ended_headers else len(data)
        if max(self._unparsed_bytes, self._header_bytes) > self.limits.header_bytes:
            self._refuse(self._headers_too_large())

    def on_message_begin(self) -> None:
        """Begin to count a header block."""
        self._header_bytes, self.receiving = 0, True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count the request line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header."""
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request to the app; its header block came in time."""
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            raise ValueError("HTTP/0.9")  # which has no headers, and the parser takes it
        self._in_headers, self._ended_headers = False, True
        self._stop_timer()
        super().on_headers_complete()
        # uvicorn names its class in the middle of a long method, and the app has not begun yet.
        self.cycle.__class__ = _Cycle
        self.cycle.parts = deque()  # type: ignore[attr-defined]
        # Not the cycle itself, which has the scope: the two would be garbage that only the collector finds.
        self.cycle.scope["extensions"] = {RECEIVED: self.cycle.parts}  # type: ignore[attr-defined]
        self._gathered_bytes = 0

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body, and wake the app where much of it is here."""
        cycle = self.cycle
        if cycle.response_complete:
            return
        assert isinstance(cycle, _Cycle)
        cycle.parts.append(body)
        self._gathered_bytes += len(body)
        if self._gathered_bytes > _GATHERED_BYTES:
            self._gathered_bytes = 0
            self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        """Wait for the next header block."""
        self.receiving, self._in_headers, self._unparsed_bytes = False, True, 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what could not be parsed, in JSON."""
        if self._header_bytes > self.limits.header_bytes:
            self._refuse(self._headers_too_large())
            return
        # An answer under way would be followed by a second status line; closing says enough.
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()
            return
        self._refuse(
            Refusal(400, "bad_request", "this is not an HTTP/1.1 request: the request line, a header or a chunk "
                    "size is malformed; the connection closes")
        )  # fmt: skip

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > self.limits.header_bytes:
            raise ValueError("header block too large")  # the parser stops and send_400_response says why

    def _headers_too_large(self) -> Refusal:
        return Refusal(
            431,
            "too_large",
            f"the header block is larger than {self.limits.header_bytes} bytes; send less in headers and URL",
        )

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.limits.header_s, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if not self._unparsed_bytes:  # nobody spoke: there is nothing to answer
            self.transport.close()
            return
        text = f"no whole header block within {self.limits.header_s:g} s; the connection closes"
        self._refuse(Refusal(408, "deadline", text))

    def _refuse(self, refusal: Refusal) -> None:
        self._stop_timer()
        self.receiving = True  # whatever still comes is dropped
        self.transport.write(raw_answer(refusal))
        self.transport.close()


def connections_of(limits: Limits) -> type[Connection]:
    """Return the connection class for these limits: uvicorn makes one object of it for each connection."""
    return type("LimitedConnection", (Connection,), {"limits": limits})
