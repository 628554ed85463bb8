"""Latency, throughput and memory of one artifact beside the baseline, for its row of the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from vitesse.artifact import Artifact
from vitesse.backends import GPUS, backend
from vitesse.backends.protocol import LoadOptions, Session, Tensors
from vitesse.benchmark.fresh_process import fresh_process
from vitesse.benchmark.latency import Interleaved, Ratio, interleave
from vitesse.benchmark.throughput import throughput
from vitesse.errors import VitesseError
from vitesse.ledger import Latency
from vitesse.recipe import MeasureOptions
from vitesse.spec import ModelSpec

# A fresh process shows its peak after a few calls.
FRESH_CALLS = 3
# Some images, batch 1, prepared as a spec says: an artifact may take them smaller than the original.
FeedsOf = Callable[[ModelSpec], Sequence[Tensors]]
BASELINE, BEFORE, CANDIDATE = "original", "step before", "this step"


@dataclass(frozen=True)
class Candidate:
    """An artifact and the options it runs with."""

    artifact: Artifact
    options: LoadOptions

    @property
    def key(self) -> tuple[str, str, LoadOptions]:
        """What decides its outputs and its speed."""
        return self.artifact.sha256, self.artifact.backend, self.options


@dataclass(frozen=True)
class Timing:
    """What was measured; None where it was not, and `unmeasured` says why by field of the row."""

    latency: Latency | None = None
    gain: Ratio | None = None
    over_before: Ratio | None = None
    throughput_per_s: float | None = None
    memory_mb: float | None = None
    load_ms: float | None = None
    cold_start_ms: float | None = None
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    samples: Interleaved | None = None


@contextmanager
def opened(candidate: Candidate) -> Iterator[Session]:
    """Load a candidate and open one session."""
    with (
        backend(candidate.artifact.backend).load(candidate.artifact, candidate.options) as engine,
        engine.session() as session,
    ):
        yield session


def race(
    candidates: Mapping[str, Candidate],
    feeds: FeedsOf,
    options: MeasureOptions,
    on_share: Callable[[float], None] | None = None,
) -> Interleaved:
    """Load all candidates and measure them interleaved."""
    with ExitStack() as stack:
        sessions = {name: stack.enter_context(opened(one)) for name, one in candidates.items()}
        fed = {name: feeds(one.artifact.spec) for name, one in candidates.items()}
        return interleave(
            sessions, fed, seconds=options.seconds, min_rounds=options.min_rounds, on_progress=on_share
        )


def time_candidate(
    candidate: Candidate,
    before: Candidate | None,
    baseline: Candidate,
    feeds: FeedsOf,
    options: MeasureOptions,
    on_share: Callable[[float], None],
) -> Timing:
    """Measure `candidate` against the baseline and, where there is one, the step before, all in one run.

    Args:
        on_share: hears the share of the interleaved run that is done, 0..1.

    Raises:
        BackendError: the candidate does not load or run.
    """
    # The source row races against a second session of itself: its gain shows the noise of this machine.
    entrants = {BASELINE: baseline, CANDIDATE: candidate}
    if before is not None and before.key != baseline.key:
        entrants[BEFORE] = before
    run = race(entrants, feeds, options, on_share)
    gain = run.ratio(BASELINE, CANDIDATE)
    unmeasured: dict[str, str] = {}
    per_second, own = None, feeds(candidate.artifact.spec)
    try:
        # Two streams keep a GPU busy while results are copied; on a CPU it is a session for each core.
        sessions = 2 if candidate.artifact.backend in GPUS else 0
        seconds = max(0.1, options.seconds / 4)
        per_second = throughput(candidate.artifact, own, sessions=sessions, seconds=seconds).per_s
    except VitesseError as error:
        unmeasured["throughput_per_s"] = error.what
    fresh = fresh_process(candidate.artifact, own[:FRESH_CALLS], candidate.options)
    if fresh.unmeasured:
        unmeasured |= dict.fromkeys(("memory_mb", "load_ms", "cold_start_ms"), fresh.unmeasured)
    return Timing(
        run.latency(CANDIDATE),
        gain,
        run.ratio(BEFORE, CANDIDATE) if BEFORE in entrants else gain,
        per_second,
        fresh.memory_mb,
        fresh.load_ms,
        fresh.cold_start_ms,
        unmeasured,
        run,
    )
