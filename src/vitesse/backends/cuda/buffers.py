"""The tensors of one session: page-locked host memory and device memory that stay where they are between runs."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np
from numpy.typing import DTypeLike

from vitesse.backends.closing import Closing
from vitesse.backends.cuda.captures import TURNS
from vitesse.backends.cuda.driver import CudaError, Driver
from vitesse.backends.cuda.memory import Block, Pool
from vitesse.backends.cuda.stream import Stream
from vitesse.backends.protocol import Array


class _PageLocked:
    """The base of every numpy view on a page-locked block: as long as one lives, this does."""

    def __init__(self, block: Block) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (block.address, False),
            "shape": (block.size,),
            "typestr": "|u1",
        }


@dataclass
class _Buffer:
    """One tensor: where it lies on either side, and when its page-locked side was last part of a copy."""

    device: Block
    host: Block
    bytes: Array
    copied_at: int = -1


class Buffers(Closing):
    """Named tensors of one session, each on both sides, as large as the largest that came or was reserved.

    A tensor stays at its address as long as what comes fits, which captured CUDA graphs need; `addresses()` changes
    when anything moved. Moving waits for the stream, and is counted in `growths`. One thread at a time.

    Args:
        driver: enqueues the copies.
        stream: where they are enqueued; it must outlive the buffers.
        device: lends device memory.
        host: lends page-locked memory (`Pool(driver, host=True)`).
    """

    def __init__(self, driver: Driver, stream: Stream, *, device: Pool, host: Pool) -> None:
        self._driver, self._stream = driver, stream
        self._device, self._host = device, host
        self._buffers: dict[str, _Buffer] = {}
        self.growths = 0

    def reserve(self, name: str, size: int) -> None:
        """Make room for `size` bytes of a tensor, on both sides; its contents are lost where it moves.

        Raises:
            CudaError: a pool cannot lend it. The tensor has no room then, and may be reserved smaller.
        """
        present = self._buffers.get(name)
        if present is not None:
            if size <= present.device.size:
                return
            self._stream.synchronize()
            self.growths += 1
            self._let_go(name)
        device = self._device.take(size, owner=name)
        try:
            host = self._host.take(size, owner=name)
        except BaseException:
            self._device.give(device)
            raise
        self._buffers[name] = _Buffer(device, host, np.asarray(_PageLocked(host)))

    def upload(self, name: str, array: Array) -> int:
        """Enqueue the copy of an array to the device and return its device address.

        The array may be changed once this returns: its values lie in page-locked memory then, C-contiguous. Not for the
        inside of a graph capture, which would record the copy and not what comes before it.
        """
        self.reserve(name, array.nbytes)
        buffer = self._buffers[name]
        if buffer.copied_at == self._stream.synchronisations:
            self._stream.synchronize()  # the copy before this one may still read the page-locked memory
        if array.nbytes:
            np.copyto(_view(buffer, array.shape, array.dtype), array)
            self._copy(buffer, buffer.device.address, buffer.host.address, array.nbytes)
        return buffer.device.address

    def download(self, name: str, shape: Sequence[int], dtype: DTypeLike) -> Array:
        """Enqueue the copy of a tensor to the host and return a view on its page-locked memory.

        The view holds the values once the stream was synchronised, and until the next download or upload of that
        name; the memory itself outlives these buffers where someone still holds the view.

        Raises:
            CudaError: nothing of that name, or less than this shape, was reserved.
        """
        dtype = np.dtype(dtype)
        size, room = prod(shape) * dtype.itemsize, self._known(name).device.size
        if size > room:
            raise CudaError(
                f"{name!r} of shape {tuple(shape)} {dtype} takes {size:,} bytes",
                expected=f"at most the {room:,} bytes reserved",
                fix="reserve the largest shape before the work that writes it is enqueued",
            )
        buffer = self._buffers[name]
        if size:
            self._copy(buffer, buffer.host.address, buffer.device.address, size)
        return _view(buffer, shape, dtype)

    def device(self, name: str) -> int:
        """Return the device address of a tensor; raises CudaError for one that was not reserved or uploaded."""
        return self._known(name).device.address

    def addresses(self) -> tuple[int, ...]:
        """Return every address on either side, in the order of reserving: equal as long as nothing has moved."""
        return tuple(
            block.address for buffer in self._buffers.values() for block in (buffer.device, buffer.host)
        )

    def close(self) -> None:
        """Wait for the stream, then give the memory back to the pools, except what views of outputs still hold."""
        if not self._buffers:
            return
        with ExitStack() as leaving:
            for name in list(self._buffers):
                leaving.callback(self._let_go, name)
            leaving.callback(self._stream.synchronize)

    def _known(self, name: str) -> _Buffer:
        if name not in self._buffers:
            raise CudaError(
                f"no buffer is named {name!r}",
                expected=f"one of: {', '.join(self._buffers) or 'none is reserved'}",
                cause="it was not reserved, or these buffers are closed",
            )
        return self._buffers[name]

    def _copy(self, buffer: _Buffer, to: int, source: int, size: int) -> None:
        self._driver.copy(to, source, size, self._stream.handle)
        buffer.copied_at = self._stream.synchronisations

    def _let_go(self, name: str) -> None:
        """Give both sides back; page-locked memory that a view still shows is freed with the last view."""
        buffer = self._buffers.pop(name)
        base, block = weakref.ref(buffer.bytes.base), buffer.host
        self._device.give(buffer.device)
        del buffer
        holder = base()
        if holder is None:
            self._host.give(block)
            return
        self._host.release(block)
        # The last view may go on any thread while another captures. At the end of the process the memory goes anyway,
        # and CUDA may be gone before.
        free = partial(self._driver.free_host, block.address)
        weakref.finalize(holder, TURNS.soon, free).atexit = False


def _view(buffer: _Buffer, shape: Sequence[int], dtype: np.dtype[np.generic]) -> Array:
    return buffer.bytes[: prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
