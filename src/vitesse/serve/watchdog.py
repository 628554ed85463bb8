"""Looks after the workers at regular times, and says how long a dead one rests before the next try."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

_LOG = logging.getLogger(__name__)
_FIRST_S, _LONGEST_S = 0.1, 30.0


def rest_s(deaths: int) -> float:
    """Return the seconds before the next start of a worker that died `deaths` times without an answer between.

    0 after the first, then 0.1 s doubling up to 30 s: a worker that dies at once must not keep a core busy.
    """
    if deaths <= 1:
        return 0.0
    # The exponent is bounded as well: a float overflows after a thousand deaths.
    return min(_LONGEST_S, _FIRST_S * float(2 ** min(deaths - 2, 16)))


class Watchdog:
    """Calls `look` on a thread of its own every `every_s` seconds until it is stopped.

    An error of one look is logged, and the next one comes all the same: who watches must not die first.
    """

    def __init__(self, look: Callable[[], None], every_s: float, name: str = "watchdog") -> None:
        self._look, self._every_s = look, every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; returns when the last look is over. Twice does no harm."""
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                self._look()
            except Exception:
                _LOG.exception("looking after the workers failed; the next look follows")
