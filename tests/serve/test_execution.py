"""One request from its feeds to its answer, with a router, a clock and a client made by hand."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the server: pip install 'vitesse[serve]'")

from serve.sessions import until
from vitesse.serve.execution import Threads, execute
from vitesse.serve.limits import Limits
from vitesse.serve.refusals import Refusal

FEEDS = {"images": np.zeros((1, 2), np.float32)}


class Client:
    """A request whose client has hung up as soon as `gone` says so."""

    def __init__(self, gone: Callable[[], bool]) -> None:
        self.gone = gone

    async def receive(self) -> dict[str, str]:
        """Wait for the client to go."""
        while not self.gone():
            await asyncio.sleep(0.005)
        return {"type": "http.disconnect"}


class Router:
    """Keeps what it is given; `answer` is what it says, None = nothing yet."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.works: list[Any] = []
        self.futures: list[Future[Any]] = []
        self.threads: list[str] = []

    def submit(self, work: Any, feeds_of: Any = None) -> Future[Any]:
        """Take work."""
        self.works.append(work)
        self.threads.append(threading.current_thread().name)
        future: Future[Any] = Future()
        if isinstance(self.answer, Refusal):
            raise self.answer
        if self.answer is not None:
            future.set_result(self.answer)
        self.futures.append(future)
        return future


def ask(
    router: Router,
    prepare: Callable[[], Any] = lambda: (FEEDS, None),
    *,
    gone: Callable[[], bool] = lambda: False,
    limits: Limits = Limits(),  # noqa: B008  frozen
    **more: Any,
) -> Any:
    async def one() -> Any:
        given: dict[str, Any] = {"arrived": 5.0, "clock": lambda: 7.0, **more}
        return await execute(Client(gone), router, prepare, limits, **given)  # type: ignore[arg-type]

    return asyncio.run(one())


@pytest.fixture
def threads() -> Any:
    made = Threads(1)
    yield made
    made.close()


def test_feeds_made_by_a_thread_go_to_the_router_from_that_thread(threads: Threads) -> None:
    router, made_by = Router("the answer"), list[str]()

    def prepare() -> Any:
        made_by.append(threading.current_thread().name)
        return FEEDS, None

    assert ask(router, prepare, threads=threads) == "the answer"
    assert made_by == router.threads and made_by[0].startswith("vitesse-decode")
    assert router.works[0].feeds is FEEDS


def test_feeds_that_a_worker_makes_are_made_when_it_says_so_and_for_the_release_that_it_runs() -> None:
    router = Router("the answer")
    assert (
        ask(router, lambda: ({}, lambda release: {"images": np.full((1, 2), len(release))})) == "the answer"
    )
    work = router.works[0]
    assert work.feeds == {} and work.items == 1
    work.prepare(lambda: 0.0)
    assert work.feeds["images"].tolist() == [[0, 0]], "the live release's, where no router says another"


@pytest.mark.parametrize("made", [0, 1])
def test_a_client_that_hangs_up_before_or_while_a_worker_makes_its_feeds_runs_nothing(made: int) -> None:
    router, gone, calls = Router(), threading.Event(), list[str]()

    def feeds_of(release: str) -> Any:
        calls.append(release)
        gone.set()
        until(router.futures[0].cancelled)
        return FEEDS

    def worker() -> None:
        until(lambda: bool(router.futures))
        if not made:
            gone.set()
            until(router.futures[0].cancelled)
        with pytest.raises(Refusal, match="hung up"):
            router.works[0].prepare(lambda: 0.0)
        ended.set()

    ended = threading.Event()
    thread = threading.Thread(target=worker)
    thread.start()
    with pytest.raises(Refusal, match="hung up"):
        ask(router, lambda: ({}, feeds_of), gone=gone.is_set)
    thread.join(30)
    assert ended.is_set() and len(calls) == made and router.works[0].unfed


