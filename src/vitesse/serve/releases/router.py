"""Sends each request to the release that answers now, and answers it by the reference when that release fails.

A request is run at most twice: once by a release and once by the reference. Copies, for comparisons, shadows
and probes, are submitted after the request was answered, only while no queue is more than half full, and nobody waits
for them. What is counted is counted on the thread that ended the run, after the answer was given.
"""

from __future__ import annotations

import random as random_module
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from vitesse.serve.refusals import Refusal
from vitesse.serve.releases.breaker import Breaker, Kind, Outcome
from vitesse.serve.releases.control import Control, Plan, alone
from vitesse.serve.releases.observer import ReleaseObserver, Unobserved
from vitesse.serve.releases.sampler import Sampler
from vitesse.serve.releases.state import ReleaseState, StateFile
from vitesse.serve.work import Arrays, Executed, Executor, Promise, Work, all_finite

FeedsOf = Callable[[str], Arrays]
Misfit = Callable[[str, Arrays], str]
# Refusals that say something about the release; the others are about the request or the load.
_FAULTS = frozenset({"backend", "internal"})


@dataclass(frozen=True)
class Routed:
    """An answer: what came of the run, the release that ran it (header X-Served-By), and why that one."""

    executed: Executed
    served_by: str
    why: str


class Router:
    """Routes over executors; thread-safe.

    Args:
        executors: release → what runs it, the reference's among them; `add` brings more.
        reference, live: names; live "" lets the reference answer. A state file, where it has content, wins.
        breaker: of the live release; others get fresh ones like it.
        sampler: which answers are compared, and how.
        clock: seconds, monotonic. random: gives numbers in [0, 1). observer: is told what happens.
        state: RUN/serving.json; initial: what is written there first (default: `live` alone).
        wall: seconds since 1970, for the file. poll_s: how often the file is looked at, at most.
        fullness: share of an executor's queue that is taken, 0..1.
        misfit: release and feeds → why it does not take them, "" where it does; see `releases.fitting`.
    """

    def __init__(
        self,
        executors: Mapping[str, Executor],
        reference: str,
        live: str,
        breaker: Breaker,
        sampler: Sampler,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random_module.random,
        observer: ReleaseObserver | None = None,
        *,
        state: StateFile | None = None,
        initial: ReleaseState | None = None,
        wall: Callable[[], float] = time.time,
        poll_s: float = 1.0,
        fullness: Callable[[Executor], float] | None = None,
        misfit: Misfit = lambda release, feeds: "",
    ) -> None:
        self._executors = dict(executors)
        self._sampler, self._observer = sampler, observer or Unobserved()
        self._clock, self._fullness, self._misfit = clock, fullness or fullness_of, misfit
        self.control = Control(
            reference, alone(live) if initial is None else initial, self._executors, breaker, state, clock, wall,
            random, self._observer, poll_s,
        )  # fmt: skip

    def add(self, release: str, executor: Executor) -> None:
        """Bring a release that is loaded, warmed up and right on the golden images."""
        self._executors[release] = executor

    def knows(self, release: str) -> bool:
        """Return whether a release, or the reference, can be given work."""
        return release in self._executors

    def submit(self, work: Work, feeds_of: FeedsOf | None = None) -> Future[Routed]:
        """Run work; the future ends in any case, with `Routed` or a Refusal. Cancelling it cancels work not begun.

        Args:
            feeds_of: release → the same request's feeds as that release takes them; needed where one is fed
                otherwise than the live release, such as with smaller images, and for work whose feeds its worker
                makes. Without it a release that does not take these feeds is passed over: another one answers, and
                no copy is run.

        Raises:
            Refusal: 503 "queue_full" at once, as the executor that was to run it; "not_ready": none takes the feeds.
        """
        flight = _Flight(self, work, feeds_of, self.control.plan(self._misfit_of(work, feeds_of)))
        flight.start()
        return flight.answer

    def promote(self, name: str = "", *, share: float | None = None, shadow: bool = False) -> dict[str, Any]:
        """Make a release live, or with a share a canary; returns the status. Requests in flight end where they are.

        Raises:
            UsageError: no such release, none that waits, or one that is not loaded. StorageError: state not written.
        """
        self.control.promote(name, share, shadow, "by hand")
        return self.status()

    def rollback(self, why: str = "by hand") -> dict[str, Any]:
        """Take the canary, else the live release back; returns the status. Requests in flight end where they are.

        Raises:
            UsageError: the reference answers already. StorageError: the state cannot be written.
        """
        self.control.rollback(why)
        return self.status()

    def status(self) -> dict[str, Any]:
        """Return releases, breakers and events as JSON has them, and who is `serving`."""
        return self.control.document()

    def run(self, release: str, work: Work, then: Callable[[Future[Executed]], None]) -> None:
        """Submit work to one release and call `then` when it has ended; raises Refusal as the executor."""
        executor = self._executors.get(release)
        if executor is None:
            raise Refusal(503, "not_ready", f"{release} is not loaded; the server's log says why")
        executor.submit(work)
        work.done.add_done_callback(then)

    def _misfit_of(self, work: Work, feeds_of: FeedsOf | None) -> Callable[[str], str]:
        """What is fed to each release as it wants fits each."""
        return lambda release: self._misfit(release, work.feeds) if feeds_of is None else ""

    def roomy(self) -> bool:
        """Whether copies may run: every queue is at most half full, because releases share processor and GPU."""
        return all(self._fullness(executor) <= 0.5 for executor in list(self._executors.values()))


