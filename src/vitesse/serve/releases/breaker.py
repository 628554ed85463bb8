"""When a release has misbehaved enough: closed → open (the reference answers) → half open (probes) → closed.

Pure: values and times in, decisions out; no thread, no lock (the router holds one), no clock but the one it is given.

    kind           opens when                                                        unknown while
    error          k in a row, or a share of the window's requests                   fewer than `least` requests
    nonfinite      as errors: NaN or Inf from finite feeds; both count together
    slow           p95 of a run's seconds per item > factor × the reference's        fewer than `timed` of either
                   and more than `slow_floor_s` above it
    disagreement   mean agreement of sampled requests, the latest or all, < bound    fewer than `compared`, or chance
    drift          Hellinger distance of the scores, beyond chance > bound           fewer than `scored` of either

Unknown never opens it. A breaker that opens again soon after it closed waits twice as long, up to a cap.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean as mean
from statistics import median, stdev

from vitesse.serve.releases.drift import excess

# Enough for a window of a busy server's sampled figures; older ones are forgotten.
_KEPT = 2000
# Runs from which a p95 is worth something by itself.
_TAIL = 100
# Sorting a full window takes 0.2 ms: not at each request.
_LOOK_EVERY = 10


class Kind(StrEnum):
    """What a release did wrong; the labels of the metric of rollbacks."""

    ERROR = "error"
    NONFINITE = "nonfinite"
    SLOW = "slow"
    DISAGREEMENT = "disagreement"
    DRIFT = "drift"


class State(StrEnum):
    """Whether the release answers."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True)
class Thresholds:
    """How much is too much.

    Args:
        consecutive: failures (errors, NaN) in a row; failure_share: of the window, once it has `least` requests.
        window_s: seconds looked back.
        slow_factor: p95 of a run's seconds per item against the reference's; timed: runs needed on either side.
        slow_floor_s: seconds per item that a release may be slower in any case: runs of less than a millisecond are
            several times as long where another thread had the processor, and no client feels that.
        agreement: least mean in 0..1; compared: sampled requests needed, at least 2.
        drift: largest Hellinger distance beyond chance, 0..1; scored: scores needed on either side.
        cool_down_s: before the first probe; it doubles, up to cool_down_most_s, when the breaker opens again before it
            was closed for `stable_s`.
        probes: good ones in a row that close it.
    """

    consecutive: int = 5
    failure_share: float = 0.1
    least: int = 20
    window_s: float = 60.0
    slow_factor: float = 2.0
    slow_floor_s: float = 0.001
    timed: int = 20
    agreement: float = 0.9
    compared: int = 10
    drift: float = 0.3
    scored: int = 50
    cool_down_s: float = 30.0
    cool_down_most_s: float = 1800.0
    stable_s: float = 600.0
    probes: int = 5

    def slowest_s(self, reference_s: float) -> float:
        """Return how many seconds per item are not too slow beside a reference that takes `reference_s`."""
        return max(self.slow_factor * reference_s, reference_s + self.slow_floor_s)


@dataclass(frozen=True)
class Outcome:
    """What came of one request, or of one copy; what was not looked at is None.

    Args:
        failure: ERROR or NONFINITE; text: its message.
        seconds: of the run, per item; agreement: with the reference, 0..1; scores: best one of each image.
    """

    failure: Kind | None = None
    text: str = ""
    seconds: float | None = None
    agreement: float | None = None
    scores: tuple[float, ...] = ()


