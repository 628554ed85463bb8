"""How far a run is: what the pipeline tells, and a listener that ignores it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Hears which stage runs, what it does, and how much of that is done."""

    def stage(self, name: str, activity: str, total: int) -> None:
        """A part of a stage begins; `total` steps (images, or 100 for a share) lie ahead."""
        ...

    def advance(self, steps: float = 1) -> None:
        """`steps` more are done."""
        ...

    def row(self, stage: str, verdict: str, reason: str) -> None:
        """A stage ended."""
        ...


class Silent:
    """Ignores everything."""

    def stage(self, name: str, activity: str, total: int) -> None:
        """Ignore."""

    def advance(self, steps: float = 1) -> None:
        """Ignore."""

    def row(self, stage: str, verdict: str, reason: str) -> None:
        """Ignore."""
