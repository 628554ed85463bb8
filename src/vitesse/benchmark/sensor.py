"""What a watcher reads from: a processor or a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Reading:
    """One sample.

    Args:
        values: figure → value; the unit ends its name (`_percent`, `_mb` = 1e6 bytes, `_mhz`, `_w`, `_c`).
        throttling: why clocks were held below what was asked for; empty where they were not.
        reasons: everything that was said about clocks, the harmless included.
        tells_throttling: False where it cannot be known whether clocks were held down.
    """

    values: Mapping[str, float]
    throttling: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    tells_throttling: bool = True


class Sensor(Protocol):
    """One processor or GPU, and the memory of this process on it in MB (1e6 bytes)."""

    def read(self) -> Reading:
        """Return one sample; raises whatever the driver raises."""
        ...

    def own_mb(self) -> float:
        """Return the memory of this process."""
        ...

    def free_mb(self) -> float:
        """Return the memory nobody uses."""
        ...

    def close(self) -> None:
        """Let go of the driver."""
        ...
