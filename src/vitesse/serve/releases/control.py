"""Where traffic goes now: the release state, a breaker per release, and what is done when one opens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

from vitesse.errors import StorageError, UsageError, VitesseError
from vitesse.serve.refusals import Refusal
from vitesse.serve.releases.breaker import Breaker, Outcome, State
from vitesse.serve.releases.observer import ReleaseObserver
from vitesse.serve.releases.state import Opening, Phase, Release, ReleaseState, StateFile


@dataclass(frozen=True)
class Plan:
    """Who answers a request, why, and which release gets a copy after that.

    Args:
        copy_to: "" for none; probe: the copy is a probe of a release whose breaker is half open.
    """

    release: str
    why: str
    copy_to: str = ""
    probe: bool = False


class Control:
    """Thread-safe; every change of the state goes through the file, so that other processes' changes are kept.

    Args:
        reference: name of the original; initial: the state where the file has none.
        loaded: names of the releases that can answer; it may grow.
        file: None keeps the state in memory.
        clock, wall: seconds, monotonic and since 1970. poll_s: how often the file is looked at, at most.
    """

    def __init__(
        self,
        reference: str,
        initial: ReleaseState,
        loaded: Collection[str],
        breaker: Breaker,
        file: StateFile | None,
        clock: Callable[[], float],
        wall: Callable[[], float],
        random: Callable[[], float],
        observer: ReleaseObserver,
        poll_s: float,
    ) -> None:
        self.reference, self._loaded, self._template = reference, loaded, breaker
        self._file, self._clock, self._wall, self._random = file, clock, wall, random
        self._observer, self._poll_s = observer, poll_s
        self._lock = threading.RLock()
        # Writing and applying is one act, else an older state could be applied after a newer one. Requests that are
        # planned meanwhile do not wait for the disk.
        self._changing = threading.RLock()
        self._breakers: dict[str, Breaker] = {initial.live.name: breaker} if initial.live else {}
        self._told: dict[str, str] = {}
        self._passed_over: set[str] = set()
        self._looked = clock()
        self._state, self._initial = initial, initial
        self._read()

    @property
    def state(self) -> ReleaseState:
        """The release state as it is applied now."""
        return self._state

    def plan(self, misfit: Callable[[str], str] = lambda release: "") -> Plan:
        """Decide about one request.

        Args:
            misfit: release → why it cannot take this request, "" where it can.

        Raises:
            Refusal: 503 "not_ready": what could answer now takes other tensors.
        """
        self._poll()
        with self._lock:
            plan = self._wanted()
            if plan.copy_to and misfit(plan.copy_to):
                plan = self._without_copy(plan)
            why = misfit(plan.release)
            return plan if not why else self._instead(self._without_copy(plan), why, misfit)

    def _wanted(self) -> Plan:
        """Return the plan for a request that every release takes; under the lock."""
        live, canary = self._answering(self._state.live), self._answering(self._state.canary)
        chosen = canary is not None and self._random() < canary.share
        if canary is not None and chosen and not canary.shadow:
            return Plan(canary.name, "canary")
        copied = canary.name if canary is not None and chosen else ""
        if live is None:
            return Plan(self.reference, self._why_not(self._state.live), copied)
        breaker = self.breaker(live.name)
        state = self._tell_breaker(live.name)
        if state is State.CLOSED:
            return Plan(live.name, "live", copied)
        if self.reference not in self._loaded:
            if state is State.HALF_OPEN:  # nothing could stand in for it while it is probed
                breaker.close()
            return Plan(live.name, "live, as no reference is loaded to go back to", copied)
        if state is State.HALF_OPEN and breaker.probe():
            return Plan(self.reference, f"{live.name} is being probed: {breaker.why}", live.name, True)
        return Plan(self.reference, f"{live.name} was rolled back: {breaker.why}", copied)

    def _instead(self, plan: Plan, why: str, misfit: Callable[[str], str]) -> Plan:
        """Return a plan with another release that is trusted and takes the request; under the lock."""
        self._pass_over(plan.release, why)
        instead = f"{plan.release} does not take these tensors: {why}"
        live, previous = self._state.live, self._state.in_phase(Phase.PREVIOUS)
        for trusted in filter(None, map(self._answering, (live, previous))):
            if not misfit(trusted.name) and self._tell_breaker(trusted.name) is State.CLOSED:
                return Plan(trusted.name, "live" if trusted is live else instead)
        if self.reference in self._loaded and not misfit(self.reference):
            return Plan(self.reference, instead)
        raise Refusal(
            503,
            "not_ready",
            f"{instead}, and nothing else may answer now ({plan.why}). Send the image itself, which is made to fit "
            "each release; or start the server again: it then describes the tensors of what is live",
            {"Retry-After": "5"},
        )

    def _without_copy(self, plan: Plan) -> Plan:
        if plan.probe:
            self.breaker(plan.copy_to).give_up_probe()
        return replace(plan, copy_to="", probe=False)

    def _pass_over(self, release: str, why: str) -> None:
        """Say once that a release is not given tensors: a line a request would fill the log."""
        if release not in self._passed_over:
            self._passed_over.add(release)
            self._observer.release_noted(
                release, "passed over", f"{why}; such requests are answered by another"
            )

    def breaker(self, release: str) -> Breaker:
        """Return a release's breaker; hold no reference to it across requests."""
        with self._lock:
            if release not in self._breakers:
                self._breakers[release] = self._template.fresh()
            return self._breakers[release]

    def record(self, release: str, outcome: Outcome) -> None:
        """Take in what came of a request or of a copy; rolls back where that was one too many."""
        with self._lock:
            breaker = self.breaker(release)
            if not breaker.record(outcome):
                return
            kind, why = str(breaker.kind), breaker.why
            canary = self._state.canary is not None and self._state.canary.name == release
            opening = self._opening(breaker)
        self._observer.rolled_back(release, kind, why)
        self._tell_breaker(release)
        if canary:  # a trial that failed is over: a person may try again
            self._change(lambda state: self._rejected(state, release, why))
        else:
            self._change(
                lambda state: state.with_breaker(release, opening).with_event(
                    self._wall(), release, "rolled back", why
                )
            )

    def record_reference(self, seconds: float, scores: tuple[float, ...]) -> None:
        """Take in a run of the reference; what all releases are measured by is shared."""
        with self._lock:
            self._template.record_reference(seconds, scores)

    def record_probe(self, release: str, outcome: Outcome | None, reference_seconds: float | None) -> None:
        """Take in a probe; None: it was not run, or said nothing about the release."""
        with self._lock:
            breaker = self.breaker(release)
            if outcome is None:
                breaker.give_up_probe()
                return
            closed = breaker.record_probe(outcome, reference_seconds)
            why, opening = breaker.why, None if closed else self._opening(breaker)
            decided = closed or breaker.state is State.OPEN
        if not decided:
            return
        self._tell_breaker(release)
        what = "live again" if closed else "probe failed"
        why = f"{breaker.thresholds.probes} probes in a row were good" if closed else why
        self._change(
            lambda state: state.with_breaker(release, opening).with_event(self._wall(), release, what, why)
        )

    def promote(self, name: str, share: float | None, shadow: bool, why: str) -> None:
        """Make a release live, or with a share a canary; without a name the canary, else the latest candidate.

        Raises:
            UsageError: no such release, or one that is not loaded. StorageError: the state cannot be written.
        """

        def change(state: ReleaseState) -> ReleaseState:
            chosen = name or next_of(state)
            if chosen not in self._loaded:
                raise UsageError(
                    f"{chosen} is not loaded in this server",
                    expected=f"one of: {', '.join(self._loaded)}",
                    fix="start the server again: it loads the run's releases",
                )
            return promotion(state, chosen, share, shadow, self._wall(), why)

        self._change(change, must=True)

    def rollback(self, why: str) -> None:
        """Take the canary, else the live release back; raises UsageError where the reference answers already."""
        going = self._state.canary or self._state.live
        self._change(lambda state: state.withdrawn(self._wall(), why), must=True)
        if going is not None:
            self._observer.rolled_back(going.name, "manual", why)

    def document(self) -> dict[str, Any]:
        """Return all of it as JSON has it, for /api/status and the admin routes."""
        self._poll()
        with self._lock:
            live = self._state.live
            breakers = {
                one.name: {
                    "state": str(breaker.state),
                    "kind": breaker.kind and str(breaker.kind),
                    "why": breaker.why,
                    "remaining_s": round(breaker.remaining_s, 1),
                    "cool_down_s": breaker.cool_down_s,
                }
                for one in self._state.releases
                if (breaker := self._breakers.get(one.name)) is not None
            }
            loaded = self._answering(live)
            stays = loaded is not None and (
                self.reference not in self._loaded or self.breaker(loaded.name).state is State.CLOSED
            )
            return {
                "serving": loaded.name if loaded is not None and stays else self.reference,
                "reference": self.reference,
                "live": live.name if live else None,
                "canary": asdict(self._state.canary) if self._state.canary else None,
                "releases": [asdict(one) for one in self._state.releases],
                "breakers": breakers,
                "events": [asdict(event) for event in self._state.events],
            }

    def _answering(self, release: Release | None) -> Release | None:
        return release if release is not None and release.name in self._loaded else None

    def _why_not(self, live: Release | None) -> str:
        return "no release is live" if live is None else f"{live.name} is not loaded"

    def _poll(self) -> None:
        now = self._clock()
        if self._file is None or now - self._looked < self._poll_s:
            return
        self._looked = now
        if self._changing.acquire(blocking=False):
            try:
                if self._file.changed():
                    self._read()
            finally:
                self._changing.release()

    def _read(self) -> None:
        if self._file is None:
            return
        try:
            found = self._file.read()
        except VitesseError as error:
            self._initial = (
                ReleaseState()
            )  # nobody knows what was live: the original answers until a person says so
            self._apply(self._initial)
            self._observer.release_noted(self.reference, "state damaged", str(error))
            return
        self._apply(self._initial if found is None else found)

    def _apply(self, state: ReleaseState) -> None:
        with self._lock:
            before, self._state = self._state, state
            for name in {*self._breakers, *state.breakers}:
                breaker, opening = self.breaker(name), state.breakers.get(name)
                if opening is None and breaker.state is not State.CLOSED:
                    breaker.close()
                elif opening is not None and breaker.state is State.CLOSED:
                    left = opening.until - self._wall()
                    breaker.restore(left, opening.cool_down_s, opening.kind, opening.why)
            known = set(before.events)
            new = [event for event in state.events if event not in known]
        for event in new:
            self._observer.release_noted(event.release, event.what, event.why)

    def _change(self, change: Callable[[ReleaseState], ReleaseState], *, must: bool = False) -> None:
        """Change the state; a file that cannot be written does not keep an automatic rollback from happening."""
        with self._changing:
            self._written(change, must)

    def _written(self, change: Callable[[ReleaseState], ReleaseState], must: bool) -> None:
        if self._file is None:
            self._apply(change(self._state))
            return
        try:
            new = self._file.update(change, lambda: self._initial)
        except StorageError as error:
            if must:
                raise
            self._apply(change(self._state))
            self._observer.release_noted(self.reference, "not saved", str(error))
            return
        self._apply(new)

    def _rejected(self, state: ReleaseState, release: str, why: str) -> ReleaseState:
        still = state.canary is not None and state.canary.name == release
        return state.withdrawn(self._wall(), why, release) if still else state

    def _opening(self, breaker: Breaker) -> Opening:
        until = self._wall() + breaker.remaining_s
        return Opening(until, breaker.cool_down_s, str(breaker.kind), breaker.why)

    def _tell_breaker(self, release: str) -> State:
        with self._lock:
            breaker = self.breaker(release)
            state = breaker.state
            told, self._told[release] = self._told.get(release, State.CLOSED), state
        if state != told:
            self._observer.breaker_changed(release, str(state), breaker.why)
        return state


def next_of(state: ReleaseState) -> str:
    """Return the release that a promotion without a name means: the canary, the latest candidate, else the live one.

    Raises:
        UsageError: none of them.
    """
    waiting = state.canary or state.in_phase(Phase.CANDIDATE) or state.live
    if waiting is None:
        known = ", ".join(release.name for release in state.releases) or "none"
        raise UsageError(
            "no release waits for a promotion", expected=f"the name of one: {known}", fix="name it"
        )
    return waiting.name


def promotion(
    state: ReleaseState, name: str, share: float | None, shadow: bool, at: float, why: str
) -> ReleaseState:
    """Return the state with a release made live, or with a share (or shadow: then 1 without one) a canary."""
    if share is None and not shadow:
        return state.promoted(name, at, why)
    return state.with_canary(name, 1.0 if share is None else share, shadow, at, why)


def alone(live: str) -> ReleaseState:
    """Return the state of a server without a file: one live release, or with "" the reference alone."""
    return ReleaseState((Release(live, "", Phase.LIVE),)) if live else ReleaseState()
