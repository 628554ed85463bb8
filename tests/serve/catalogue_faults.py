"""Faults of the runtime and of the load: what the model does meanwhile, what is asked, what must come back.

Each has a server of its own. A fault is over after its first run, so that the good request right after it is answered
by the same server.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from serve.catalogue import INFER, Answer
from serve.serving import Live, binary_body, tensor, until, with_limits
from vitesse.backends.fake import Fault
from vitesse.errors import BackendError
from vitesse.serve.auth import Keys

KEY = "sixteen-letters-and-more"
GOOD, LENGTH = binary_body(tensor())


def infer(live: Live, **headers: str) -> Answer:
    """Send the good request."""
    return live.ask("POST", INFER, GOOD, Inference_Header_Content_Length=LENGTH, **headers)


@dataclass(frozen=True)
class Case:
    """A server's options, what is sent to it, and the answer; `text` is part of the error's sentence.

    good: the good request after it; good_status: what it and health are answered.
    """

    number: int
    what: str
    options: Callable[[], dict[str, Any]]
    send: Callable[[Live], Answer]
    status: tuple[int, ...]
    text: str
    good: Callable[[Live], Answer] = infer
    good_status: int = 200


def once(act: Callable[[], object]) -> Fault:
    """A fault of the first run alone."""
    first = threading.Lock()

    def change(_: str, array: Any) -> Any:
        if first.acquire(blocking=False):
            act()
        return array

    return Fault(change=change)


def raising(text: str) -> Callable[[], object]:
    """Raise as a runtime does."""

    def act() -> None:
        raise BackendError(text)

    return act


def of_many(count: int, status: int) -> Callable[[Live], Answer]:
    """Send requests at once, and return the answer of one with this status."""

    def send(live: Live) -> Answer:
        with ThreadPoolExecutor(count) as threads:
            came = list(threads.map(lambda _: infer(live), range(count)))
        return next((one for one in came if one.status == status), came[0])

    return send


def hung_up(live: Live) -> Answer:
    """Hang up while another request is being run; the answer is that of /metrics, which counts it."""
    pool = live.service.router.pool
    first = threading.Thread(target=infer, args=(live,))
    first.start()
    until(lambda: pool.counters().taken == 1)
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(GOOD)}\r\n"
    with socket.create_connection(("127.0.0.1", live.port)) as connection:
        connection.sendall(f"{head}Inference-Header-Content-Length: {LENGTH}\r\n\r\n".encode() + GOOD)
        until(lambda: pool.health().depth == 1)
    until(lambda: pool.counters().cancelled == 1)
    first.join()
    assert pool.counters().taken == 1, "it was executed for nobody"
    came = live.ask("GET", "/metrics")
    assert 'reason="cancelled",version="1"} 1.0' in came.body.decode()
    return came


def while_not_ready(live: Live) -> Answer:
    """Ask before the warm-up is over, which it is right after."""
    came = infer(live)
    live.service.readiness.become("ready")
    return came


def liveness(live: Live) -> Answer:
    """Lose the device in a run, then ask whether the process lives; the pool is asked, as a served run asks it."""
    pool = live.service.router.pool
    assert infer(live).status == 503
    live.service.why_dead = lambda: pool.health().broken
    return live.ask("GET", "/v2/health/live")


def with_key(key: str) -> Callable[[Live], Answer]:
    """Send the good request with a key."""
    return lambda live: infer(live, Authorization=f"Bearer {key}")


def options(fault: Fault | None = None, **more: Any) -> Callable[[], dict[str, Any]]:
    """Options of `service_of`: one image at a time."""
    return lambda: {"fault": fault, "max_items": 1, **more}


def pause(seconds: float) -> Fault:
    """The first run takes so long."""
    return once(lambda: time.sleep(seconds))


CASES: tuple[Case, ...] = (
    Case(28, "client gone before its run", options(pause(1.0), capacity=4), hung_up, (200,), ""),
    Case(50, "full queue", options(pause(1.0), capacity=1), of_many(8, 503), (503,), "queue"),
    Case(
        51,
        "deadline in the queue",
        options(pause(1.5), capacity=4, limits=with_limits(queue_s=0.3)),
        of_many(3, 504),
        (504,),
        "the request was not executed: it waited",
    ),
    Case(53, "not ready yet", options(ready=False), while_not_ready, (503,), "not ready: the model is being"),
    Case(
        58,
        "hung run",
        options(pause(3.0), hang_s=0.4),
        infer,
        (504,),
        "the run did not end within 0.4 s: its worker is replaced",
    ),
    Case(
        59,
        "memory does not suffice",
        options(once(raising("CUDA out of memory"))),
        infer,
        (503,),
        "memory does not suffice for a single item: CUDA out of memory",
    ),
    Case(
        60,
        "sticky error of the device",
        options(once(raising("CUDA failure 700: an illegal memory access was encountered"))),
        liveness,
        (503,),
        "an illegal memory access was encountered",
        good_status=503,  # only a new process helps, and liveness asks for one
    ),
    Case(
        73,
        "the runtime refuses the run",
        options(once(raising("not implemented"))),
        infer,
        (500,),
        "not implemented",
    ),
    Case(
        84,
        "no key",
        options(keys=Keys([KEY])),
        infer,
        (401,),
        "the request has no Authorization header",
        good=with_key(KEY),
    ),
    Case(
        84,
        "wrong key",
        options(keys=Keys([KEY])),
        with_key("wrong" * 8),
        (401,),
        "the key is not one of this server's",
        good=with_key(KEY),
    ),
)
