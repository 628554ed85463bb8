"""Who may come in: a request takes a place before anything is decoded, parsed or queued for it.

A server that decodes first and refuses afterwards spends its cores on answers of 503, and what it accepted waits for
them. So a place is asked for as soon as the body is here, and kept until the answer is known. It is not asked for
earlier: a client that sends its body slowly would hold a place that others could use.

    places = the queue's capacity + what the sessions run at once
    an accepted request waits for at most that many answers: places ÷ (answers a second), whatever is offered
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vitesse.serve.refusals import Refusal


class Places:
    """Counts the requests that are under way. For one event loop alone, as it takes no lock.

    Args:
        count: requests that may be under way at once, at least 1; one with many items takes one place, and the queue
            counts its items.

    Attributes:
        count: as given. busy: places that are taken now.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"{count} places; expected at least 1")
        self.count, self.busy = count, 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold a place; it is free again however the block ends.

        Raises:
            Refusal: 503 "queue_full" with Retry-After, at once: every place is taken.
        """
        if self.busy >= self.count:
            raise Refusal(
                503,
                "queue_full",
                f"the queue is full: {self.busy} requests are under way, as many as may; try again in 1 s, or serve "
                "with more workers",
                {"Retry-After": "1"},
            )
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1
