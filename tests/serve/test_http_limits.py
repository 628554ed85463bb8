"""A body's time: counted where it is waited for."""

import asyncio
from collections import deque
from typing import Any

import pytest

from serve.body_reader import BodyReader
from vitesse.serve import http_limits
from vitesse.serve.connection import RECEIVED
from vitesse.serve.http_limits import BodyLimits
from vitesse.serve.limits import Limits
from vitesse.serve.refusals import Refusal

PART = {"type": "http.request", "body": b"abc", "more_body": True}
LAST = {"type": "http.request", "body": b"def", "more_body": False}


def read(messages: list[Any], extensions: dict[str, Any], body_s: float = 30.0) -> list[bytes]:
    """Read a body through the limits; a message None never comes."""
    app = BodyReader()

    async def receive() -> Any:
        message = messages.pop(0)
        if message is None:
            await asyncio.sleep(60)
        return message

    async def send(message: Any) -> None: ...

    scope = {"type": "http", "headers": [(b"content-length", b"6")], "extensions": extensions}
    limited = BodyLimits(app, Limits(body_s=body_s))
    asyncio.run(limited(scope, receive, send))
    return app.parts


@pytest.mark.parametrize("extensions", [{}, {RECEIVED: deque()}, {RECEIVED: deque([b"abc", b"def"])}])
def test_a_body_is_read_to_its_end_whether_it_was_here_or_not(extensions: dict[str, Any]) -> None:
    assert read([PART, LAST], extensions) == [b"abc", b"def"]


def test_no_timer_is_started_for_parts_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_limits.asyncio, "timeout_at", lambda *_: pytest.fail("a timer"))
    assert read([PART, LAST], {RECEIVED: deque([b"abc", b"def"])}) == [b"abc", b"def"]


@pytest.mark.parametrize("extensions", [{}, {RECEIVED: deque()}])
@pytest.mark.parametrize("messages", [[None], [PART, None]])
def test_a_part_that_does_not_come_in_time_is_refused(
    messages: list[Any], extensions: dict[str, Any]
) -> None:
    with pytest.raises(Refusal) as caught:
        read(list(messages), extensions, body_s=0.02)
    assert caught.value.status == 408
