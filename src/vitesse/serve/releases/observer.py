"""What the router tells whoever counts, logs and shows it."""

from __future__ import annotations

from typing import Protocol


class ReleaseObserver(Protocol):
    """Called from the server's threads; must be quick and must not raise."""

    def routed(self, served_by: str, why: str) -> None:
        """Say that a request was answered by a release, and why by that one ("live", "canary", "fallback", …)."""
        ...

    def rolled_back(self, release: str, kind: str, why: str) -> None:
        """Say that traffic left a release: kind is one of `breaker.Kind`, or "manual"; `why` is a sentence."""
        ...

    def breaker_changed(self, release: str, state: str, why: str) -> None:
        """Say that a breaker is "closed", "open" or "half_open" from now on."""
        ...

    def agreed(self, release: str, agreement: float) -> None:
        """Give the agreement, 0..1, of one sampled request with the reference."""
        ...

    def nonfinite(self, release: str) -> None:
        """Say that a release answered finite feeds with NaN or Inf."""
        ...

    def shadow_dropped(self, release: str) -> None:
        """Say that a copy was not run, because real work needed the room."""
        ...

    def release_noted(self, release: str, what: str, why: str) -> None:
        """Tell an event of the release state: "promoted", "canary", "withdrawn", "not saved", …."""
        ...


class Unobserved:
    """Listens to nothing."""

    def routed(self, served_by: str, why: str) -> None:
        """Pass over it."""

    def rolled_back(self, release: str, kind: str, why: str) -> None:
        """Pass over it."""

    def breaker_changed(self, release: str, state: str, why: str) -> None:
        """Pass over it."""

    def agreed(self, release: str, agreement: float) -> None:
        """Pass over it."""

    def nonfinite(self, release: str) -> None:
        """Pass over it."""

    def shadow_dropped(self, release: str) -> None:
        """Pass over it."""

    def release_noted(self, release: str, what: str, why: str) -> None:
        """Pass over it."""
