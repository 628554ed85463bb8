"""An error reaches as far as its words say, and no further."""

from __future__ import annotations

import pytest

from vitesse.backends.cuda.driver import CudaError
from vitesse.errors import BackendError, DataError
from vitesse.serve.faults import Fault, fault_of, refusal_of

CASES = [
    (DataError("the feeds are named ['y']"), Fault.FEEDS),
    (MemoryError(), Fault.MEMORY),
    (CudaError("cannot allocate 4 GB", code="cudaErrorMemoryAllocation"), Fault.MEMORY),
    (BackendError("CUDA error cudaErrorMemoryAllocation: out of memory"), Fault.MEMORY),
    (
        BackendError("BFCArena::AllocateRawInternal Available memory of 10 is smaller than requested"),
        Fault.MEMORY,
    ),
    (BackendError("CUBLAS_STATUS_ALLOC_FAILED"), Fault.MEMORY),
    (CudaError("cannot synchronise", code="cudaErrorIllegalAddress"), Fault.DEVICE),
    (BackendError("CUDA failure 700: an illegal memory access was encountered"), Fault.DEVICE),
    (BackendError("CUDA error: device-side assert triggered"), Fault.DEVICE),
    (BackendError("cudaErrorLaunchFailure: unspecified launch failure"), Fault.DEVICE),
    (BackendError("this session is closed"), Fault.SESSION),
    (BackendError("node Reshape_7: the input shape cannot be reshaped"), Fault.RUN),
    # Not every word of CUDA is the end of its context.
    (CudaError("bad argument", code="cudaErrorInvalidValue"), Fault.RUN),
    (ValueError("anything else"), Fault.RUN),
]


@pytest.mark.parametrize(("error", "fault"), CASES, ids=[str(error)[:40] for error, _ in CASES])
def test_an_error_is_told_by_type_and_text(error: Exception, fault: Fault) -> None:
    assert fault_of(error) is fault


@pytest.mark.parametrize(
    ("fault", "status", "code", "next_step"),
    [
        (Fault.FEEDS, 400, "bad_request", "what the runtime said"),
        (Fault.RUN, 500, "backend", "failed on this request"),
        (Fault.MEMORY, 503, "backend", "send smaller images"),
        (Fault.SESSION, 503, "backend", "another one is opened, try again"),
        (Fault.DEVICE, 503, "backend", "the process has to be started again"),
    ],
)
def test_a_refusal_keeps_the_runtimes_words_and_says_what_to_do(
    fault: Fault, status: int, code: str, next_step: str
) -> None:
    found = refusal_of(BackendError("what the runtime said"), fault)
    assert (found.status, found.code) == (status, code)
    assert "what the runtime said" in found.text and next_step in found.text
    assert ("Retry-After" in found.headers) == (status == 503)


def test_an_error_without_words_is_named_by_its_type() -> None:
    assert "MemoryError" in refusal_of(MemoryError(), Fault.MEMORY).text
