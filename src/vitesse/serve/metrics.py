"""The server's metrics for Prometheus: their names, their closed sets of labels, and what counts into them.

Every family carries model, version and backend, which come from the run and never from a client. Each other label has a
closed set of values, whose series exist from the start: a rate over a series that appears with its first failure
misses that failure.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import prometheus_client
from prometheus_client.metrics import MetricWrapperBase

from vitesse._version import __version__
from vitesse.serve.windows import Windows

CONTENT_TYPE: Final = prometheus_client.exposition.CONTENT_TYPE_LATEST
OTHER: Final = "other"
CODES: Final = tuple(
    str(code) for code in (200, 400, 401, 403, 404, 405, 408, 413, 415, 429, 431, 499, 500, 503, 504)
)
FAILURES: Final = ("rejected", "timeout", "cancelled", "bad_input", "backend")
# Why a request failed, by the code of its refusal.
REASON_OF: Final[Mapping[str, str]] = {
    "queue_full": "rejected",
    "not_ready": "rejected",
    "deadline": "timeout",
    "cancelled": "cancelled",
    "bad_request": "bad_input",
    "bad_image": "bad_input",
    "too_large": "bad_input",
    "unsupported": "bad_input",
    "not_found": "bad_input",
    "unauthorized": "bad_input",
    "backend": "backend",
    "internal": OTHER,
}
STAGES: Final = ("decode", "queue", "input", "infer", "output")
WORKER_STATES: Final = ("starting", "idle", "busy", "hung", "dead")
STATES: Final = ("starting", "warming", "ready", "draining", "failed")
VARIANTS: Final = ("live", "canary", "reference")
ROLLBACKS: Final = ("error", "nonfinite", "slow", "disagreement", "drift", "golden", "manual")
CHECKS: Final = ("hash", "version", "device", "driver", "golden")
POOLS: Final = ("device", "pinned", "host")

_COMMON: Final = ("model", "version", "backend")
_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_STAGE_SECONDS: Final = (0.0001, 0.0005, *_SECONDS)
_BATCHES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
# Figure of a sensor → gauge and how many of the gauge's units one of the sensor's is.
_SENSED: Final[Mapping[str, tuple[str, float]]] = {
    "memory_mb": ("process_resident_bytes", 1e6),
    "cpu_percent": ("process_cpu_ratio", 0.01),
    "gpu_percent": ("gpu_utilization_ratio", 0.01),
    "gpu_memory_mb": ("gpu_memory_used_bytes", 1e6),
    "gpu_memory_total_mb": ("gpu_memory_total_bytes", 1e6),
    "temperature_c": ("gpu_temperature_celsius", 1.0),
    "power_w": ("gpu_power_watts", 1.0),
}

Family = TypeVar("Family", bound=MetricWrapperBase)


@dataclass(frozen=True)
class Load:
    """How full a server is now: items waiting and the most that may, sessions at work and all of them."""

    queue_depth: int
    queue_capacity: int
    busy: int
    workers: int


class Families:
    """The metrics of one registry, shared by the variants of a model that one server runs."""

    def __init__(self, registry: prometheus_client.CollectorRegistry) -> None:
        def named(kind: type[Family], name: str, text: str, *labels: str) -> Family:
            return kind(f"vitesse_{name}", text, (*_COMMON, *labels), registry=registry)

        def spread(
            name: str, text: str, buckets: Iterable[float], *labels: str
        ) -> prometheus_client.Histogram:
            bounds = tuple(float(one) for one in buckets)
            return prometheus_client.Histogram(
                f"vitesse_{name}", text, (*_COMMON, *labels), buckets=bounds, registry=registry
            )

        counter, gauge = prometheus_client.Counter, prometheus_client.Gauge
        self.registry = registry
        self.requests = named(counter, "requests_total", "Answers to requests for inference.", "code")
        self.request_bytes = named(counter, "request_bytes_total", "Bytes of requests' bodies as they came.")
        self.failures = named(counter, "request_failures_total", "Requests not answered as asked.", "reason")
        self.work_refused = named(
            counter, "work_refused_total", "Work that a pool gave back unexecuted or failed.", "reason"
        )
        self.duration = spread("request_duration_seconds", "From arrival to answer.", _SECONDS)
        self.stages = spread(
            "stage_duration_seconds", "Time of a request in one stage.", _STAGE_SECONDS, "stage"
        )
        self.device = named(counter, "device_seconds_total", "Time of executions on the GPU, by its events.")
        self.inferences = named(counter, "inferences_total", "Items run through the model.")
        self.executions = named(counter, "executions_total", "Runs of a session, each one batch.")
        self.batch_size = spread("batch_size", "Items that ran together.", _BATCHES)
        self.batch_limit = named(gauge, "batch_limit", "Most items in a batch, lowered after out of memory.")
        self.memory_halved = named(counter, "batch_halved_total", "Batches halved for want of memory.")
        self.queue_depth = named(gauge, "queue_depth", "Items waiting for a worker.")
        self.queue_capacity = named(
            gauge, "queue_capacity", "Items that may wait before requests are refused."
        )
        self.inflight = named(gauge, "inflight", "Requests that came and are not answered yet.")
        self.instances = named(gauge, "instances", "Sessions, each with a worker of its own.")
        self.busy = named(gauge, "instances_busy", "Sessions that run a batch now.")
        self.worker_changes = named(
            counter, "worker_changes_total", "Workers that came into a state.", "state"
        )
        self.ready = named(gauge, "ready", "1 where requests are taken.")
        self.state = named(gauge, "model_state", "1 for the state the server is in.", "state")
        self.warmup = named(gauge, "warmup_seconds", "Time the warm-up took.")
        self.rollbacks = named(counter, "rollbacks_total", "Releases taken back.", "reason")
        self.variant = named(gauge, "active_variant", "1 for the variant that answers.", "variant")
        self.agreement = named(
            gauge, "shadow_agreement_ratio", "Agreement with the reference on sampled requests, 0 to 1."
        )
        self.nonfinite = named(
            counter, "output_nonfinite_total", "Requests whose outputs held NaN or infinity."
        )
        self.engine_checks = named(
            counter, "engine_check_failures_total", "Artifacts refused before they were loaded.", "check"
        )
        self.pool_bytes = named(gauge, "pool_bytes", "Memory of buffer pools.", "kind", "state")
        self.pool_fallbacks = named(
            counter, "pool_fallback_allocs_total", "Buffers that a pool could not give."
        )
        self.sensed = {name: named(gauge, name, _text_of(name)) for name, _ in _SENSED.values()}
        self.build = named(gauge, "build_info", "Always 1; the server's version.", "release")


class Closed(Generic[Family]):
    """The series of one family by the value of its own label, made once.

    A value outside the set counts as "other"; strict, it raises KeyError instead, so that tests find it.
    """

    def __init__(self, family: Family, common: Sequence[str], values: Sequence[str], strict: bool) -> None:
        self._strict = strict
        self._made = {value: family.labels(*common, value) for value in dict.fromkeys((*values, OTHER))}

    def __getitem__(self, value: str) -> Family:
        found = self._made.get(value)
        if found is None:
            if self._strict:
                raise KeyError(f"label value {value!r}, expected one of {sorted(self._made)}")
            found = self._made[OTHER]
        return found

    def only(self, value: str, set_to: Callable[[Family, float], None]) -> None:
        """Set one series to 1 and all others to 0."""
        chosen = self[value]
        for one in self._made.values():
            set_to(one, float(one is chosen))


class Metrics:
    """What one variant of a model counts; any thread may call, and a whole request costs some microseconds.

    It observes a pool (`batch_executed`, `refused`, `worker_changed`, `memory_halved`), which counts the stages "queue"
    and "infer"; the app counts "decode", "input" and "output" with `stage`.

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
        self._set_up(Families(registry), (model, version, backend), windows, strict)
        self._families.build.labels(*self._common, __version__).set(1)

    def beside(self, version: str, backend: str, *, in_windows: bool = False) -> Metrics:
        """Return the metrics of another variant in the same registry, such as the reference that stands by.

        Args:
            in_windows: whether its batches count into the dashboard's as well.
        """
        other = Metrics.__new__(Metrics)
        common = (self._common[0], version, backend)
        other._set_up(self._families, common, self._windows if in_windows else None, self._strict)
        return other

    def _set_up(
        self, families: Families, common: tuple[str, str, str], windows: Windows | None, strict: bool
    ) -> None:
        self._families, self._common, self._windows, self._strict = families, common, windows, strict
        self._lock = threading.Lock()
        self._workers: dict[int, str] = {}
        self._requests = Closed(families.requests, common, CODES, strict)
        self._failures = Closed(families.failures, common, FAILURES, strict)
        self._work_refused = Closed(families.work_refused, common, tuple(REASON_OF), strict)
        self._stages = Closed(families.stages, common, STAGES, strict)
        self._worker_changes = Closed(families.worker_changes, common, WORKER_STATES, strict)
        self._states = Closed(families.state, common, STATES, strict)
        self._variants = Closed(families.variant, common, VARIANTS, strict)
        self._rollbacks = Closed(families.rollbacks, common, ROLLBACKS, strict)
        self._checks = Closed(families.engine_checks, common, CHECKS, strict)
        self._bytes, self._duration = (
            families.request_bytes.labels(*common),
            families.duration.labels(*common),
        )
        self._device = families.device.labels(*common)
        self._inferences = families.inferences.labels(*common)
        self._executions = families.executions.labels(*common)
        self._batch_size = families.batch_size.labels(*common)
        self._inflight = families.inflight.labels(*common)
        self._nonfinite = families.nonfinite.labels(*common)
        self._pool_fallbacks = families.pool_fallbacks.labels(*common)
        self._halved = families.memory_halved.labels(*common)

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
        self._failures[REASON_OF.get(reason, reason)].inc()

    def in_flight(self) -> AbstractContextManager[object]:
        """Return a context in which one more request counts as unanswered."""
        return self._inflight.track_inprogress()

    # Batches and workers, told by a pool.

    def batch_executed(
        self, items: int, works: int, queue_s: Sequence[float], infer_s: float, device_ms: float | None
    ) -> None:
        """Count one run of a session: items in it, works (requests) that shared it, how long each had waited."""
        self._executions.inc()
        self._inferences.inc(items)
        self._batch_size.observe(items)
        waited, ran = self._stages["queue"], self._stages["infer"]
        for seconds in queue_s:
            waited.observe(seconds)
        for _ in range(works):
            ran.observe(infer_s)
        if device_ms is not None:
            self._device.inc(device_ms / 1e3)
        if self._windows is not None:
            self._windows.executed(items)

    def refused(self, reason: str) -> None:
        """Count work that a pool gave back, by the code of its refusal; shadow copies are counted too."""
        self._work_refused[reason].inc()

    def worker_changed(self, worker: int, state: str) -> None:
        """Count a worker that came into one of WORKER_STATES."""
        self._worker_changes[state].inc()
        with self._lock:
            self._workers[worker] = state

    def workers(self) -> dict[int, str]:
        """Return the state that each worker came into last."""
        with self._lock:
            return dict(self._workers)

    def memory_halved(self, max_items: int) -> None:
        """Count a batch that did not fit; `max_items` is what is tried from now on."""
        self._halved.inc()
        self._families.batch_limit.labels(*self._common).set(max_items)

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

    def rolled_back(self, reason: str) -> None:
        """Count a release that was taken back, by one of ROLLBACKS."""
        self._rollbacks[reason].inc()

    def active_variant(self, variant: str) -> None:
        """Say which of VARIANTS answers."""
        self._variants.only(variant, prometheus_client.Gauge.set)

    def agreement(self, share: float) -> None:
        """Say how far sampled answers agree with the reference's, 0 to 1."""
        self._families.agreement.labels(*self._common).set(share)

    def nonfinite(self) -> None:
        """Count a request whose outputs held NaN or infinity."""
        self._nonfinite.inc()

    def engine_check_failed(self, check: str) -> None:
        """Count an artifact refused before it was loaded, by one of CHECKS."""
        self._checks[check].inc()

    def memory_pool(self, kind: str, used: int, reserved: int) -> None:
        """Say how many bytes a pool of one of POOLS uses and holds; any other kind raises KeyError."""
        if kind not in POOLS:
            raise KeyError(f"a pool of kind {kind!r}, expected one of {POOLS}")
        for state, size in (("used", used), ("reserved", reserved)):
            self._families.pool_bytes.labels(*self._common, kind, state).set(size)

    def pool_fallback(self) -> None:
        """Count a buffer that was allocated because its pool had none."""
        self._pool_fallbacks.inc()

    def sensed(self, values: Mapping[str, float]) -> None:
        """Keep a sensor's figures; one that is not among the metrics is left out, an absent GPU shows no series."""
        for figure, (name, scale) in _SENSED.items():
            if figure in values:
                self._families.sensed[name].labels(*self._common).set(values[figure] * scale)

    def exposition(self) -> bytes:
        """Return all metrics of the registry in Prometheus's text format; CONTENT_TYPE is its media type."""
        return prometheus_client.generate_latest(self._families.registry)


def _text_of(name: str) -> str:
    subject, _, unit = name.rpartition("_")
    return f"{subject.replace('_', ' ').capitalize().replace('Gpu', 'GPU')}, {unit}, sampled each second."
