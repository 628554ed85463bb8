"""The names, texts, labels and buckets of the server's metrics for Prometheus.

Every family carries model, version and backend, which come from the run and never from a client. Each other label has a
closed set of values, whose series exist from the start: a rate over a series that appears with its first failure
misses that failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Generic, TypeVar

import prometheus_client
from prometheus_client.metrics import MetricWrapperBase

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
ROUTES: Final = ("live", "canary", "fallback", "reference")
ROLLBACKS: Final = ("error", "nonfinite", "slow", "disagreement", "drift", "golden", "manual")
CHECKS: Final = ("hash", "version", "device", "driver", "golden")
POOLS: Final = ("device", "pinned", "host")

COMMON: Final = ("model", "version", "backend")
_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_STAGE_SECONDS: Final = (0.0001, 0.0005, *_SECONDS)
_BATCHES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
# Figure of a sensor → gauge and how many of the gauge's units one of the sensor's is.
SENSED: Final[Mapping[str, tuple[str, float]]] = {
    "memory_mb": ("process_resident_bytes", 1e6),
    "cpu_percent": ("process_cpu_ratio", 0.01),
    "gpu_percent": ("gpu_utilization_ratio", 0.01),
    "gpu_memory_mb": ("gpu_memory_used_bytes", 1e6),
    "gpu_memory_total_mb": ("gpu_memory_total_bytes", 1e6),
    "temperature_c": ("gpu_temperature_celsius", 1.0),
    "power_w": ("gpu_power_watts", 1.0),
}

Family = TypeVar("Family", bound=MetricWrapperBase)


class Families:
    """The metrics of one registry, shared by the variants of a model that one server runs."""

    def __init__(self, registry: prometheus_client.CollectorRegistry) -> None:
        def named(kind: type[Family], name: str, text: str, *labels: str) -> Family:
            return kind(f"vitesse_{name}", text, (*COMMON, *labels), registry=registry)

        def spread(
            name: str, text: str, buckets: Iterable[float], *labels: str
        ) -> prometheus_client.Histogram:
            bounds = tuple(float(one) for one in buckets)
            return prometheus_client.Histogram(
                f"vitesse_{name}", text, (*COMMON, *labels), buckets=bounds, registry=registry
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
        self.routed = named(counter, "routed_total", "Answers by why they came from where they did.", "why")
        self.shadow_dropped = named(counter, "shadow_dropped_total", "Copies not run for want of room.")
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
        self.sensed = {name: named(gauge, name, _text_of(name)) for name, _ in SENSED.values()}
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


def _text_of(name: str) -> str:
    subject, _, unit = name.rpartition("_")
    return f"{subject.replace('_', ' ').capitalize().replace('Gpu', 'GPU')}, {unit}, sampled each second."