class _Flight:
    """One request on its way: the first run, perhaps the reference's, then perhaps a copy."""

    def __init__(self, router: Router, work: Work, feeds_of: FeedsOf | None, plan: Plan) -> None:
        self._router, self._work, self._feeds_of, self._plan = router, work, feeds_of, plan
        self._misfit = router._misfit_of(work, feeds_of)
        self._sampler, self._observer = router._sampler, router._observer
        self._control, self._reference = router.control, router.control.reference
        self._running = work
        self._unmade = work.make is not None
        self._failed: Outcome | None = None
        self.answer: Future[Routed] = Promise()

    def start(self) -> None:
        """Submit it to the release that the plan names."""
        self._feed(self._work, self._plan.release)
        try:
            self._router.run(self._plan.release, self._work, self._ended)
        except BaseException:
            self._give_up_probe()
            raise
        self.answer.add_done_callback(self._cancel)

    def _cancel(self, answer: Future[Routed]) -> None:
        if answer.cancelled():
            self._running.done.cancel()

    def _ended(self, done: Future[Executed]) -> None:
        """Answer, or go on to the reference; an error in here would leave the client without an answer."""
        try:
            if done.cancelled():
                self._give_up_probe()
                self.answer.cancel()
                return
            release = self._plan.release if self._failed is None else self._reference
            error = done.exception()
            executed = None if error is not None else done.result()
            failed = self._judged(release, self._running, executed, error)
            if failed is None and executed is not None:
                self._succeeded(release, executed)
            elif failed is None:
                assert error is not None
                self._refuse(error)
            elif release == self._reference:
                self._both_failed(failed, error)
            else:
                self._fall_back(failed)
        except Exception as error:
            self._refuse(error)
            raise

    def _judged(
        self, release: str, work: Work, executed: Executed | None, error: BaseException | None
    ) -> Outcome | None:
        """Return what the release did wrong; None where it did nothing wrong."""
        if executed is None:
            fault = not isinstance(error, Refusal) or error.code in _FAULTS
            return Outcome(Kind.ERROR, str(error)) if fault and not work.unfed else None
        broken = _nonfinite(executed.outputs)
        # NaN from NaN is no fault of the release; the feeds are looked at in this rare case only.
        if not broken or _nonfinite(work.feeds):
            return None
        self._observer.nonfinite(release)
        return Outcome(Kind.NONFINITE, f"the output {broken!r} of {release} holds NaN or Inf")

    def _succeeded(self, release: str, executed: Executed) -> None:
        why = self._plan.why if self._failed is None else f"fallback: {self._failed.text}"
        if self.answer.set_running_or_notify_cancel():
            self.answer.set_result(Routed(executed, release, why))
        self._observer.routed(release, "fallback" if self._failed is not None else self._plan.why)
        scores = self._sampler.scores(release, executed.outputs) if self._sampler.watched() else ()
        if release == self._reference:
            self._control.record_reference(_seconds(executed), scores)
            if self._failed is not None:
                self._control.record(self._plan.release, self._failed)
        else:
            self._control.record(release, Outcome(seconds=_seconds(executed), scores=scores))
        if self._failed is None:
            self._copy(release, executed)

    def _fall_back(self, failed: Outcome) -> None:
        """Let the reference answer this very request, inside its own deadline."""
        self._failed = failed
        again = self._copied(self._reference, self._work.deadline)
        self._running = again
        if self.answer.cancelled():  # later than here, cancelling reaches `again`
            self._control.record(self._plan.release, failed)
            return
        try:
            if why := self._misfit(self._reference):
                raise Refusal(503, "backend", f"{why}; send the image itself", {"Retry-After": "5"})
            self._router.run(self._reference, again, self._ended)
        except Refusal as refusal:
            self._control.record(self._plan.release, failed)
            text = f"{failed.text}; the reference could not answer instead: {refusal.text}"
            self._refuse(Refusal(503, refusal.code, text, refusal.headers))

    def _both_failed(self, failed: Outcome, error: BaseException | None) -> None:
        """Answer 503; a request on which the original fails too is not held against the release."""
        self._give_up_probe()
        if self._failed is None and isinstance(error, Refusal):
            self._refuse(error)
            return
        first = f"{self._failed.text}; " if self._failed is not None else ""
        text = f"{first}the reference failed as well: {failed.text}; nothing else is loaded that could answer"
        self._refuse(Refusal(503, "backend", text, {"Retry-After": "5"}))

    def _refuse(self, error: BaseException) -> None:
        self._give_up_probe()
        if not self.answer.done() and self.answer.set_running_or_notify_cancel():
            self.answer.set_exception(error)

    def _give_up_probe(self) -> None:
        if self._plan.probe:
            self._control.record_probe(self._plan.copy_to, None, None)

    def _copied(self, release: str, deadline: float) -> Work:
        copy = Work(self._work.feeds, self._router._clock(), deadline, self._work.request_id)
        self._feed(copy, release)
        return copy

    def _feed(self, work: Work, release: str) -> None:
        """Give work what a release is fed with: now, or on its worker's thread where the request's work is such."""
        if self._feeds_of is None:
            return
        if self._unmade:
            work.make = partial(self._feeds_of, release)
        else:
            work.feeds = self._feeds_of(release)

    def _copy(self, served_by: str, executed: Executed) -> None:
        """Run copies where the plan or the sampler wants some: a probe, a shadow, the reference for comparison."""
        wanted = [(self._plan.copy_to, self._plan.copy_to)] if self._plan.copy_to else []
        comparable = served_by != self._reference and not self._misfit(self._reference)
        if comparable and self._sampler.compared():
            wanted.append((served_by, self._reference))
        for release, target in wanted:
            if not self._router.roomy():
                self._drop(release)
                continue
            allowed = max(0.0, self._work.deadline - self._work.arrived)
            copy = self._copied(target, self._router._clock() + allowed)
            compare = partial(self._compare, release, target, executed, copy)
            try:
                self._router.run(target, copy, compare)
            except Refusal:  # no room after all, or no reference is loaded
                self._drop(release)

    def _drop(self, release: str) -> None:
        self._give_up_probe()
        self._observer.shadow_dropped(release)

    def _compare(
        self, release: str, target: str, served: Executed, copy: Work, done: Future[Executed]
    ) -> None:
        """Judge a release by a copy: the copy's outputs where it ran the copy, else what it served."""
        outcome: Outcome | None = None
        try:
            if done.cancelled():
                return
            error = done.exception()
            executed = None if error is not None else done.result()
            failed = self._judged(target, copy, executed, error)
            if target == self._reference:
                if executed is not None and failed is None:
                    self._compared_with_reference(release, served, executed)
                return
            outcome = failed
            if executed is not None and failed is None:
                agreement = self._sampler.agreement(release, executed.outputs, served.outputs)
                self._observer.agreed(release, agreement)
                scores = self._sampler.scores(release, executed.outputs) if self._sampler.watched() else ()
                outcome = Outcome(seconds=_seconds(executed), agreement=agreement, scores=scores)
            if outcome is not None and not self._plan.probe:
                self._control.record(release, outcome)
        finally:
            if self._plan.probe:
                self._control.record_probe(release, outcome, _seconds(served))

    def _compared_with_reference(self, release: str, served: Executed, reference: Executed) -> None:
        scores = self._sampler.scores(self._reference, reference.outputs)
        self._control.record_reference(_seconds(reference), scores)
        agreement = self._sampler.agreement(release, served.outputs, reference.outputs)
        self._observer.agreed(release, agreement)
        self._control.record(release, Outcome(agreement=agreement))


def fullness_of(executor: Executor) -> float:
    """Return the share of a queue that is taken, 0..1, of an executor with `depth()` and `capacity`; 0 without them."""
    depth, capacity = getattr(executor, "depth", None), getattr(executor, "capacity", 0)
    return float(depth()) / capacity if depth is not None and capacity else 0.0


def _seconds(executed: Executed) -> float:
    """Seconds of the run per item: a release may batch where the reference does not."""
    return executed.infer_s / max(1, executed.batch)


def _nonfinite(arrays: Arrays) -> str:
    """Return the name of the first array that holds NaN or Inf, "" for none."""
    for name, array in arrays.items():
        if not all_finite(array):
            return name
    return ""
