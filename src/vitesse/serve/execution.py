"""From a request's feeds to what a session answered: in time, not for a client that has gone, off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from starlette.requests import Request

from vitesse.serve.limits import Limits
from vitesse.serve.refusals import Refusal
from vitesse.serve.work import Arrays, Executed, Work

FeedsOf = Callable[[str], Arrays]
Value = TypeVar("Value")


class Routed(Protocol):
    """An answer and who gave it; `releases.router.Routed` is one."""

    @property
    def executed(self) -> Executed:
        """What came of the run."""
        ...

    @property
    def served_by(self) -> str:
        """The release that ran it."""
        ...


class Submits(Protocol):
    """Takes work and promises an answer; `releases.router.Router` does."""

    def submit(self, work: Work, feeds_of: FeedsOf | None = None) -> Future[Any]:
        """Run work, fed to each release as `feeds_of` says; raises Refusal at once where there is no room."""
        ...


class Threads:
    """Threads for decoding and resizing, with a bound on what waits for them: beyond it is no memory to wait in.

    Args:
        count: of threads, best the usable cores. waiting: calls that may wait for one.
    """

    def __init__(self, count: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="vitesse-decode")
        self._most, self._pending = count + waiting, 0

    async def run(self, function: Callable[..., Value], *arguments: Any) -> Value:
        """Return function(*arguments), called in a thread; raises Refusal 503 "queue_full" where too many wait."""
        if self._pending >= self._most:
            raise Refusal(
                503,
                "queue_full",
                f"{self._pending} requests wait for decoding, as many as may; try again in a second",
                {"Retry-After": "1"},
            )
        self._pending += 1
        try:
            return await asyncio.wrap_future(self._pool.submit(function, *arguments))
        finally:
            self._pending -= 1

    def close(self) -> None:
        """Take nothing more; what waits is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)


async def execute(
    request: Request,
    router: Submits,
    feeds: Arrays,
    limits: Limits,
    *,
    arrived: float,
    now: float,
    timeout_s: float | None = None,
    feeds_of: FeedsOf | None = None,
    request_id: str = "",
) -> Routed:
    """Run feeds and return the answer with who gave it.

    Args:
        arrived, now: seconds of the server's clock: when the request came, and this moment.
        feeds_of: release → the request's feeds as that release takes them, where they are not all alike.
        timeout_s: how long the client wants to wait for a worker; never more than the server's limit.

    Raises:
        Refusal: what the router refuses; 504 "deadline" past `limits.request_s`; "cancelled" where the client
            hung up, in which case nobody reads it.
    """
    patience = limits.queue_s if timeout_s is None else min(timeout_s, limits.queue_s)
    left = arrived + limits.request_s - now
    if left <= 0:
        raise _too_late(limits)
    work = Work(feeds, now, min(now + patience, arrived + limits.request_s), request_id)
    routed = router.submit(work, feeds_of)
    answer = asyncio.ensure_future(asyncio.wrap_future(routed))
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({answer, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()  # type: ignore[no-any-return]  # the future of a duck-typed router
        raise _too_late(limits) if not gone.done() else _cancelled()
    finally:
        gone.cancel()
        if not answer.done():
            # Both: the router's future, and the work that the batcher looks at before it runs anything.
            answer.cancel()
            routed.cancel()
            work.done.cancel()


async def _gone(request: Request) -> None:
    """Return when the client has hung up; the body has been read, so that nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _too_late(limits: Limits) -> Refusal:
    return Refusal(
        504,
        "deadline",
        f"no answer within {limits.request_s:g} s; the model is slow or overloaded, try again later",
        {"Retry-After": "1"},
    )


def _cancelled() -> Refusal:
    return Refusal(499, "cancelled", "the client hung up before the answer")
