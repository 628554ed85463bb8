"""How an answer leaves: in one write where that can be, and in any case."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the server: pip install 'vitesse[serve]'")

from vitesse.serve.connection import _Lingering

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
