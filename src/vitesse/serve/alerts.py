"""What a person should look at: rules over what was seen each second, without threads and without a clock of their own.

An alert is raised once when its rule begins to hold, and cleared once after the rule has not held for `calm_s`, so
that a figure that hovers at its bound does not fill the log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Seen:
    """What one second showed.

    Args:
        at: seconds of the server's clock. answered: requests answered since the start.
        memory_mb: resident (1e6 bytes), None where it is not known. throttling: why clocks were held down.
        queue_depth, queue_capacity: items. requests, failed, refused: of the last minute, as in `windows.Figures`.
        breaker: why traffic was taken from a release, empty while its breaker is closed.
    """

    at: float
    answered: int = 0
    memory_mb: float | None = None
    throttling: tuple[str, ...] = ()
    queue_depth: int = 0
    queue_capacity: int = 0
    requests: int = 0
    failed: int = 0
    refused: int = 0
    breaker: str = ""


@dataclass(frozen=True)
class Bounds:
    """When a rule holds.

    Args:
        memory_mb_per_1000: slope of resident memory, MB per 1000 requests, that is too steep.
        memory_warm_up: requests after the first sample that are not judged: buffers grow to the largest shape seen.
        memory_requests: least requests that a slope is taken over. memory_spacing: requests between two points.
        memory_points: most points that are kept; the oldest go first.
        recent: samples that throttling and queue are judged over. throttled, queue_full: share of them that is too
            much. queue_fill: share of its capacity from which a queue counts as full.
        refused_share, failed_share: of the last minute's requests that is too much. least_requests: to judge a share.
        calm_s: an alert is cleared after its rule has not held for so long.
    """

    memory_mb_per_1000: float = 1.0
    memory_warm_up: int = 1000
    memory_requests: int = 3000
    memory_spacing: int = 50
    memory_points: int = 240
    recent: int = 10
    throttled: float = 0.3
    queue_fill: float = 0.8
    queue_full: float = 0.5
    refused_share: float = 0.01
    failed_share: float = 0.01
    least_requests: int = 20
    calm_s: float = 10.0


@dataclass(frozen=True)
class Alert:
    """One thing to look at.

    Args:
        name: "memory", "throttling", "queue", "errors" or "breaker".
        text: what was seen, a sentence. next_step: what to do about it.
        since: seconds of the server's clock when it was raised; until: when cleared, None while it stands.
    """

    name: str
    text: str
    next_step: str
    since: float
    until: float | None = None


@dataclass(frozen=True)
class _Finding:
    text: str
    next_step: str


class Alerts:
    """Holds what stands. Feed it one `Seen` a second."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._bounds = bounds or Bounds()
        self._recent: deque[Seen] = deque(maxlen=self._bounds.recent)
        self._memory: deque[tuple[int, float]] = deque(maxlen=self._bounds.memory_points)
        self._first_answered: int | None = None
        self._standing: dict[str, Alert] = {}
        self._held_at: dict[str, float] = {}
        self._rules: dict[str, Callable[[Seen], _Finding | None]] = {
            "breaker": self._breaker,
            "errors": self._errors,
            "queue": self._queue,
            "throttling": self._throttling,
            "memory": self._memory_slope,
        }

    @property
    def standing(self) -> tuple[Alert, ...]:
        """Alerts that were raised and are not cleared, the gravest first; texts are of the latest sample."""
        return tuple(self._standing[name] for name in self._rules if name in self._standing)

    def update(self, seen: Seen) -> tuple[Alert, ...]:
        """Judge one more second, and return what was raised (`until` is None) or cleared by it."""
        self._recent.append(seen)
        self._keep_memory(seen)
        changed = []
        for name, rule in self._rules.items():
            finding, before = rule(seen), self._standing.get(name)
            if finding is not None:
                self._held_at[name] = seen.at
                since = seen.at if before is None else before.since
                self._standing[name] = Alert(name, finding.text, finding.next_step, since)
                if before is None:
                    changed.append(self._standing[name])
            elif before is not None and seen.at - self._held_at[name] >= self._bounds.calm_s:
                changed.append(replace(self._standing.pop(name), until=seen.at))
        return tuple(changed)

    def _keep_memory(self, seen: Seen) -> None:
        if seen.memory_mb is None:
            return
        if self._first_answered is None:
            self._first_answered = seen.answered
        warm = seen.answered - self._first_answered >= self._bounds.memory_warm_up
        last = self._memory[-1][0] if self._memory else seen.answered - self._bounds.memory_spacing
        if warm and seen.answered - last >= self._bounds.memory_spacing:
            self._memory.append((seen.answered, seen.memory_mb))

    def _memory_slope(self, seen: Seen) -> _Finding | None:
        points = list(self._memory)
        if len(points) < 12 or points[-1][0] - points[0][0] < self._bounds.memory_requests:
            return None
        slope, quarter = mb_per_1000(points), len(points) // 4
        steep = [
            at
            for at in range(0, 4 * quarter, quarter)
            if mb_per_1000(points[at : at + quarter]) > self._bounds.memory_mb_per_1000 / 2
        ]
        # A step (a larger shape came) tilts the whole line, but only the quarter it falls into.
        if slope <= self._bounds.memory_mb_per_1000 or len(steep) < 3:
            return None
        span = points[-1][0] - points[0][0]
        return _Finding(
            f"Memory grows by {slope:.1f} MB per 1000 requests: {points[0][1]:.0f} to {points[-1][1]:.0f} MB "
            f"over the last {span} requests.",
            "Images of ever new sizes make runtimes keep ever more buffers: serve with buckets. If sizes are "
            "fixed, restart the server when memory runs short and report the model and runtime.",
        )

    def _throttling(self, seen: Seen) -> _Finding | None:
        held = [one for one in self._recent if one.throttling]
        if len(self._recent) < self._bounds.recent or len(held) <= self._bounds.throttled * len(self._recent):
            return None
        reasons = ", ".join(dict.fromkeys(reason for one in held for reason in one.throttling))
        return _Finding(
            f"Clocks are held down ({reasons}) in {len(held)} of the last {len(self._recent)} samples: "
            "latency is higher than the machine can do.",
            "Look at cooling and the power limit: nvidia-smi -q -d PERFORMANCE,POWER for a GPU.",
        )

    def _queue(self, seen: Seen) -> _Finding | None:
        bound = self._bounds
        full = [
            one
            for one in self._recent
            if one.queue_capacity and one.queue_depth >= bound.queue_fill * one.queue_capacity
        ]
        refusing = (
            seen.requests >= bound.least_requests and seen.refused > bound.refused_share * seen.requests
        )
        crowded = len(self._recent) == bound.recent and len(full) >= bound.queue_full * len(self._recent)
        if not refusing and not crowded:
            return None
        refused = f"; {seen.refused} of {seen.requests} requests refused in the last minute"
        return _Finding(
            f"More comes than can be served: {seen.queue_depth} of {seen.queue_capacity} places in the queue "
            f"are taken{refused if seen.refused else ''}.",
            "Add a replica or a faster machine, let vitesse tune look for better --workers and --batch, "
            "or have clients wait as Retry-After says.",
        )

    def _errors(self, seen: Seen) -> _Finding | None:
        if seen.requests < self._bounds.least_requests:
            return None
        if seen.failed <= self._bounds.failed_share * seen.requests:
            return None
        return _Finding(
            f"{seen.failed} of {seen.requests} requests in the last minute failed "
            f"({seen.failed / seen.requests:.1%}).",
            "Read the log lines with level ERROR: they name the request and what the runtime said.",
        )

    def _breaker(self, seen: Seen) -> _Finding | None:
        if not seen.breaker:
            return None
        return _Finding(
            f"The optimised model was taken out of service: {seen.breaker.rstrip('.')}. The reference answers.",
            "vitesse release status RUN says more. It comes back by itself after good probes; "
            "vitesse release rollback RUN keeps it out.",
        )


def mb_per_1000(points: Sequence[tuple[int, float]]) -> float:
    """Return the least-squares slope of (requests answered, MB) in MB per 1000 requests; 0 without two abscissae."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if spread == 0:
        return 0.0
    return 1000 * sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
