"""What only a GPU can show. Every test here is skipped, with the reason, where there is none."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np
import pytest

from vitesse.backends.cuda.arrays import DeviceArray, device_array
from vitesse.backends.cuda.buffers import Buffers
from vitesse.backends.cuda.driver import CudaError, Driver
from vitesse.backends.cuda.graphs import GraphCache
from vitesse.backends.cuda.memory import Pool
from vitesse.backends.cuda.stream import Stream

MIB = 1 << 20


@pytest.fixture
def torch(cuda: Driver) -> Any:
    found = pytest.importorskip("torch")
    if not found.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    return found


@pytest.fixture
def cupy(cuda: Driver) -> Any:
    return pytest.importorskip("cupy")


def on_device(driver: Driver, buffers: Buffers, stream: Stream, values: np.ndarray[Any, Any]) -> DeviceArray:
    address = buffers.upload("x", values)
    number = driver.device.number
    return DeviceArray(address, values.shape, values.dtype, stream.handle, number, buffers, driver)


def test_the_device_describes_itself(cuda: Driver) -> None:
    device = cuda.device
    free, total = cuda.memory()
    assert 0 < free <= total <= device.memory_bytes * 1.01
    assert device.name.startswith(("NVIDIA", "Tesla", "GeForce", "Quadro")) and device.driver_version >= (
        12,
        0,
    )


def test_more_than_the_device_has_is_refused_and_the_driver_goes_on(cuda: Driver) -> None:
    _, total = cuda.memory()
    with Pool(cuda) as pool:
        with pytest.raises(CudaError) as refused:
            pool.take(2 * total, owner="images")
        assert refused.value.code == "cudaErrorMemoryAllocation"
        assert f"of {total:,} bytes of {cuda.device.name} are free" in refused.value.what
        assert pool.take(MIB).size == MIB


def test_device_time_covers_the_work(cuda: Driver) -> None:
    with Stream(cuda) as stream, Pool(cuda) as pool:
        timer, size = stream.timer(), 256 * MIB
        source, to = pool.take(size), pool.take(size)
        times = []
        for copies in (1, 64):
            timer.begin()
            for _ in range(copies):
                cuda.copy(to.address, source.address, size, stream.handle)
            timer.end()
            stream.synchronize()
            times.append(timer.ms())
        assert 0 < times[0] < times[1]


def test_other_threads_run_while_one_waits(cuda: Driver) -> None:
    """Waiting holds no GIL: this thread gets its turn again and again, and not only once the copies are done."""
    with Stream(cuda) as stream, Pool(cuda) as pool:
        size = 512 * MIB
        source, to = pool.take(size), pool.take(size)
        for _ in range(1000):
            cuda.copy(to.address, source.address, size, stream.handle)
        done = threading.Event()

        def wait() -> None:
            stream.synchronize()
            done.set()

        thread = threading.Thread(target=wait)
        thread.start()
        turns = 0
        while not done.wait(0.001):
            turns += 1
        thread.join()
        assert turns > 30


def test_a_thread_captures_while_another_allocates(cuda: Driver) -> None:
    problems: list[BaseException] = []
    stop = threading.Event()

    def allocate() -> None:
        try:
            while not stop.is_set():
                cuda.free(cuda.malloc(MIB))
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=allocate)
    thread.start()
    try:
        with Stream(cuda) as stream, Pool(cuda) as pool, GraphCache(cuda, stream, limit=2) as graphs:
            source, to = pool.take(4096), pool.take(4096)
            for key in range(100):
                for _ in range(3):
                    graphs.run(key, lambda: cuda.copy(to.address, source.address, 4096, stream.handle))
            assert graphs.captures == 100 and not graphs.refused and graphs.evictions == 98
    finally:
        stop.set()
        thread.join()
    assert not problems


def test_torch_reads_ours_in_place(cuda: Driver, torch: Any) -> None:
    sent = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    with (
        Stream(cuda) as stream,
        Pool(cuda) as device,
        Pool(cuda, host=True) as host,
        Buffers(cuda, stream, device=device, host=host) as buffers,
    ):
        ours = on_device(cuda, buffers, stream, sent)
        theirs = torch.from_dlpack(ours)
        assert theirs.data_ptr() == ours.address and tuple(theirs.shape) == sent.shape
        assert np.array_equal(theirs.cpu().numpy(), sent), "torch's stream did not wait"
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            ours = on_device(cuda, buffers, stream, sent + 1)
            doubled = torch.from_dlpack(ours) * 2
        side.synchronize()
        assert np.array_equal(doubled.cpu().numpy(), (sent + 1) * 2)
        theirs.add_(100)
        torch.cuda.synchronize()
        came = buffers.download("x", sent.shape, sent.dtype)
        stream.synchronize()
        assert np.array_equal(came, sent + 101), "they write where we read"
        del theirs


def test_ours_reads_torchs_in_place(cuda: Driver, torch: Any) -> None:
    theirs = torch.arange(12, dtype=torch.float32, device="cuda").reshape(3, 4)
    with Stream(cuda) as stream, Pool(cuda, host=True) as host:
        ours = device_array(theirs, cuda, stream=stream.handle)
        assert (ours.address, ours.shape, ours.dtype) == (theirs.data_ptr(), (3, 4), np.float32)
        address = theirs.data_ptr()
        del theirs
        again = torch.zeros(12, device="cuda")
        assert again.data_ptr() != address, "the tensor is kept as long as ours lives"
        block = host.take(48)
        cuda.copy(block.address, ours.address, 48, stream.handle)
        stream.synchronize()
        assert np.array_equal(np.frombuffer(ctypes.string_at(block.address, 48), np.float32), np.arange(12))


def test_what_torch_cannot_share_is_refused_with_words(cuda: Driver, torch: Any) -> None:
    grid = torch.zeros(3, 4, device="cuda")
    for refused, what in (
        (grid.T, "has the strides"),
        (grid.cpu(), "the array is in host memory"),
        (grid.bfloat16(), "bfloat16 of 16 bits"),
        (grid.clone().requires_grad_(), "cannot be shared"),
    ):
        with pytest.raises(CudaError, match=what):
            device_array(refused, cuda)


def test_cupy_shares_in_both_directions(cuda: Driver, cupy: Any) -> None:
    sent = np.arange(10, dtype=np.int32)
    with (
        Stream(cuda) as stream,
        Pool(cuda) as device,
        Pool(cuda, host=True) as host,
        Buffers(cuda, stream, device=device, host=host) as buffers,
    ):
        ours = on_device(cuda, buffers, stream, sent)
        for theirs in (cupy.from_dlpack(ours), cupy.asarray(ours)):
            assert theirs.data.ptr == ours.address and np.array_equal(theirs.get(), sent)
            back = device_array(theirs, cuda, stream=stream.handle)
            assert back.address == ours.address and back.shape == (10,) and back.dtype == np.int32
            del theirs, back
    with pytest.raises(CudaError, match="has the strides"):
        device_array(cupy.zeros((4, 4))[:, ::2], cuda)
