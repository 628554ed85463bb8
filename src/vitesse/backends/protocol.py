"""What every runtime offers: three levels, because every runtime has them.

Backend.probe()            is it here, why not, which versions
Backend.build(artifact)    a file for this runtime
Backend.load(artifact)     Engine: weights in memory, shared; a context manager
Engine.session()           Session: one stream and its preallocated buffers; not thread-safe; a context manager
Session.run(feeds)         Outcome: outputs and the time the call took, measured by the session itself
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from vitesse.artifact import Artifact, Store

Array = NDArray[np.generic]
Tensors = Mapping[str, Array]


@dataclass(frozen=True)
class Availability:
    """Whether a runtime works here. `reason` and `fix` (a pip line) are set when it does not."""

    available: bool
    version: str = ""
    devices: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    reason: str = ""
    fix: str = ""


@dataclass(frozen=True)
class LoadOptions:
    """How an engine runs. `threads` is the number of CPU threads one session uses; 0 leaves the runtime's default.

    `plain` loads with the runtime's default options only (the baseline a user would write by hand);
    `reference` switches every graph optimisation off (the numerical reference).
    `emulate` rounds FP16 and BF16 as the graph says, where the runtime would compute in float32: for judging numbers.
    `profile_to` is a path prefix for the runtime's own operator profile.
    `sessions` is how many sessions will run at once, for runtimes that must know it when they compile.
    `device` is the number of the GPU; `cuda_graph` replays the calls of one shape as one CUDA graph where the runtime
    can; `memory_bytes` caps the device memory that a session's buffers, and what its runtime allocates,
    may take, where a runtime lets it (ONNX Runtime counts the weights in); 0 = no cap.
    `tf32` lets a GPU round the factors of float32 products to TF32, as runtimes do by default; False where numbers are
    compared.
    """

    threads: int = 0
    plain: bool = False
    reference: bool = False
    emulate: bool = False
    profile_to: str = ""
    sessions: int = 1
    device: int = 0
    cuda_graph: bool = True
    memory_bytes: int = 0
    tf32: bool = True


@dataclass(frozen=True)
class Built:
    """An artifact a stage made, what it changed (name → count, also 0), and what it left alone, with the reason."""

    artifact: Artifact
    changes: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """Outputs by name, wall time of the call, device time where the runtime has events (None on CPU).

    The arrays belong to the session and are overwritten by its next `run`: copy what must outlive it.
    """

    outputs: Tensors
    host_ms: float
    device_ms: float | None = None


@dataclass(frozen=True)
class TensorInfo:
    """Name, shape (ints, or str for symbolic dimensions) and numpy dtype name of a graph input or output."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


class Session(Protocol):
    """One stream with its own buffers. Not thread-safe: one thread at a time."""

    def run(self, feeds: Tensors) -> Outcome:
        """Run once; raises BackendError, with the runtime's message, when it refuses or crashes."""
        ...

    def close(self) -> None:
        """Release what it holds; `with` does it too."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Engine(Protocol):
    """Loaded weights. Sessions made from one engine share them where the runtime can."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    def session(self) -> Session:
        """Open a session; close it, or use it as a context manager."""
        ...

    def close(self) -> None:
        """Release what it holds; `with` does it too."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Backend(Protocol):
    """A runtime.

    `distrusts` names rewrites (`lowering.REWRITES`) for operators that it takes and is known to compute wrongly.
    """

    name: str
    distrusts: tuple[str, ...]

    def probe(self) -> Availability:
        """Say whether the runtime works here; never raises."""
        ...

    def build(self, artifact: Artifact, store: Store) -> Built:
        """Turn a graph into this runtime's artifact; raises BackendError naming the operator it refuses."""
        ...

    def load(self, artifact: Artifact, options: LoadOptions | None = None) -> Engine:
        """Load an artifact; raises BackendError, never crashes the process on a damaged file."""
        ...
