"""One request's work on its way through queue, batch and session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Arrays = Mapping[str, Array]
Value = TypeVar("Value")
# Work of equal keys may share a batch: names, dtypes and shapes without the first axis.
Key = tuple[tuple[str, str, tuple[int, ...]], ...]


def all_finite(array: Array) -> bool:
    """Return whether no value is NaN or infinite; integers and other types never are."""
    # As bytes, because numpy would release the interpreter's lock a second time for more than 500 values, and then wait
    # until the other threads give it back.
    return array.dtype.kind != "f" or b"\0" not in np.isfinite(array).tobytes()


@dataclass(frozen=True)
class Executed:
    """What came of a request's work; arrays are the request's own and stay valid.

    Args:
        outputs: by name, the first axis is that of the request's feeds.
        queue_s: from its arrival to the start of the run; infer_s: of the run; device_ms: of it, on the GPU.
        batch: items that ran together; worker: which session ran them.
    """

    outputs: Arrays
    queue_s: float
    infer_s: float
    batch: int
    worker: int
    device_ms: float | None = None


class Promise(Future[Value]):
    """A future that lets go of each callback when it has called it.

    Callbacks hold the request, and the request holds the future: a circle, which kept its tensors until the garbage
    collector came round, a hundred requests later. With 602 KB each that was 100 MB.
    """

    def add_done_callback(self, fn: Callable[[Future[Value]], object]) -> None:
        """Call a function when the future has ended, at once where it has; once, and then forget it."""
        super().add_done_callback(_Once(fn))


class _Once(Generic[Value]):
    def __init__(self, function: Callable[[Future[Value]], object]) -> None:
        self._function: Callable[[Future[Value]], object] | None = function

    def __call__(self, future: Future[Value]) -> None:
        function, self._function = self._function, None
        if function is not None:
            function(future)


@dataclass(eq=False)
class Work:
    """Feeds with one or more items on the first axis, and the future that gets `Executed` or a `Refusal`.

    Args:
        arrived, deadline: seconds of the server's clock (monotonic); after the deadline it is never executed.
        request_id: for logs.
        make: makes the feeds of one item, which are {} before; called on the worker's thread right before the run. Such
            work shares no batch, because nobody knows its shapes yet.

    Attributes:
        made_s: seconds that `make` took. unfed: it has failed, which says nothing about what would have run the work.
    """

    feeds: Arrays
    arrived: float
    deadline: float
    request_id: str = ""
    make: Callable[[], Arrays] | None = None
    done: Future[Executed] = field(default_factory=Promise)
    made_s: float = field(default=0.0, init=False)
    unfed: bool = field(default=False, init=False)

    @property
    def items(self) -> int:
        """How many items it has."""
        if self.make is not None:
            return 1
        return int(next(iter(self.feeds.values())).shape[0])

    @property
    def key(self) -> Key:
        """What work must share to run in one batch."""
        if self.make is not None:
            return ((f"work {id(self)}", "", ()),)
        return tuple((name, array.dtype.str, array.shape[1:]) for name, array in sorted(self.feeds.items()))

    def prepare(self, clock: Callable[[], float]) -> None:
        """Make the feeds, where they are still to be made; raises what `make` raises."""
        if self.make is None:
            return
        began, self.unfed = clock(), True
        self.feeds = self.make()
        self.made_s, self.unfed, self.make = clock() - began, False, None


class Executor(Protocol):
    """Runs work for one variant of the model: a pool of sessions, or a stand-in."""

    def submit(self, work: Work) -> None:
        """Take work; raises Refusal 503 "queue_full" at once where there is no room. `work.done` ends in any case."""
        ...
