"""The CUDA runtime itself, through cuda-bindings: the one module that imports it.

cuda-bindings releases the GIL around every call into CUDA (seen in 13.5 for launching, copying, waiting, allocating
and ending a capture), so that a thread that waits for its stream lets the others go on.

CUDA keeps the current device per thread. Every call sets it first, because any thread may call and other libraries of
the process may have set another; the thread's current device is this driver's afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cuda.bindings import runtime

from vitesse.backends.cuda.driver import CudaError, Device

OUT_OF_MEMORY = "cudaErrorMemoryAllocation"

_NEWER_DRIVER = "install a newer NVIDIA driver (nvidia-smi shows the present one and the CUDA it supports)"

# Cause and next step by CUDA's name of the error.
_KNOWN: dict[str, tuple[str, str]] = {
    OUT_OF_MEMORY: (
        "models, streams and other processes share the device's memory",
        "a smaller batch, fewer streams, or end the other processes that nvidia-smi lists",
    ),
    "cudaErrorInsufficientDriver": (
        "no NVIDIA driver is loaded, or it is too old for this CUDA runtime",
        _NEWER_DRIVER,
    ),
    "cudaErrorCallRequiresNewerDriver": ("the driver lacks this call", _NEWER_DRIVER),
    "cudaErrorSystemDriverMismatch": (
        "the driver was updated while it was loaded",
        "restart the machine, or reload the kernel module; nvidia-smi says the same until then",
    ),
    "cudaErrorCompatNotSupportedOnDevice": (
        "forward-compatibility libraries (cuda-compat) on a GPU that cannot use them",
        "remove cuda-compat from LD_LIBRARY_PATH",
    ),
    "cudaErrorNoDevice": (
        "no GPU, or CUDA_VISIBLE_DEVICES hides it",
        "look at nvidia-smi and at CUDA_VISIBLE_DEVICES; a container needs --gpus all",
    ),
    "cudaErrorDevicesUnavailable": (
        "another process holds the GPU in exclusive mode",
        "end that process (nvidia-smi lists it), or nvidia-smi -c DEFAULT",
    ),
    "cudaErrorInitializationError": (
        "CUDA cannot start, as in a process forked after its parent had used CUDA",
        "start processes with multiprocessing's 'spawn', and look at nvidia-smi",
    ),
    "cudaErrorNotReady": ("the stream has not come so far", "synchronise the stream first"),
}

# After one of these every further call of the process fails with the same error.
_STICKY = (
    "cudaErrorIllegalAddress",
    "cudaErrorLaunchFailure",
    "cudaErrorLaunchTimeout",
    "cudaErrorMisalignedAddress",
    "cudaErrorIllegalInstruction",
    "cudaErrorInvalidAddressSpace",
    "cudaErrorInvalidPc",
    "cudaErrorHardwareStackError",
    "cudaErrorECCUncorrectable",
    "cudaErrorAssert",
)
_RESTART = (
    "a kernel of this process, maybe of an earlier call, broke the CUDA context",
    "restart the process; compute-sanitizer finds the kernel",
)


def cuda_driver(device: int = 0) -> RuntimeDriver:
    """Return the driver of one GPU; opening a second one for the same GPU is cheap and shares everything.

    Raises:
        CudaError: there is no such GPU, or the driver is absent or too old; says which and what to do.
    """
    return RuntimeDriver(device_of(device))


def unavailable() -> str:
    """Return why no GPU can be used, or "" when one can; never raises and makes no CUDA context."""
    try:
        device_of(0)
    except CudaError as error:
        return error.what if not error.fix else f"{error.what}; {error.fix}"
    except Exception as error:  # cuda-bindings raises RuntimeError where libcuda lacks a symbol
        return f"the CUDA runtime cannot be used: {error}"
    return ""


def device_of(number: int) -> Device:
    """Describe a GPU without making a CUDA context on it.

    Raises:
        CudaError: as `cuda_driver`.
    """
    (driver_version,) = _checked("asking for the driver's version", runtime.cudaDriverGetVersion)
    (runtime_version,) = _checked("asking for the runtime's version", runtime.cudaRuntimeGetVersion)
    versions = _version(driver_version), _version(runtime_version)
    tried = "looking for GPUs"
    if not driver_version:
        tried += " (no NVIDIA driver found)"
    elif versions[0][0] < versions[1][0]:
        tried += " (the driver supports CUDA {}.{}, cuda-bindings needs {}.0)".format(
            *versions[0], versions[1][0]
        )
    (count,) = _checked(tried, runtime.cudaGetDeviceCount)
    if not 0 <= number < count:
        raise CudaError(
            f"GPU {number} was asked for",
            code="cudaErrorInvalidDevice",
            expected=f"a number from 0 to {count - 1}",
            cause="CUDA_VISIBLE_DEVICES hides GPUs and numbers the rest anew",
            fix="nvidia-smi -L lists the GPUs",
        )
    (found,) = _checked(f"describing GPU {number}", runtime.cudaGetDeviceProperties, number)
    name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
    capability = (int(found.major), int(found.minor))
    return Device(number, name.rstrip("\0"), capability, int(found.totalGlobalMem), *versions)


class RuntimeDriver:
    """`Driver` on the CUDA runtime; holds nothing itself, so that there is nothing to close."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def _call(self, tried: str, function: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
        _checked(f"choosing GPU {self.device.number}", runtime.cudaSetDevice, self.device.number)
        return _checked(tried, function, *arguments)

    def memory(self) -> tuple[int, int]:
        """Return (free, total) bytes of the device."""
        free, total = self._call("asking for the free memory", runtime.cudaMemGetInfo)
        return int(free), int(total)

    def malloc(self, size: int) -> int:
        """Allocate on the device; an out-of-memory says what is free."""
        try:
            (address,) = self._call(f"allocating {size:,} bytes on the device", runtime.cudaMalloc, size)
        except CudaError as error:
            raise self._with_memory(error) from None
        return int(address)

    def _with_memory(self, error: CudaError) -> CudaError:
        if error.code != OUT_OF_MEMORY:
            return error
        free, total = self.memory()
        what = f"{error.what}: {free:,} of {total:,} bytes of {self.device.name} are free"
        return CudaError(what, code=error.code, cause=error.cause, fix=error.fix)

    def free(self, address: int) -> None:
        """Free what `malloc` returned."""
        self._call("freeing device memory", runtime.cudaFree, address)

    def malloc_host(self, size: int) -> int:
        """Allocate page-locked host memory."""
        tried = f"allocating {size:,} bytes of page-locked host memory"
        try:
            (address,) = self._call(tried, runtime.cudaMallocHost, size)
        except CudaError as error:
            if error.code != OUT_OF_MEMORY:
                raise
            cause = "the host's memory, or a container's limit of it, is used up"
            fix = "a smaller batch or fewer streams; more memory or shared memory for the container"
            raise CudaError(error.what, code=error.code, cause=cause, fix=fix) from None
        return int(address)

    def free_host(self, address: int) -> None:
        """Free what `malloc_host` returned."""
        self._call("freeing page-locked host memory", runtime.cudaFreeHost, address)

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        """Enqueue a copy; CUDA sees from the addresses which side each is on."""
        kind = runtime.cudaMemcpyKind.cudaMemcpyDefault
        self._call(f"copying {size:,} bytes", runtime.cudaMemcpyAsync, to, source, size, kind, stream)

    def create_stream(self) -> int:
        """Return a new stream that does not wait for the default stream."""
        flags = runtime.cudaStreamNonBlocking
        (stream,) = self._call("creating a stream", runtime.cudaStreamCreateWithFlags, flags)
        return int(stream)

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("destroying a stream", runtime.cudaStreamDestroy, stream)

    def synchronize(self, stream: int) -> None:
        """Wait for the stream; an error of any kernel on it comes out here."""
        self._call("waiting for a stream", runtime.cudaStreamSynchronize, stream)

    def create_event(self) -> int:
        """Return a new event that can be timed."""
        (event,) = self._call("creating an event", runtime.cudaEventCreate)
        return int(event)

    def destroy_event(self, event: int) -> None:
        """Destroy an event; where it is still awaited, CUDA lets go of it afterwards."""
        self._call("destroying an event", runtime.cudaEventDestroy, event)

    def record(self, event: int, stream: int) -> None:
        """Enqueue the event."""
        self._call("recording an event", runtime.cudaEventRecord, event, stream)

    def wait(self, stream: int, event: int) -> None:
        """Let the stream wait for the event's latest record."""
        self._call("waiting for an event on a stream", runtime.cudaStreamWaitEvent, stream, event, 0)

    def elapsed_ms(self, begin: int, end: int) -> float:
        """Return milliseconds between two recorded events that are done, with a resolution of about 0.5 µs."""
        (ms,) = self._call("timing by events", runtime.cudaEventElapsedTime, begin, end)
        return float(ms)

    def begin_capture(self, stream: int) -> None:
        """Begin to record this thread's work on the stream; other threads may allocate meanwhile."""
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("beginning to capture a stream", runtime.cudaStreamBeginCapture, stream, mode)

    def end_capture(self, stream: int) -> int:
        """End the capture, also a broken one, and return the executable graph."""
        (graph,) = self._call("ending the capture of a stream", runtime.cudaStreamEndCapture, stream)
        try:
            (executable,) = self._call("instantiating a CUDA graph", runtime.cudaGraphInstantiate, graph, 0)
        finally:
            # The executable graph does not need the one that it was made from.
            self._call("destroying a captured graph", runtime.cudaGraphDestroy, graph)
        return int(executable)

    def launch(self, graph: int, stream: int) -> None:
        """Enqueue a captured graph."""
        self._call("launching a CUDA graph", runtime.cudaGraphLaunch, graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """Destroy a captured graph."""
        self._call("destroying a CUDA graph", runtime.cudaGraphExecDestroy, graph)


def _checked(tried: str, function: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
    """Call a function of the runtime and return what follows its return code.

    Raises:
        CudaError: the return code was not cudaSuccess.
    """
    code, *values = function(*arguments)
    if code == runtime.cudaError_t.cudaSuccess:
        return tuple(values)
    # CUDA also remembers the error for the thread; nobody shall find ours after a later, successful call.
    runtime.cudaGetLastError()
    cause, fix = _RESTART if code.name in _STICKY else _KNOWN.get(code.name, ("", ""))
    raise CudaError(f"CUDA says {code.name} ({_text(code)}) on {tried}", code=code.name, cause=cause, fix=fix)


def _text(code: Any) -> str:
    _, text = runtime.cudaGetErrorString(code)
    return text.decode() if isinstance(text, bytes) else str(text)


def _version(number: int) -> tuple[int, int]:
    """Split CUDA's 1000 * major + 10 * minor."""
    return number // 1000, number % 1000 // 10
