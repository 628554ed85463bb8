"""What a pool of sessions counts: batches, items, waits, and what becomes of its workers."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from vitesse.serve import metric_families as names
from vitesse.serve.metric_families import Closed, Families
from vitesse.serve.windows import Windows


class PoolMetrics:
    """Is `health.Observer`, for the pool of one variant; any thread may call.

    Args:
        families: of the server's registry. common: model, version and backend, labels of every series.
        windows: also told, for the dashboard. strict: an unknown label value raises instead of counting as "other".
        stages: that are counted under these labels.
    """

    def __init__(
        self,
        families: Families,
        common: tuple[str, str, str],
        windows: Windows | None = None,
        strict: bool = False,
        stages: Sequence[str] = ("queue", "infer"),
    ) -> None:
        self._families, self._common, self._windows, self._strict = families, common, windows, strict
        self._lock = threading.Lock()
        self._workers: dict[int, str] = {}
        self._work_refused = Closed(families.work_refused, common, tuple(names.REASON_OF), strict)
        self._stages = Closed(families.stages, common, stages, strict)
        self._worker_changes = Closed(families.worker_changes, common, names.WORKER_STATES, strict)
        self._device = families.device.labels(*common)
        self._inferences = families.inferences.labels(*common)
        self._executions = families.executions.labels(*common)
        self._batch_size = families.batch_size.labels(*common)
        self._halved = families.memory_halved.labels(*common)

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