def test_the_answer_is_read_on_the_thread_that_ended_the_run(threads: Threads) -> None:
    read = list[Any]()
    ended = lambda routed: read.append((routed, threading.current_thread().name))  # noqa: E731
    assert ask(Router("the answer"), threads=threads, ended=ended) == "the answer"
    assert read[0][0] == "the answer" and read[0][1].startswith("vitesse-decode")


def test_an_answer_that_cannot_be_read_is_an_error() -> None:
    def ended(routed: Any) -> None:
        raise ZeroDivisionError("no such output")

    with pytest.raises(ZeroDivisionError, match="no such output"):
        ask(Router("the answer"), ended=ended)


def test_a_failed_run_is_not_read() -> None:
    with pytest.raises(Refusal, match="no room"):
        ask(Router(Refusal(503, "queue_full", "no room")), ended=lambda routed: pytest.fail("read"))


def test_without_threads_the_feeds_are_made_at_once() -> None:
    router = Router("the answer")
    assert ask(router) == "the answer"
    assert router.threads == [threading.current_thread().name]


@pytest.mark.parametrize(("timeout_s", "deadline"), [(None, 7.0 + 1.0), (0.25, 7.25), (9.0, 7.0 + 1.0)])
def test_work_waits_from_when_its_feeds_are_there(timeout_s: float | None, deadline: float) -> None:
    router = Router("the answer")
    ask(router, timeout_s=timeout_s)
    assert (router.works[0].arrived, router.works[0].deadline) == (7.0, deadline)


def test_no_work_may_end_later_than_the_request() -> None:
    router = Router("the answer")
    ask(router, limits=Limits(queue_s=50.0, request_s=3.0))
    assert router.works[0].deadline == 5.0 + 3.0


def test_a_request_that_is_too_late_already_is_not_even_prepared() -> None:
    router, prepared = Router("the answer"), list[int]()
    with pytest.raises(Refusal, match="no answer within 2 s") as told:
        ask(router, lambda: prepared.append(1), limits=Limits(request_s=2.0))
    assert told.value.status == 504 and not prepared and not router.works


@pytest.mark.parametrize("in_thread", [False, True])
def test_what_cannot_be_prepared_is_told(threads: Threads, in_thread: bool) -> None:
    def prepare() -> Any:
        raise Refusal(400, "bad_image", "this is no picture")

    router = Router("the answer")
    with pytest.raises(Refusal, match="this is no picture"):
        ask(router, prepare, threads=threads if in_thread else None)
    assert not router.works


@pytest.mark.parametrize("in_thread", [False, True])
def test_what_the_router_refuses_is_told(threads: Threads, in_thread: bool) -> None:
    router = Router(Refusal(503, "queue_full", "no room"))
    with pytest.raises(Refusal, match="no room"):
        ask(router, threads=threads if in_thread else None)


def test_a_client_that_hangs_up_takes_its_work_back() -> None:
    router = Router()
    with pytest.raises(Refusal, match="hung up") as told:
        ask(router, gone=lambda: True)
    assert told.value.status == 499
    assert router.futures[0].cancelled() and router.works[0].done.cancelled()


def test_no_answer_in_time_is_a_504_and_takes_the_work_back() -> None:
    router = Router()
    with pytest.raises(Refusal, match=r"no answer within 2\.05 s") as told:
        ask(router, limits=Limits(request_s=2.05))
    assert told.value.status == 504
    assert router.works[0].done.cancelled()


def test_a_client_that_hangs_up_while_its_image_is_decoded_runs_nothing(threads: Threads) -> None:
    router, begun, go_on = Router(), threading.Event(), threading.Event()

    def prepare() -> Any:
        begun.set()
        assert go_on.wait(30)
        return FEEDS, None

    with pytest.raises(Refusal, match="hung up"):
        ask(router, prepare, gone=begun.is_set, threads=threads)
    go_on.set()
    last = threading.Event()
    threads.submit(last.set)  # the only thread: what was before has ended
    assert last.wait(30)
    assert not router.works, "nobody waits for it"
