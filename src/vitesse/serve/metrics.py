"""What the server counts, for Prometheus and for the dashboard's last minute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

import prometheus_client

from vitesse._version import __version__
from vitesse.serve import metric_families as names
from vitesse.serve.metric_families import Closed, Families
from vitesse.serve.pool_metrics import PoolMetrics
from vitesse.serve.windows import Windows

CONTENT_TYPE: Final = prometheus_client.exposition.CONTENT_TYPE_LATEST


@dataclass(frozen=True)
class Load:
    """How full a server is now: items waiting and the most that may, sessions at work and all of them."""

    queue_depth: int
    queue_capacity: int
    busy: int
    workers: int


class _Unanswered:
    """Counts the blocks that are being executed, for the gauge, which reads it at a scrape."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1


class Metrics(PoolMetrics):
    """What a server counts, and what its live variant's pool does; a whole request costs some microseconds.

    The app counts the stages "decode", "input" and "output" with `stage`, the pool "queue" and "infer".

    Args:
        registry: of its own, not the global one, so that two servers in a process stay apart.
        model, version, backend: labels of every series.
        windows: also told, for the dashboard.
        strict: an unknown label value raises instead of counting as "other".
    """

    def __init__(
        self,
        registry: prometheus_client.CollectorRegistry,
        model: str,
        version: str,
        backend: str,
        *,
        windows: Windows | None = None,
        strict: bool = False,
    ) -> None:
        families, common = Families(registry), (model, version, backend)
        super().__init__(families, common, windows, strict, names.STAGES)
        self._requests = Closed(families.requests, common, names.CODES, strict)
        self._failures = Closed(families.failures, common, names.FAILURES, strict)
        self._states = Closed(families.state, common, names.STATES, strict)
        self._variants = Closed(families.variant, common, names.VARIANTS, strict)
        self._rollbacks = Closed(families.rollbacks, common, names.ROLLBACKS, strict)
        self._routes = Closed(families.routed, common, names.ROUTES, strict)
        self._checks = Closed(families.engine_checks, common, names.CHECKS, strict)
        self._bytes = families.request_bytes.labels(*common)
        self._duration = families.duration.labels(*common)
        self._unanswered = _Unanswered()
        families.inflight.labels(*common).set_function(lambda: self._unanswered.count)
        self._nonfinite = families.nonfinite.labels(*common)
        self._shadow_dropped = families.shadow_dropped.labels(*common)
        self._pool_fallbacks = families.pool_fallbacks.labels(*common)
        families.build.labels(*common, __version__).set(1)

    def beside(self, version: str, backend: str, *, in_windows: bool = False) -> PoolMetrics:
        """Return what the pool of another variant counts into, such as the reference's that stands by.

        Args:
            in_windows: whether its batches count into the dashboard's as well.
        """
        windows = self._windows if in_windows else None
        return PoolMetrics(self._families, (self._common[0], version, backend), windows, self._strict)

    # Requests, told by the app.

    def observe_request(self, code: int, seconds: float, bytes: int) -> None:
        """Count an answered request for inference; health, metrics and the dashboard's own polling are not counted.

        Args:
            code: HTTP status; 499 for a client that went away. seconds: from arrival to answer. bytes: of the body.
        """
        self._requests[str(code)].inc()
        self._bytes.inc(bytes)
        self._duration.observe(seconds)
        if self._windows is not None:
            self._windows.request(code, seconds)

    def stage(self, name: str, seconds: float) -> None:
        """Count a request's time in one of STAGES."""
        self._stages[name].observe(seconds)

    def failure(self, reason: str) -> None:
        """Count a request that was not answered as asked, by the code of its refusal or one of FAILURES."""
        self._failures[names.REASON_OF.get(reason, reason)].inc()

    def in_flight(self) -> AbstractContextManager[object]:
        """Return a context in which one more request counts as unanswered; for the event loop alone."""
        return self._unanswered

    # State, told by the server and by releases.

    def watch_load(self, load: Callable[[], Load]) -> None:
        """Ask for queue and workers at every scrape, which costs a request nothing."""
        families, common = self._families, self._common
        families.queue_depth.labels(*common).set_function(lambda: load().queue_depth)
        families.queue_capacity.labels(*common).set_function(lambda: load().queue_capacity)
        families.busy.labels(*common).set_function(lambda: load().busy)
        families.instances.labels(*common).set_function(lambda: load().workers)

    def state(self, state: str) -> None:
        """Say which of STATES the server is in; it is ready in "ready" alone."""
        self._states.only(state, prometheus_client.Gauge.set)
        self._families.ready.labels(*self._common).set(float(state == "ready"))

    def warmed_up(self, seconds: float) -> None:
        """Say how long the warm-up took."""
        self._families.warmup.labels(*self._common).set(seconds)

    def active_variant(self, variant: str) -> None:
        """Say which of VARIANTS answers."""
        self._variants.only(variant, prometheus_client.Gauge.set)

    def routed(self, why: str) -> None:
        """Count a request by why it was answered where it was, one of ROUTES."""
        self._routes[why].inc()

    def rolled_back(self, kind: str) -> None:
        """Count a release that was taken back, by one of ROLLBACKS."""
        self._rollbacks[kind].inc()

    def agreement(self, share: float) -> None:
        """Say how far sampled answers agree with the reference's, 0 to 1."""
        self._families.agreement.labels(*self._common).set(share)

    def nonfinite(self) -> None:
        """Count a request whose outputs held NaN or infinity."""
        self._nonfinite.inc()

    def shadow_dropped(self) -> None:
        """Count a copy for comparison that was not run, because real work needed the room."""
        self._shadow_dropped.inc()

    def engine_check_failed(self, check: str) -> None:
        """Count an artifact refused before it was loaded, by one of CHECKS."""
        self._checks[check].inc()

    def memory_pool(self, kind: str, used: int, reserved: int) -> None:
        """Say how many bytes a pool of one of POOLS uses and holds; any other kind raises KeyError."""
        if kind not in names.POOLS:
            raise KeyError(f"a pool of kind {kind!r}, expected one of {names.POOLS}")
        for state, size in (("used", used), ("reserved", reserved)):
            self._families.pool_bytes.labels(*self._common, kind, state).set(size)

    def pool_fallback(self) -> None:
        """Count a buffer that was allocated because its pool had none."""
        self._pool_fallbacks.inc()

    def sensed(self, values: Mapping[str, float]) -> None:
        """Keep a sensor's figures; one that is not among the metrics is left out, an absent GPU shows no series."""
        for figure, (name, scale) in names.SENSED.items():
            if figure in values:
                self._families.sensed[name].labels(*self._common).set(values[figure] * scale)

    def exposition(self) -> bytes:
        """Return all metrics of the registry in Prometheus's text format; CONTENT_TYPE is its media type."""
        return prometheus_client.generate_latest(self._families.registry)
