"""How an answer leaves: in one write where that can be, and in any case."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the server: pip install 'vitesse[serve]'")

from uvicorn.config import Config
from uvicorn.server import ServerState

from serve.body_reader import BodyReader
from vitesse.serve.connection import _GATHERED_BYTES, RECEIVED, Connection, _Lingering

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n"


class Transport:
    """Keeps what is written and done."""

    def __init__(self) -> None:
        self.done: list[bytes | str] = []
        self.closing = False

    def write(self, data: bytes) -> None:
        self.done.append(bytes(data))

    def close(self) -> None:
        self.done.append("close")
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def get_extra_info(self, name: str) -> None:
        return None

    def pause_reading(self) -> None:
        self.done.append("pause")

    def resume_reading(self) -> None:
        self.done.append("resume")


def after(steps: Callable[[_Lingering, Transport], None]) -> list[bytes | str]:
    """Return what reached the transport when the loop has turned once after the steps."""

    async def go() -> list[bytes | str]:
        inner: Any = Transport()
        connection: Any = SimpleNamespace(loop=asyncio.get_running_loop(), receiving=False)
        steps(_Lingering(inner, connection), inner)
        await asyncio.sleep(0)
        return inner.done

    return asyncio.run(go())


def test_head_and_body_leave_in_one_write() -> None:
    def steps(transport: _Lingering, _: Transport) -> None:
        transport.write(HEAD)
        transport.write(b"abc")
        transport.write(b"more")

    assert after(steps) == [HEAD + b"abc", b"more"]


def test_a_head_whose_body_is_late_leaves_with_the_loops_next_turn() -> None:
    assert after(lambda transport, _: transport.write(HEAD)) == [HEAD]


def test_closing_sends_the_head_first() -> None:
    def steps(transport: _Lingering, _: Transport) -> None:
        transport.write(HEAD)
        transport.close()

    assert after(steps) == [HEAD, "close"]


def test_nothing_is_written_to_a_connection_that_is_lost() -> None:
    def steps(transport: _Lingering, inner: Transport) -> None:
        transport.write(HEAD)
        inner.closing = True

    assert after(steps) == []


async def asked(app: Any, chunks: list[bytes], length: int) -> list[bytes | str]:
    """Send an app a request with this body, and return what reached the transport."""
    config = Config(app, log_config=None, lifespan="off", ws="none")
    config.load()
    config.loaded_app = app
    inner: Any = Transport()
    connection = Connection(config, ServerState(), {}, asyncio.get_running_loop())
    connection.connection_made(inner)
    connection.data_received(b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % length)
    for chunk in chunks:
        connection.data_received(chunk)
    for _ in range(20):
        await asyncio.sleep(0)
    connection.connection_lost(None)
    done: list[bytes | str] = inner.done
    return done


def received(chunks: list[bytes], length: int) -> tuple[list[bytes], list[bytes | str]]:
    """Return the parts in which an app gets a body that comes in these chunks, and what reached the transport."""
    app = BodyReader()
    done = asyncio.run(asked(app, chunks, length))
    return app.parts, done


def test_a_body_reaches_the_app_in_the_parts_in_which_it_came() -> None:
    chunks = [bytes([number]) * 70_000 for number in range(8)]
    parts, done = received(chunks, 560_000)
    assert parts == chunks
    assert "pause" not in done and done[-1] == "close" and b"200 OK" in done[0]  # type: ignore[operator]


def test_reading_stops_where_an_app_does_not_take_the_body_and_goes_on_when_it_does() -> None:
    chunks = [bytes([number]) * 400_000 for number in range(4)]
    parts, done = received(chunks, 1_600_000)
    assert _GATHERED_BYTES < 1_600_000
    assert done[0] == "pause" and "resume" in done
    assert b"".join(parts) == b"".join(chunks)


def test_an_app_can_see_which_parts_are_here() -> None:
    seen: list[list[bytes]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        here = scope["extensions"][RECEIVED]
        seen.append(list(here))
        await receive()
        seen.append(list(here))

    asyncio.run(asked(app, [b"ab", b"cd"], 4))
    assert seen == [[b"ab", b"cd"], [b"cd"]]
