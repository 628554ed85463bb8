"""What the routes ask: one model with its limits, its way to an answer, and whether it is ready."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from vitesse.serve.admission import Places
from vitesse.serve.auth import Keys
from vitesse.serve.execution import Submits, Threads
from vitesse.serve.limits import Limits
from vitesse.serve.metrics import Metrics
from vitesse.serve.protocol import Signature
from vitesse.serve.refusals import Refusal
from vitesse.serve.tally import Tally
from vitesse.spec import ModelSpec

WARMING = "the model is being loaded and warmed up"


class Releases(Protocol):
    """What an operator may do by hand."""

    def promote(
        self, release: str = "", *, share: float | None = None, shadow: bool = False
    ) -> Mapping[str, Any]:
        """Let a release ("": the candidate or canary) answer all requests, or with a share that part of them.

        With `shadow` that part is copied to it and compared, and nobody sees its answers. Returns the state after it.
        """
        ...

    def rollback(self, why: str) -> Mapping[str, Any]:
        """Let the reference answer all requests; returns the state after it."""
        ...


class Readiness:
    """Whether requests are taken, and why not; told to the metrics.

    Not ready while starting; ready once warmed up; never again once warm-up failed or the server leaves.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.state, self.reason = "starting", WARMING
        metrics.state("starting")

    @property
    def ready(self) -> bool:
        """Whether requests for inference are taken."""
        return self.state == "ready"

    @property
    def leaving(self) -> bool:
        """Whether the server has begun to shut down."""
        return self.state == "draining"

    def become(self, state: str, reason: str = "") -> None:
        """Go on to `warming`, `ready`, `failed` or `draining`; what is leaving stays so."""
        if not self.leaving:
            self.state, self.reason = state, reason
            self._metrics.state(state)


@dataclass(eq=False)
class Service:
    """One served model.

    Args:
        signature: its name, inputs and outputs. spec: how images become its inputs.
        router: takes work. threads: decode and resize. places: requests that may be under way at once.
        status: the dashboard's document. tally: for v2 statistics.
        workers, max_wait_s: for v2 config. release: which variant answers and why, for v2 statistics.
        why_dead: a reason why the process must be restarted, "" for none.
        not_ready: a reason beside `readiness`, such as no worker left, "" for none.
        keys, admin_keys: None leaves the door open, or the admin routes away.
        specs: release → its spec, where one is fed or read otherwise than `spec` says.
        decode_in_worker: an image is decoded by the worker that runs it, else by `threads` before it is queued.
        allow_nonfinite: NaN and infinity in v2 inputs are taken. fast_decode: JPEGs at a reduced scale.
        clock: seconds, monotonic.

    Attributes:
        fed_alike: one image is the same feeds for all releases.
    """

    signature: Signature
    spec: ModelSpec
    router: Submits
    metrics: Metrics
    threads: Threads
    status: Callable[[], Mapping[str, Any]]
    tally: Tally
    limits: Limits = field(default_factory=Limits)
    places: Places = field(default_factory=lambda: Places(Limits.connections))
    workers: int = 1
    max_wait_s: float = 0.0
    release: Callable[[], Mapping[str, Any] | None] = lambda: None
    why_dead: Callable[[], str] = lambda: ""
    not_ready: Callable[[], str] = lambda: ""
    releases: Releases | None = None
    keys: Keys | None = None
    admin_keys: Keys | None = None
    specs: Mapping[str, ModelSpec] = field(default_factory=dict)
    decode_in_worker: bool = False
    allow_nonfinite: bool = False
    fast_decode: bool = False
    clock: Callable[[], float] = time.monotonic
    readiness: Readiness = field(init=False)
    fed_alike: bool = field(init=False)

    def __post_init__(self) -> None:
        self.readiness = Readiness(self.metrics)
        rules = self.spec.preprocessing
        self.fed_alike = all(spec.preprocessing == rules for spec in self.specs.values())

    def unready(self) -> str:
        """Return why requests are not taken; "" when they are."""
        if not self.readiness.ready:
            return self.readiness.reason or self.readiness.state
        return self.why_dead() or self.not_ready()

    def check_ready(self) -> None:
        """Raise Refusal 503 "not_ready" with the reason, unless requests are taken.

        A server that is leaving answers what still reaches it: its balancers do not know yet.
        """
        why = self.unready()
        if why and not self.readiness.leaving:
            raise Refusal(503, "not_ready", f"not ready: {why}", {"Retry-After": "5"})

    def spec_of(self, release: str) -> ModelSpec:
        """Return how a release is fed and its outputs are read."""
        return self.specs.get(release, self.spec)

    def operator(self) -> Releases:
        """Return what may be done by hand; raises Refusal 404 where there is nothing."""
        if self.releases is None:
            raise Refusal(
                404, "not_found", "this server has no releases to change: it runs without a reference"
            )
        return self.releases

    def leave(self) -> None:
        """Be not ready from now on, and go on answering."""
        self.readiness.become("draining", "the server is shutting down")
