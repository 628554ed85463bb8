"""What an error of a run means for the request, the batch, the session and the device."""

from __future__ import annotations

from enum import Enum

from vitesse.errors import DataError
from vitesse.serve.refusals import Refusal


class Fault(Enum):
    """How far an error reaches."""

    FEEDS = "the request does not fit the model"
    RUN = "this run failed"
    MEMORY = "memory did not suffice"
    SESSION = "the session is lost"
    DEVICE = "the GPU's context is lost"


# Parts of what runtimes say, in lower case. After an error of the first kind CUDA answers every call of the process
# with the same error ("sticky" in CUDA's manual): only a new process helps.
_DEVICE = (
    "cudaerrorillegaladdress",
    "cudaerrorillegalinstruction",
    "cudaerrorlaunchfailure",
    "cudaerrorlaunchtimeout",
    "cudaerrormisalignedaddress",
    "cudaerrorinvalidaddressspace",
    "cudaerrorinvalidpc",
    "cudaerrorhardwarestackerror",
    "cudaerrorassert",
    "cudaerroreccuncorrectable",
    "cudaerrorcontextisdestroyed",
    "cudaerrordevicesunavailable",
    "cuda_error_illegal_address",
    "cuda_error_launch_failed",
    "cuda_error_context_is_destroyed",
    "illegal memory access",
    "unspecified launch failure",
    "device-side assert",
    "misaligned address",
    "uncorrectable ecc error",
    "cuda failure 700",
    "cuda error 700",
)
_MEMORY = (
    "out of memory",
    "out_of_memory",
    "outofmemory",
    "cudaerrormemoryallocation",
    "failed to allocate memory",
    "bad_alloc",
    "alloc_failed",
    "available memory of",
)
_SESSION = ("session is closed", "engine is closed", "stream is closed", "session is lost")


def fault_of(error: BaseException) -> Fault:
    """Tell by type and text how far an error reaches; what is not known is one failed run."""
    if isinstance(error, DataError):
        return Fault.FEEDS
    if isinstance(error, MemoryError):
        return Fault.MEMORY
    said = f"{getattr(error, 'code', '')} {error}".lower()
    if any(part in said for part in _DEVICE):
        return Fault.DEVICE
    if any(part in said for part in _MEMORY):
        return Fault.MEMORY
    return Fault.SESSION if any(part in said for part in _SESSION) else Fault.RUN


def refusal_of(error: BaseException, fault: Fault) -> Refusal:
    """Return what a request is told whose run ended in an error; the runtime's own words are kept."""
    said = str(error) or type(error).__name__
    if fault is Fault.FEEDS:
        return Refusal(400, "bad_request", said)
    if fault is Fault.MEMORY:
        return Refusal(
            503,
            "backend",
            f"memory does not suffice for a single item: {said}; send smaller images, or serve with fewer workers",
            {"Retry-After": "1"},
        )
    if fault is Fault.RUN:
        return Refusal(500, "backend", f"the runtime failed on this request: {said}")
    return Refusal(
        503,
        "backend",
        f"{fault.value}: {said}; "
        + (
            "the process has to be started again"
            if fault is Fault.DEVICE
            else "another one is opened, try again"
        ),
        {"Retry-After": "1"},
    )
