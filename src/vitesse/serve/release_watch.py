"""Counts and logs what the router tells of releases; the state file keeps the events for the dashboard."""

from __future__ import annotations

import logging
import threading
from collections import deque

from vitesse.serve.logs import NAME
from vitesse.serve.metric_families import ROUTES
from vitesse.serve.metrics import Metrics

_LOG = logging.getLogger(NAME)
_SAMPLES = 100


class ReleaseWatch:
    """Is `releases.observer.ReleaseObserver`. Any thread may call."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._lock = threading.Lock()
        self._agreed: deque[float] = deque(maxlen=_SAMPLES)

    @property
    def agreement(self) -> float | None:
        """Mean agreement of the last 100 sampled requests, 0 to 1; None before the first."""
        with self._lock:
            return sum(self._agreed) / len(self._agreed) if self._agreed else None

    def routed(self, served_by: str, why: str) -> None:
        """Count an answer; `why` is one of ROUTES, or the sentence why the reference had to answer."""
        self._metrics.routed(why if why in ROUTES else "reference")

    def rolled_back(self, release: str, kind: str, why: str) -> None:
        """Count and log that traffic left a release."""
        self._metrics.rolled_back(kind)
        _LOG.error("%s was rolled back (%s): %s", release, kind, why)

    def breaker_changed(self, release: str, state: str, why: str) -> None:
        """Log that a breaker is in another state."""
        level = logging.INFO if state == "closed" else logging.WARNING
        _LOG.log(level, "the breaker of %s is %s: %s", release, state.replace("_", " "), why)

    def agreed(self, release: str, agreement: float) -> None:
        """Take one sampled request's agreement into the mean that is shown."""
        with self._lock:
            self._agreed.append(agreement)
            mean = sum(self._agreed) / len(self._agreed)
        self._metrics.agreement(mean)

    def nonfinite(self, release: str) -> None:
        """Count an answer with NaN or infinity."""
        self._metrics.nonfinite()

    def shadow_dropped(self, release: str) -> None:
        """Count a copy that was not run."""
        self._metrics.shadow_dropped()

    def release_noted(self, release: str, what: str, why: str) -> None:
        """Log an event of the release state."""
        _LOG.info("%s: %s: %s", release, what, why)