class _Window:
    """The latest values of the last seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._held: deque[tuple[float, float]] = deque(maxlen=_KEPT)

    def add(self, now: float, *values: float) -> None:
        self._held.extend((now, value) for value in values)

    def values(self, now: float) -> list[float]:
        while self._held and self._held[0][0] < now - self._seconds:
            self._held.popleft()
        return [value for _, value in self._held]

    def clear(self) -> None:
        self._held.clear()


class Yardstick:
    """The reference's own seconds per item and scores; shared by the breakers of all releases.

    Seconds are looked back at for `window_s`, so that a machine that became slow is not held against a release; scores
    for longer, because few requests are compared.
    """

    def __init__(self, window_s: float) -> None:
        self.seconds = _Window(5 * window_s)
        self.scores = _Window(60 * window_s)


class Breaker:
    """Of one release.

    Args:
        clock: seconds, monotonic.
        thresholds: how much is too much.
        yardstick: shared with other breakers; its own by default.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        thresholds: Thresholds | None = None,
        yardstick: Yardstick | None = None,
    ) -> None:
        self.thresholds = thresholds or Thresholds()
        self.yardstick = yardstick or Yardstick(self.thresholds.window_s)
        self.kind: Kind | None = None
        self.why = ""
        self.cool_down_s = self.thresholds.cool_down_s
        self._clock = clock
        self._state, self._until, self._closed_at = State.CLOSED, 0.0, -math.inf
        self._in_a_row = self._good = self._runs = 0
        self._probing = False
        window = self.thresholds.window_s
        self._failed, self._agreed, self._seconds = _Window(window), _Window(window), _Window(window)
        self._scores = _Window(window)

    def fresh(self) -> Breaker:
        """Return a closed breaker of another release, with the same clock, thresholds and yardstick."""
        return Breaker(self._clock, self.thresholds, self.yardstick)

    @property
    def state(self) -> State:
        """The state now: an open one is half open once its cool-down is over."""
        if self._state is State.OPEN and self._clock() >= self._until:
            self._state, self._good, self._probing = State.HALF_OPEN, 0, False
        return self._state

    @property
    def remaining_s(self) -> float:
        """Seconds of cool-down left; 0 unless it is open."""
        return max(0.0, self._until - self._clock()) if self.state is State.OPEN else 0.0

    def record(self, outcome: Outcome) -> bool:
        """Take in what came of a request that the release answered, or should have; True: it opened by this."""
        if self.state is not State.CLOSED:  # a straggler, submitted before it opened
            return False
        now = self._clock()
        if (
            outcome.failure is not None or outcome.seconds is not None
        ):  # a run, and not a late comparison of one
            self._in_a_row = self._in_a_row + 1 if outcome.failure else 0
            self._failed.add(now, float(outcome.failure is not None))
        if outcome.seconds is not None:
            self._seconds.add(now, outcome.seconds)
            self._runs += 1
        if outcome.agreement is not None:
            self._agreed.add(now, outcome.agreement)
        self._scores.add(now, *outcome.scores)
        verdict = self._failures(outcome, now) or self._figures(outcome, now)
        if verdict is None:
            return False
        self._open(*verdict)
        return True

    def record_reference(self, seconds: float | None = None, scores: Sequence[float] = ()) -> None:
        """Take in a run of the reference: seconds per item, and the best score of each image."""
        now = self._clock()
        if seconds is not None:
            self.yardstick.seconds.add(now, seconds)
        self.yardstick.scores.add(now, *scores)

    def probe(self) -> bool:
        """Ask for a probe: True at most once until `record_probe` or `give_up_probe`, and only half open."""
        if self.state is not State.HALF_OPEN or self._probing:
            return False
        self._probing = True
        return True

    def give_up_probe(self) -> None:
        """Say that the probe was not run, or ended without saying anything about the release."""
        self._probing = False

    def record_probe(self, outcome: Outcome, reference_seconds: float | None = None) -> bool:
        """Take in a probe, a copy of a request that the reference answered; True: the breaker closed by this.

        Args:
            reference_seconds: per item of the reference's run of this very request.
        """
        self._probing = False
        if self.state is not State.HALF_OPEN:
            return False
        fault = self._fault_of(outcome, reference_seconds)
        if fault is not None:
            kind, why = fault
            self._open(kind, f"a probe after the cool-down failed: {why}")
            return False
        self._good += 1
        if self._good < self.thresholds.probes:
            return False
        self.close()
        return True

    def close(self) -> None:
        """Close it and forget what was counted: after good probes, or because a person says so."""
        self._state, self._closed_at, self._in_a_row = State.CLOSED, self._clock(), 0
        self.kind, self.why = None, ""
        for window in (self._failed, self._agreed, self._seconds, self._scores):
            window.clear()

    def restore(self, remaining_s: float, cool_down_s: float, kind: str, why: str) -> None:
        """Open it as it was before a restart, with what was left of its cool-down."""
        self._state, self._until = State.OPEN, self._clock() + min(max(0.0, remaining_s), cool_down_s)
        self.cool_down_s, self.kind, self.why = cool_down_s, Kind(kind), why

    def _open(self, kind: Kind, why: str) -> None:
        limits, now = self.thresholds, self._clock()
        again = self._state is State.HALF_OPEN or now - self._closed_at < limits.stable_s
        self.cool_down_s = min(2 * self.cool_down_s, limits.cool_down_most_s) if again else limits.cool_down_s
        self._state, self._until, self.kind, self.why = State.OPEN, now + self.cool_down_s, kind, why

    def _failures(self, outcome: Outcome, now: float) -> tuple[Kind, str] | None:
        limits = self.thresholds
        if outcome.failure is None:
            return None
        last = f"; the last: {outcome.text}" if outcome.text else ""
        if self._in_a_row >= limits.consecutive:
            return outcome.failure, f"{self._in_a_row} requests in a row failed{last}"
        failed = self._failed.values(now)
        if len(failed) >= limits.least and sum(failed) > limits.failure_share * len(failed):
            text = f"{sum(failed):.0f} of the last {len(failed)} requests failed (allowed {limits.failure_share:.0%})"
            return outcome.failure, text + last
        return None

    def _figures(self, outcome: Outcome, now: float) -> tuple[Kind, str] | None:
        """Look only at what this outcome brought; at what is sorted or counted anew each time, after every few runs."""
        limits = self.thresholds
        if outcome.agreement is not None:
            agreed = self._agreed.values(now)
            # The latest alone as well: a long good past must not hide what is wrong now.
            for found in (agreed[-limits.compared :], agreed):
                if len(found) >= limits.compared and _surely_below(found, limits.agreement):
                    text = f"{len(found)} sampled requests agree with the reference by {mean(found):.3f} on average"
                    return Kind.DISAGREEMENT, f"{text} (at least {limits.agreement:g})"
        if self._runs % _LOOK_EVERY:
            return None
        if outcome.scores:
            found, expected = self._scores.values(now), self.yardstick.scores.values(now)
            if min(len(found), len(expected)) >= limits.scored:
                distance = excess(found, expected)
                if distance > limits.drift:
                    text = f"the scores of {len(found)} images are spread otherwise than the reference's"
                    return Kind.DRIFT, f"{text}: Hellinger distance {distance:.2f} (at most {limits.drift:g})"
        return None if outcome.seconds is None else self._slow(now)

    def _slow(self, now: float) -> tuple[Kind, str] | None:
        limits, found, expected = (
            self.thresholds,
            self._seconds.values(now),
            self.yardstick.seconds.values(now),
        )
        if min(len(found), len(expected)) < limits.timed:
            return None
        ours, theirs = _p95(found), _p95(expected)
        if ours <= limits.slowest_s(theirs):
            return None
        # p95 of a few runs is nearly their worst: one stall, unless most of the latest are slower too.
        if min(len(found), len(expected)) < _TAIL and median(found[-limits.timed :]) <= median(expected):
            return None
        return Kind.SLOW, (
            f"p95 of {len(found)} runs is {1e3 * ours:.3g} ms per image, the reference's {1e3 * theirs:.3g} ms "
            f"(allowed are {limits.slow_factor:g} times that or {1e3 * limits.slow_floor_s:g} ms more)"
        )

    def _fault_of(self, outcome: Outcome, reference_seconds: float | None) -> tuple[Kind, str] | None:
        limits = self.thresholds
        if outcome.failure is not None:
            return outcome.failure, outcome.text
        if outcome.agreement is not None and outcome.agreement < limits.agreement:
            return Kind.DISAGREEMENT, f"it agrees by {outcome.agreement:.3f} (at least {limits.agreement:g})"
        if outcome.seconds is not None and reference_seconds is not None:
            most = limits.slowest_s(reference_seconds)
            if outcome.seconds > most:
                return Kind.SLOW, f"it took {1e3 * outcome.seconds:.3g} ms (at most {1e3 * most:.3g})"
        return None


def _surely_below(values: Sequence[float], bound: float) -> bool:
    """Whether a mean is below the bound by three standard errors: two other classes in ten images are chance."""
    return mean(values) + 3 * stdev(values) / math.sqrt(len(values)) < bound


def _p95(values: Sequence[float]) -> float:
    """The smallest value that 95 % do not exceed."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]
