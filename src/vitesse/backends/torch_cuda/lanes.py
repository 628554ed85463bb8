"""Where a session's work goes: a stream of a GPU with its events and graphs, or the CPU, for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vitesse.backends.torch_cuda.device import working_on
from vitesse.backends.torch_cuda.measure import capture, event, milliseconds, stream_on

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Captured:
    """A CUDA graph, and the outputs that every replay writes."""

    graph: torch.cuda.CUDAGraph
    outputs: Mapping[str, Tensor]


class Lane(Protocol):
    """What a session needs of the place where it runs."""

    captures: bool

    def working(self) -> ExitStack:
        """Make the lane the current one of this thread, with gradients off, until the stack is closed."""
        ...

    def buffer(self, shape: Shape, dtype: torch.dtype, *, host: bool) -> Tensor:
        """Return memory of the device, or of the host such that copies to the device need not wait."""
        ...

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Take the device's time of what is enqueued inside."""
        ...

    def capture(self, work: Callable[[], Mapping[str, Tensor]]) -> Captured:
        """Capture what `work` enqueues."""
        ...

    def behind_caller(self) -> None:
        """Have the lane wait for what the caller's current stream does."""
        ...

    def before_caller(self) -> None:
        """Have the caller's current stream wait for the lane."""
        ...

    def synchronize(self) -> None:
        """Wait until everything enqueued is done."""
        ...

    def ms(self) -> float | None:
        """Return what was timed last, synchronised; None where there are no events."""
        ...


class GpuLane:
    """One stream of one GPU. All graphs share a memory pool, because only one of them runs at a time."""

    captures = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self.stream = stream_on(device)
            self._pool = torch.cuda.graph_pool_handle()
            self._begin, self._end = event(), event()
        self._timed = False

    def working(self) -> ExitStack:
        """See Lane."""
        with ExitStack() as entered:
            entered.enter_context(working_on(self._device))
            entered.enter_context(torch.cuda.stream(self.stream))
            return entered.pop_all()

    def buffer(self, shape: Shape, dtype: torch.dtype, *, host: bool) -> Tensor:
        """See Lane."""
        if host:
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        return torch.empty(shape, dtype=dtype, device=self._device)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """See Lane."""
        self._begin.record(self.stream)
        yield
        self._end.record(self.stream)
        self._timed = True

    def capture(self, work: Callable[[], Mapping[str, Tensor]]) -> Captured:
        """See Lane."""
        self.stream.synchronize()
        return Captured(*capture(work, self.stream, self._pool))

    def behind_caller(self) -> None:
        """See Lane."""
        self.stream.wait_stream(torch.cuda.current_stream(self._device))

    def before_caller(self) -> None:
        """See Lane."""
        torch.cuda.current_stream(self._device).wait_stream(self.stream)

    def synchronize(self) -> None:
        """See Lane."""
        self.stream.synchronize()

    def ms(self) -> float | None:
        """See Lane."""
        return milliseconds(self._begin, self._end) if self._timed else None


class CpuLane:
    """The thread that calls."""

    captures = False

    def working(self) -> ExitStack:
        """See Lane."""
        entered = ExitStack()
        entered.enter_context(working_on(torch.device("cpu")))
        return entered

    def buffer(self, shape: Shape, dtype: torch.dtype, *, host: bool) -> Tensor:
        """See Lane."""
        return torch.empty(shape, dtype=dtype)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """See Lane."""
        yield

    def capture(self, work: Callable[[], Mapping[str, Tensor]]) -> Captured:
        """Never asked for: `captures` is False."""
        raise NotImplementedError(work)

    def behind_caller(self) -> None:
        """See Lane."""

    def before_caller(self) -> None:
        """See Lane."""

    def synchronize(self) -> None:
        """See Lane."""

    def ms(self) -> float | None:
        """See Lane."""
        return None


def lane_on(device: torch.device) -> Lane:
    """Return a new lane of a device."""
    return GpuLane(device) if device.type == "cuda" else CpuLane()
