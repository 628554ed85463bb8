"""A runtime that misbehaves on demand, around a real one: for tests of gates and for drills."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitesse.artifact import Artifact, Store
from vitesse.backends.closing import Closing
from vitesse.backends.protocol import (
    Array,
    Availability,
    Backend,
    Built,
    Engine,
    LoadOptions,
    Outcome,
    Session,
    Tensors,
)
from vitesse.errors import BackendError


@dataclass(frozen=True)
class Fault:
    """What goes wrong, in every run from the `after`-th on (0: from the first).

    change: (output name, array) → array, put in place of that output; it must not write into its argument.
    delay_ms: milliseconds of sleep added to each run, seen in `host_ms`.
    crash: text of a BackendError raised instead of running.
    """

    change: Callable[[str, Array], Array] | None = None
    delay_ms: float = 0.0
    crash: str = ""
    after: int = 0


def scaled(factor: float) -> Callable[[str, Array], Array]:
    """Multiply every float output."""
    return lambda _, array: _on_floats(array, lambda values: values * factor)


def shifted(distance: float) -> Callable[[str, Array], Array]:
    """Add a constant to every float output."""
    return lambda _, array: _on_floats(array, lambda values: values + distance)


def _on_floats(array: Array, change: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Array:
    if array.dtype.kind != "f":
        return array
    changed: Array = change(array.astype(np.float64)).astype(array.dtype)
    return changed


def with_nan(_: str, array: Array) -> Array:
    """Replace the first value of a float output by NaN."""
    broken = array.copy()
    if broken.dtype.kind == "f" and broken.size:
        broken.flat[0] = np.nan
    return broken


class FakeSession(Closing):
    """A session of the wrapped runtime, with the fault."""

    def __init__(self, inner: Session, fault: Fault) -> None:
        self._inner, self._fault, self._runs = inner, fault, 0

    def run(self, feeds: Tensors) -> Outcome:
        """Run the wrapped session, then do the damage."""
        faulty = self._runs >= self._fault.after
        self._runs += 1
        if faulty and self._fault.crash:
            raise BackendError(self._fault.crash, cause="a fault injected by the fake backend")
        outcome = self._inner.run(feeds)
        if not faulty:
            return outcome
        time.sleep(self._fault.delay_ms / 1e3)
        change = self._fault.change or (lambda _, array: array)
        outputs = {name: change(name, array) for name, array in outcome.outputs.items()}
        return Outcome(outputs, outcome.host_ms + self._fault.delay_ms, outcome.device_ms)

    def close(self) -> None:
        """Close the session or engine inside."""
        self._inner.close()


class FakeEngine(Closing):
    """An engine of the wrapped runtime whose sessions have the fault."""

    def __init__(self, inner: Engine, fault: Fault) -> None:
        self._inner, self._fault = inner, fault
        self.inputs, self.outputs = inner.inputs, inner.outputs

    def session(self) -> FakeSession:
        """Open a session that misbehaves."""
        return FakeSession(self._inner.session(), self._fault)

    def close(self) -> None:
        """Close the session or engine inside."""
        self._inner.close()


class FakeBackend:
    """Wraps a backend; without a fault it behaves exactly like it."""

    def __init__(self, inner: Backend, fault: Fault | None = None) -> None:
        self.name, self.distrusts = inner.name, inner.distrusts
        self._inner, self._fault = inner, fault or Fault()

    def probe(self) -> Availability:
        """Return what the wrapped backend says."""
        return self._inner.probe()

    def build(self, artifact: Artifact, store: Store) -> Built:
        """Build with the wrapped backend."""
        return self._inner.build(artifact, store)

    def load(self, artifact: Artifact, options: LoadOptions | None = None) -> FakeEngine:
        """Load with the wrapped backend."""
        return FakeEngine(self._inner.load(artifact, options), self._fault)
