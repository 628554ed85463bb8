"""The real driver: what it asks of CUDA, and what it says when CUDA refuses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

bindings = pytest.importorskip("vitesse.backends.cuda.bindings", exc_type=ImportError)
from vitesse.backends.cuda.driver import CudaError, Device, Driver  # noqa: E402

H100 = Device(0, "H100", (9, 0), 80 << 30, (13, 0), (13, 5))


class Recorded:
    """The runtime's functions by name: each call is noted, and answered from `answers`, else with success and 7."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.calls: list[tuple[Any, ...]] = []
        self.threads: list[int] = []
        self.answers: dict[str, tuple[Any, ...]] = {}

    def __getattr__(self, name: str) -> Any:
        if (
            not name.startswith("cuda")
            or name in ("cudaError_t", "cudaGetErrorString")
            or name[4:5].islower()
        ):
            return getattr(self._real, name)
        if not callable(getattr(self._real, name)) or isinstance(getattr(self._real, name), type):
            return getattr(self._real, name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            self.threads.append(threading.get_ident())
            return self.answers.get(name, (self._real.cudaError_t.cudaSuccess, 7))

        return call

    def fails(self, name: str, code: str) -> None:
        self.answers[name] = (getattr(self._real.cudaError_t, code), None)

    def names(self) -> list[str]:
        return [name for name, *_ in self.calls]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    made = Recorded(bindings.runtime)
    ok = made.cudaError_t.cudaSuccess
    made.answers["cudaMemGetInfo"] = (ok, 3 << 20, 80 << 30)
    made.answers["cudaDriverGetVersion"] = (ok, 13000)
    made.answers["cudaRuntimeGetVersion"] = (ok, 13050)
    made.answers["cudaGetDeviceCount"] = (ok, 2)
    found = SimpleNamespace(name=b"NVIDIA H100 80GB HBM3", major=9, minor=0, totalGlobalMem=85_000_000_000)
    made.answers["cudaGetDeviceProperties"] = (ok, found)
    monkeypatch.setattr(bindings, "runtime", made)
    yield made


def test_a_gpu_is_described_without_touching_it(recorded: Recorded) -> None:
    device = bindings.cuda_driver(1).device
    assert device == Device(1, "NVIDIA H100 80GB HBM3", (9, 0), 85_000_000_000, (13, 0), (13, 5))
    assert "cudaSetDevice" not in recorded.names(), "that would make a context"


def test_every_call_chooses_the_device_first(recorded: Recorded) -> None:
    driver = bindings.RuntimeDriver(Device(3, "H100", (9, 0), 1, (13, 0), (13, 0)))
    for call in (
        driver.memory,
        lambda: driver.malloc(1),
        lambda: driver.malloc_host(1),
        lambda: driver.free(1),
        lambda: driver.free_host(1),
        lambda: driver.copy(1, 2, 3, 4),
        driver.create_stream,
        lambda: driver.destroy_stream(1),
        lambda: driver.synchronize(1),
        driver.create_event,
        lambda: driver.destroy_event(1),
        lambda: driver.record(1, 2),
        lambda: driver.wait(1, 2),
        lambda: driver.elapsed_ms(1, 2),
        lambda: driver.begin_capture(1),
        lambda: driver.launch(1, 2),
        lambda: driver.destroy_graph(1),
    ):
        recorded.calls.clear()
        call()
        assert recorded.calls[0] == ("cudaSetDevice", 3) and len(recorded.calls) == 2


def test_each_thread_chooses_the_device_for_itself(recorded: Recorded) -> None:
    driver = bindings.RuntimeDriver(H100)
    driver.malloc(1)
    thread = threading.Thread(target=driver.malloc, args=(1,))
    thread.start()
    thread.join()
    assert recorded.names() == ["cudaSetDevice", "cudaMalloc"] * 2
    assert recorded.threads[0] == recorded.threads[1] != recorded.threads[2] == recorded.threads[3]


def test_streams_do_not_wait_for_the_default_stream_and_captures_concern_one_thread(
    recorded: Recorded,
) -> None:
    driver = bindings.RuntimeDriver(H100)
    driver.create_stream()
    driver.begin_capture(5)
    driver.copy(1, 2, 3, 4)
    real = bindings.runtime
    assert recorded.calls[1] == ("cudaStreamCreateWithFlags", real.cudaStreamNonBlocking)
    mode = real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    assert recorded.calls[3] == ("cudaStreamBeginCapture", 5, mode)
    assert recorded.calls[5] == ("cudaMemcpyAsync", 1, 2, 3, real.cudaMemcpyKind.cudaMemcpyDefault, 4)


@pytest.mark.parametrize("fails", [False, True])
def test_the_graph_that_was_captured_is_destroyed_once_it_was_instantiated(
    recorded: Recorded, fails: bool
) -> None:
    driver = bindings.RuntimeDriver(H100)
    recorded.answers["cudaStreamEndCapture"] = (recorded.cudaError_t.cudaSuccess, 11)
    recorded.answers["cudaGraphInstantiate"] = (recorded.cudaError_t.cudaSuccess, 12)
    if fails:
        recorded.fails("cudaGraphInstantiate", "cudaErrorMemoryAllocation")
        with pytest.raises(CudaError, match="on instantiating a CUDA graph"):
            driver.end_capture(1)
    else:
        assert driver.end_capture(1) == 12
    assert recorded.calls[-1] == ("cudaGraphDestroy", 11)


def test_out_of_memory_says_how_much_is_free_and_is_forgotten_by_the_thread(recorded: Recorded) -> None:
    recorded.fails("cudaMalloc", "cudaErrorMemoryAllocation")
    with pytest.raises(CudaError) as refused:
        bindings.RuntimeDriver(H100).malloc(4 << 20)
    assert str(refused.value) == (
        "CUDA says cudaErrorMemoryAllocation (out of memory) on allocating 4,194,304 bytes on the device: "
        "3,145,728 of 85,899,345,920 bytes of H100 are free\n"
        "  likely cause: models, streams and other processes share the device's memory\n"
        "  next step: a smaller batch, fewer streams, or end the other processes that nvidia-smi lists"
    )
    assert refused.value.code == "cudaErrorMemoryAllocation"
    assert recorded.names()[:3] == ["cudaSetDevice", "cudaMalloc", "cudaGetLastError"]


def test_out_of_host_memory_is_about_the_host(recorded: Recorded) -> None:
    recorded.fails("cudaMallocHost", "cudaErrorMemoryAllocation")
    with pytest.raises(CudaError) as refused:
        bindings.RuntimeDriver(H100).malloc_host(100)
    assert "page-locked host memory" in refused.value.what
    assert refused.value.cause == "the host's memory, or a container's limit of it, is used up"


def test_an_error_that_stays_says_to_restart(recorded: Recorded) -> None:
    recorded.fails("cudaStreamSynchronize", "cudaErrorIllegalAddress")
    with pytest.raises(CudaError) as refused:
        bindings.RuntimeDriver(H100).synchronize(1)
    assert refused.value.code == "cudaErrorIllegalAddress"
    assert refused.value.what.startswith("CUDA says cudaErrorIllegalAddress (")
    assert refused.value.fix == "restart the process; compute-sanitizer finds the kernel"


def test_an_error_without_advice_still_has_its_name_and_what_was_tried(recorded: Recorded) -> None:
    recorded.fails("cudaEventRecord", "cudaErrorInvalidResourceHandle")
    with pytest.raises(CudaError) as refused:
        bindings.RuntimeDriver(H100).record(1, 2)
    assert str(refused.value) == (
        "CUDA says cudaErrorInvalidResourceHandle (invalid resource handle) on recording an event"
    )


def test_a_gpu_that_is_not_there_is_refused_by_number(recorded: Recorded) -> None:
    for number in (2, -1):
        with pytest.raises(CudaError) as refused:
            bindings.cuda_driver(number)
        assert str(refused.value) == (
            f"GPU {number} was asked for\n"
            "  expected: a number from 0 to 1\n"
            "  likely cause: CUDA_VISIBLE_DEVICES hides GPUs and numbers the rest anew\n"
            "  next step: nvidia-smi -L lists the GPUs"
        )


def test_a_driver_that_is_too_old_is_named_with_what_is_needed(recorded: Recorded) -> None:
    recorded.answers["cudaDriverGetVersion"] = (recorded.cudaError_t.cudaSuccess, 12040)
    recorded.fails("cudaGetDeviceCount", "cudaErrorInsufficientDriver")
    with pytest.raises(CudaError) as refused:
        bindings.cuda_driver()
    assert "(the driver supports CUDA 12.4, cuda-bindings needs 13.0)" in refused.value.what
    assert refused.value.fix == (
        "install a newer NVIDIA driver (nvidia-smi shows the present one and the CUDA it supports)"
    )
    assert bindings.unavailable() == f"{refused.value.what}; {refused.value.fix}"


def test_no_driver_and_no_gpu_are_two_things(recorded: Recorded) -> None:
    recorded.answers["cudaDriverGetVersion"] = (recorded.cudaError_t.cudaSuccess, 0)
    recorded.fails("cudaGetDeviceCount", "cudaErrorInsufficientDriver")
    assert "looking for GPUs (no NVIDIA driver found)" in bindings.unavailable()
    recorded.answers["cudaDriverGetVersion"] = (recorded.cudaError_t.cudaSuccess, 13000)
    recorded.fails("cudaGetDeviceCount", "cudaErrorNoDevice")
    reason = bindings.unavailable()
    assert "no NVIDIA driver found" not in reason and "CUDA_VISIBLE_DEVICES" in reason


def test_asking_for_the_reason_never_raises(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bindings.unavailable() == ""

    def broken() -> None:
        raise RuntimeError('Function "cudaGetDeviceCount" not found')

    monkeypatch.setattr(recorded, "cudaGetDeviceCount", broken, raising=False)
    assert bindings.unavailable() == (
        'the CUDA runtime cannot be used: Function "cudaGetDeviceCount" not found'
    )


def test_here_there_is_a_gpu_or_a_reason() -> None:
    reason = bindings.unavailable()
    if reason:
        with pytest.raises(CudaError) as refused:
            bindings.cuda_driver()
        assert refused.value.what in reason and refused.value.code.startswith("cudaError")
    else:
        driver: Driver = bindings.cuda_driver()
        free, total = driver.memory()
        assert 0 < free <= total and driver.device.name and driver.device.compute_capability >= (7, 5)
