"""Arrays in device memory that torch, CuPy and others read in place, and theirs that are read in place here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from vitesse.backends.cuda.dlpack import (
    CUDA,
    DEVICE_KINDS,
    LEGACY_STREAM,
    export_capsule,
    import_capsule,
)
from vitesse.backends.cuda.driver import CudaError, Driver

_TO_DEVICE = "Session.run(feeds) takes numpy arrays; or move it to the device first"


@dataclass(frozen=True)
class DeviceArray:
    """C-contiguous values in device memory, shared without copying by both protocols for it.

    Args:
        address: of the first value, on the device.
        shape: sizes, outermost first.
        dtype: of the values.
        stream: on which they are written; work on another stream has to wait for it (`wait_on`).
        device: number of the GPU.
        owner: kept as long as this or a consumer of it lives. It keeps the memory from garbage collection, not from
            being overwritten by the next run or freed by `close()`.
        driver: lets a consumer's stream wait for `stream`. Without it only those are served that ask for no waiting
            or use the same stream.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    stream: int
    device: int
    owner: object
    driver: Driver | None = None

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        """Describe the memory by the CUDA Array Interface, version 3: the consumer waits for `stream`."""
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address if self.nbytes else 0, False),
            "strides": None,
            "stream": self.stream or LEGACY_STREAM,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """Return a capsule; the consumer's stream waits for the values.

        Args:
            stream: the consumer's; None means the legacy default stream, -1 that it waits by itself.
            max_version: ignored; the capsule is of the first form, which consumers take whatever they ask for.
            dl_device: only the device where the values are.
            copy: True is refused.

        Raises:
            BufferError: another device, a copy, or a dtype that DLPack lacks.
        """
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            raise BufferError(
                f"the values are on GPU {self.device}, and are not copied to {tuple(dl_device)}"
            )
        if copy:
            raise BufferError("the values are shared in place, not copied: copy what was imported")
        if stream == 0:
            raise BufferError("stream 0 is ambiguous: 1 is the legacy default stream, 2 that of each thread")
        if stream != -1:
            self._let_wait(LEGACY_STREAM if stream is None else stream)
        return export_capsule(self.address, self.shape, self.dtype, self.device, self)

    def wait_on(self, driver: Driver, stream: int) -> None:
        """Let what is enqueued on `stream` from here on wait for the values, without waiting on the host."""
        if stream == (self.stream or LEGACY_STREAM):
            return
        event = driver.create_event()
        try:
            driver.record(event, self.stream or LEGACY_STREAM)
            driver.wait(stream, event)
        finally:
            driver.destroy_event(event)  # CUDA keeps it until the stream has passed it

    def _let_wait(self, stream: int) -> None:
        if self.driver is not None:
            self.wait_on(self.driver, stream)
        elif stream != (self.stream or LEGACY_STREAM):
            raise BufferError(
                f"stream {stream} cannot wait for stream {self.stream}: synchronise and ask with stream=-1"
            )


def device_array(obj: object, driver: Driver, *, stream: int = LEGACY_STREAM) -> DeviceArray:
    """Take any array on the driver's device without copying: DLPack first, else the CUDA Array Interface.

    Args:
        obj: a tensor or array of torch, CuPy or another library; a DeviceArray is returned as it is.
        driver: of the device on which it has to be.
        stream: on which it will be read. A producer that speaks DLPack makes it wait for the values; of others, the
            result's `stream` says for whom to wait: `array.wait_on(driver, stream)` is right in all cases.

    Raises:
        CudaError: host memory, another device, strides, or a dtype that numpy lacks.
    """
    if isinstance(obj, DeviceArray):
        _check_device(CUDA, obj.device, driver)
        return obj
    if hasattr(obj, "__dlpack__") and hasattr(obj, "__dlpack_device__"):
        return _by_dlpack(obj, driver, stream)
    interface = getattr(obj, "__cuda_array_interface__", None)
    if isinstance(interface, Mapping):
        return _by_interface(obj, interface, driver)
    raise CudaError(
        f"a {type(obj).__module__}.{type(obj).__name__} is no array on a device",
        expected="an object with __dlpack__ or __cuda_array_interface__, such as a torch or CuPy array",
        fix=_TO_DEVICE,
    )


def _by_dlpack(obj: Any, driver: Driver, stream: int) -> DeviceArray:
    kind, number = obj.__dlpack_device__()
    _check_device(int(kind), int(number), driver)
    try:
        found = import_capsule(obj.__dlpack__(stream=stream))
    except (BufferError, RuntimeError) as error:
        fix = "detach(), contiguous(), and a dtype that numpy has: float32, float16, int64, ..."
        raise CudaError(
            f"a {type(obj).__name__} cannot be shared: {error}", cause="it says so itself", fix=fix
        ) from error
    _check_device(found.device_kind, found.device, driver)
    _check_strides(found.shape, found.strides)
    return DeviceArray(found.address, found.shape, found.dtype, stream, found.device, found.owner, driver)


def _by_interface(obj: object, interface: Mapping[str, Any], driver: Driver) -> DeviceArray:
    """Read the CUDA Array Interface, which does not say which device: it is taken to be the driver's."""
    shape, strides = tuple(interface["shape"]), interface.get("strides")
    try:
        dtype: np.dtype[np.generic] = np.dtype(interface["typestr"])
    except TypeError:
        dtype = np.dtype(np.void)
    if dtype.kind not in "iufcb" or not dtype.isnative:
        raise CudaError(
            f"an array on the device has the type {interface['typestr']!r}",
            expected="numbers of this machine's byte order: '<f4', '<f2', '<i8', ...",
        )
    if strides is not None:
        strides = tuple(stride // dtype.itemsize for stride in strides)
    _check_strides(shape, strides)
    address, _ = interface["data"]
    # None says that no waiting is needed; waiting for the default stream does no harm then.
    ready = interface.get("stream") or LEGACY_STREAM
    return DeviceArray(int(address or 0), shape, dtype, int(ready), driver.device.number, obj, driver)


def _check_device(kind: int, number: int, driver: Driver) -> None:
    if kind != CUDA:
        raise CudaError(
            f"the array is in {DEVICE_KINDS.get(kind, f'memory of kind {kind}')}",
            expected=f"memory of GPU {driver.device.number}",
            fix=_TO_DEVICE,
        )
    if number != driver.device.number:
        raise CudaError(
            f"the array is on GPU {number}",
            expected=f"GPU {driver.device.number}, where the session runs",
            fix="copy it there, or load the engine with LoadOptions(device=...)",
        )


def _check_strides(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> None:
    """Refuse what is not C-contiguous; strides count elements, and those of sizes 0 and 1 mean nothing."""
    if strides is None or 0 in shape:
        return
    wanted = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
    if any(size > 1 and came != want for size, came, want in zip(shape, strides, wanted, strict=True)):
        raise CudaError(
            f"the array of shape {shape} has the strides {strides}",
            expected=f"C-contiguous: {wanted}",
            cause="a transposed, permuted, sliced or channels_last array",
            fix="make it contiguous on the device: tensor.contiguous(), cupy.ascontiguousarray(array)",
        )
