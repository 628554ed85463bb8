"""From a request's feeds to what a session answered: in time, not for a client that has gone, off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, TypeVar

from starlette.requests import Request

from vitesse.serve.limits import Limits
from vitesse.serve.refusals import Refusal
from vitesse.serve.work import Arrays, Executed, Work

FeedsOf = Callable[[str], Arrays]
# A request's feeds, and release → its own feeds where releases are not all fed alike. Without feeds, each release's
# worker makes those of the one item.
Fed = tuple[Arrays, FeedsOf | None]
_PATIENCE_S = 0.1
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
    """Threads for what would hold up the event loop, such as decoding. What waits for them is bounded by `Places`.

    Args:
        count: of threads, best the usable cores.
    """

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="vitesse-decode")

    def submit(self, function: Callable[[], object]) -> None:
        """Call a function in a thread; it has to see to its own result and errors."""
        self._pool.submit(function)

    async def run(self, function: Callable[..., Value], *arguments: Any) -> Value:
        """Return function(*arguments), called in a thread."""
        return await asyncio.wrap_future(self._pool.submit(function, *arguments))

    def close(self) -> None:
        """Take nothing more; what waits is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)


async def execute(
    request: Request,
    router: Submits,
    prepare: Callable[[], Fed],
    limits: Limits,
    *,
    arrived: float,
    clock: Callable[[], float],
    timeout_s: float | None = None,
    request_id: str = "",
    threads: Threads | None = None,
    ended: Callable[[Routed], object] | None = None,
) -> Routed:
    """Make the feeds of a request, run them and return the answer with who gave it.

    Args:
        prepare: makes the feeds; may raise Refusal. Called in one of `threads`, which hands the work to the router
            itself, without a turn of the event loop between; without threads it is called at once.
        arrived: seconds of `clock` when the request came.
        timeout_s: how long the client wants to wait for a worker; never more than the server's limit.
        ended: is given the answer on the thread that ended the run, before the event loop hears of it; short, because
            the worker's next run waits for it. What it raises is the request's answer.

    Raises:
        Refusal: what `prepare` and the router refuse; 504 "deadline" past `limits.request_s`; "cancelled" where the
            client hung up, in which case nobody reads it.
    """
    queue_s = limits.queue_s if timeout_s is None else min(timeout_s, limits.queue_s)
    latest = arrived + limits.request_s
    left = latest - clock()
    if left <= 0:
        raise _too_late(limits)
    errand = _Errand(router, prepare, ended, clock, queue_s, latest, request_id)
    if threads is None:
        # After what has come together with it is read: a worker that wakes up in between would have to wait for the
        # interpreter's lock, and then this thread for the worker.
        asyncio.get_running_loop().call_soon(errand.run)
    else:
        threads.submit(errand.run)
    patience = _Patience(errand.answer, request, left, limits)
    try:
        return await errand.answer
    finally:
        patience.end()
        errand.give_up()


class _Errand:
    """One request from its feeds to its answer. It is made and waited for on the event loop, and runs on any thread."""

    def __init__(
        self,
        router: Submits,
        prepare: Callable[[], Fed],
        ended: Callable[[Routed], object] | None,
        clock: Callable[[], float],
        patience_s: float,
        latest: float,
        request_id: str,
    ) -> None:
        self._router, self._prepare, self._ended, self._clock = router, prepare, ended, clock
        self._patience_s, self._latest, self._request_id = patience_s, latest, request_id
        self._loop = asyncio.get_running_loop()
        self._given_up = self._told_it = False
        self._cancel: Callable[[], None] | None = None
        self.answer: asyncio.Future[Routed] = self._loop.create_future()

    def run(self) -> None:
        """Make the feeds and submit them; nothing of that for a request that was given up meanwhile."""
        if self._given_up:
            return
        try:
            feeds, feeds_of = self._prepare()
            now = self._clock()
            work = Work(feeds, now, min(now + self._patience_s, self._latest), self._request_id)
            if not feeds and feeds_of is not None:
                feeds_of = partial(self._while_wanted, feeds_of)
                work.make = partial(feeds_of, "")
            if self._given_up:
                return
            routed = self._router.submit(work, feeds_of)
        except BaseException as error:
            self._tell(_failed(error))
            return

        def cancel() -> None:
            # Both: the router's future, and the work that the batcher looks at before it runs anything.
            routed.cancel()
            work.done.cancel()

        self._cancel = cancel
        routed.add_done_callback(self._end)
        if self._given_up:  # between the last look and here
            cancel()

    def give_up(self) -> None:
        """Let nobody work for this request any more; does nothing once it is answered."""
        if self._told_it:
            return
        self._given_up = True
        self.answer.cancel()
        if self._cancel is not None:
            self._cancel()

    def _while_wanted(self, feeds_of: FeedsOf, release: str) -> Arrays:
        """Make feeds on a worker's thread; its run begins after that, and nothing else can take it back then."""
        if self._given_up:
            raise _cancelled()
        feeds = feeds_of(release)
        if self._given_up:
            raise _cancelled()
        return feeds

    def _end(self, routed: Future[Any]) -> None:
        if self._ended is not None and not routed.cancelled() and routed.exception() is None:
            try:
                self._ended(routed.result())
            except Exception as error:
                routed = _failed(error)
        self._tell(routed)

    def _tell(self, ended: Future[Any]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._told, ended)

    def _told(self, ended: Future[Any]) -> None:
        if self.answer.done():
            return
        self._told_it = True
        if ended.cancelled():
            self.answer.cancel()
        elif (error := ended.exception()) is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(ended.result())


class _Patience:
    """Ends the wait for an answer with a Refusal: at the limit, or where the client hangs up.

    Most answers are quicker than it takes a client to lose its patience: they do without a task that listens to it.
    """

    def __init__(
        self, answer: asyncio.Future[Routed], request: Request, limit_s: float, limits: Limits
    ) -> None:
        self._answer, self._request, self._limits = answer, request, limits
        self._loop = asyncio.get_running_loop()
        self._left_s = limit_s - _PATIENCE_S
        self._gone: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(min(limit_s, _PATIENCE_S), self._listen)

    def end(self) -> None:
        """Stop the timer, and listening."""
        self._timer.cancel()
        if self._gone is not None:
            self._gone.cancel()

    def _listen(self) -> None:
        self._timer = self._loop.call_later(max(0.0, self._left_s), self._late)
        self._gone = self._loop.create_task(_gone(self._request))
        self._gone.add_done_callback(self._hung_up)

    def _late(self) -> None:
        self._refuse(_too_late(self._limits))

    def _hung_up(self, gone: asyncio.Task[None]) -> None:
        if not gone.cancelled():
            self._refuse(_cancelled())

    def _refuse(self, refusal: Refusal) -> None:
        if not self._answer.done():
            self._answer.set_exception(refusal)


async def _gone(request: Request) -> None:
    """Return when the client has hung up; the body has been read, so that nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _failed(error: BaseException) -> Future[Any]:
    failed: Future[Any] = Future()
    failed.set_exception(error)
    return failed


def _too_late(limits: Limits) -> Refusal:
    return Refusal(
        504,
        "deadline",
        f"no answer within {limits.request_s:g} s; the model is slow or overloaded, try again later",
        {"Retry-After": "1"},
    )


def _cancelled() -> Refusal:
    return Refusal(499, "cancelled", "the client hung up before the answer")
