"""Arrays on the device are shared in place both ways, in order, and refused with words where they cannot be."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from backends.cuda.fake_driver import LEGACY, FakeDriver
from vitesse.backends.cuda import dlpack
from vitesse.backends.cuda.arrays import DeviceArray, device_array
from vitesse.backends.cuda.driver import CudaError
from vitesse.backends.cuda.stream import Stream


class Owner:
    """Something whose end can be seen."""


class Foreign:
    """Another library's array: it speaks DLPack only, through a DeviceArray of its own."""

    def __init__(self, inner: DeviceArray) -> None:
        self._inner = inner
        self.asked: list[object] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._inner.__dlpack_device__()

    def __dlpack__(self, *, stream: int | None = None) -> object:
        self.asked.append(stream)
        return self._inner.__dlpack__(stream=stream)


class Interfaced:
    """An array that speaks the CUDA Array Interface only."""

    def __init__(self, **changes: object) -> None:
        interface = {"version": 3, "shape": (2, 3), "typestr": "<f4", "data": (4096, False), "stream": None}
        self.__cuda_array_interface__ = {**interface, **changes}


def array(driver: FakeDriver | None = None, dtype: str = "float32", **changes: Any) -> DeviceArray:
    named = {"address": 4096, "shape": (2, 3), "stream": 0x50, "device": 0, "owner": None, **changes}
    return DeviceArray(dtype=np.dtype(dtype), driver=driver, **named)


@pytest.fixture(autouse=True)
def _nothing_stays_exported() -> Iterator[None]:
    yield
    gc.collect()
    assert not dlpack._exported


def test_the_array_interface_says_where_what_and_on_which_stream() -> None:
    assert array().__cuda_array_interface__ == {
        "version": 3,
        "shape": (2, 3),
        "typestr": "<f4",
        "data": (4096, False),
        "strides": None,
        "stream": 0x50,
    }
    assert array(stream=0).__cuda_array_interface__["stream"] == LEGACY, "0 is not allowed there"
    assert array(shape=(0, 3)).__cuda_array_interface__["data"] == (0, False)
    assert (array(dtype="float16").nbytes, array().ndim) == (12, 2)


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "float64", "int8", "uint8", "int32", "int64", "bool", "complex64"]
)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (0, 2)])
def test_dlpack_there_and_back_is_the_same_memory(
    fake: FakeDriver, dtype: str, shape: tuple[int, ...]
) -> None:
    sent = array(fake, dtype, shape=shape, stream=LEGACY)
    came = device_array(Foreign(sent), fake)
    assert (came.address, came.shape, came.dtype, came.device) == (4096, shape, np.dtype(dtype), 0)


def test_the_owner_lives_as_long_as_a_consumer_and_no_longer(fake: FakeDriver) -> None:
    owner = Owner()
    gone = weakref.ref(owner)
    sent = array(fake, owner=owner, stream=LEGACY)
    came = device_array(Foreign(sent), fake)
    del owner, sent
    gc.collect()
    assert gone() is not None
    del came
    gc.collect()
    assert gone() is None


def test_a_capsule_that_nobody_takes_lets_go_too() -> None:
    owner = Owner()
    gone = weakref.ref(owner)
    capsule = array(owner=owner).__dlpack__(stream=-1)
    del owner
    gc.collect()
    assert gone() is not None
    del capsule
    gc.collect()
    assert gone() is None


def test_a_capsule_is_taken_once(fake: FakeDriver) -> None:
    class Twice(Foreign):
        capsule: object = None

        def __dlpack__(self, *, stream: int | None = None) -> object:
            self.capsule = self.capsule or super().__dlpack__(stream=stream)
            return self.capsule

    twice = Twice(array(fake, stream=LEGACY))
    device_array(twice, fake)
    with pytest.raises(CudaError, match="no fresh DLPack capsule: it was used before"):
        device_array(twice, fake)


@pytest.mark.parametrize(
    ("export", "ordered"),
    [
        (lambda sent, fake, consumer: sent.__dlpack__(stream=consumer), True),
        (lambda sent, fake, consumer: sent.wait_on(fake, consumer), True),
        (lambda sent, fake, consumer: device_array(Foreign(sent), fake, stream=consumer), True),
        (lambda sent, fake, consumer: sent.__dlpack__(stream=-1), False),
    ],
    ids=["exported", "awaited", "imported", "the consumer waits by itself"],
)
def test_the_consumers_stream_waits_for_the_producers(fake: FakeDriver, export: Any, ordered: bool) -> None:
    """The consumer's stream is synchronised first: what nothing orders is read too early."""
    with Stream(fake) as producer, Stream(fake) as consumer:
        done: list[str] = []
        fake.kernel(producer.handle, lambda: done.append("written"))
        export(array(fake, stream=producer.handle), fake, consumer.handle)
        fake.kernel(consumer.handle, lambda: done.append("read"))
        consumer.synchronize()
        assert done == (["written", "read"] if ordered else ["read"])


def test_without_a_stream_the_default_stream_waits(fake: FakeDriver) -> None:
    with Stream(fake) as producer:
        done: list[str] = []
        fake.kernel(producer.handle, lambda: done.append("written"))
        array(fake, stream=producer.handle).__dlpack__()
        fake.kernel(LEGACY, lambda: done.append("read"))
        fake.synchronize(LEGACY)
        assert done == ["written", "read"]


def test_without_a_driver_only_who_needs_no_waiting_is_served() -> None:
    for stream in (-1, 0x50):
        array().__dlpack__(stream=stream)
    with pytest.raises(BufferError, match="stream 7 cannot wait for stream 80: synchronise and ask"):
        array().__dlpack__(stream=7)


def test_what_dlpack_may_be_asked_for_and_is_not_given(fake: FakeDriver) -> None:
    made = array(fake, stream=LEGACY)
    assert made.__dlpack_device__() == (2, 0)
    made.__dlpack__(stream=1, max_version=(1, 1), dl_device=(2, 0), copy=False)
    with pytest.raises(BufferError, match=r"on GPU 0, and are not copied to \(1, 0\)"):
        made.__dlpack__(stream=1, dl_device=(1, 0))
    with pytest.raises(BufferError, match="shared in place, not copied"):
        made.__dlpack__(stream=1, copy=True)
    with pytest.raises(BufferError, match="stream 0 is ambiguous"):
        made.__dlpack__(stream=0)
    with pytest.raises(BufferError, match="DLPack has no type for datetime64"):
        array(fake, "datetime64[s]").__dlpack__(stream=-1)


def test_the_producer_is_asked_for_the_stream_that_will_read(fake: FakeDriver) -> None:
    with Stream(fake) as stream:
        foreign = Foreign(array(fake, stream=LEGACY))
        assert device_array(foreign, fake, stream=stream.handle).stream == stream.handle
        assert device_array(foreign, fake).stream == LEGACY
        assert foreign.asked == [stream.handle, LEGACY]


def test_the_array_interface_is_taken_too(fake: FakeDriver) -> None:
    obj = Interfaced(stream=0x70)
    came = device_array(obj, fake)
    assert (came.address, came.shape, came.dtype, came.stream) == (4096, (2, 3), np.float32, 0x70)
    assert came.owner is obj
    assert device_array(Interfaced(), fake).stream == LEGACY
    assert device_array(Interfaced(strides=(12, 4)), fake).shape == (2, 3)
    assert device_array(Interfaced(shape=(1, 3), strides=(400, 4)), fake).shape == (1, 3)
    assert device_array(Interfaced(shape=(0, 3), strides=(1, 1)), fake).shape == (0, 3)


def test_what_is_an_array_of_ours_already_stays_it(fake: FakeDriver) -> None:
    made = array(fake)
    assert device_array(made, fake) is made


@pytest.mark.parametrize(
    ("obj", "what"),
    [
        (np.zeros(3), "the array is in host memory"),
        ([1, 2], "a builtins.list is no array on a device"),
        (array(device=1), "the array is on GPU 1"),
        (Foreign(array(device=1)), "the array is on GPU 1"),
        (Interfaced(strides=(4, 8)), r"the array of shape \(2, 3\) has the strides \(1, 2\)"),
        (Interfaced(typestr=">f4"), "an array on the device has the type '>f4'"),
        (Interfaced(typestr="<V2"), "an array on the device has the type '<V2'"),
        (Interfaced(typestr="<nonsense"), "an array on the device has the type '<nonsense'"),
    ],
)
def test_what_cannot_be_read_in_place_is_refused_with_words(fake: FakeDriver, obj: object, what: str) -> None:
    with pytest.raises(CudaError, match=what) as refused:
        device_array(obj, fake)
    assert "expected: " in str(refused.value)


def test_tensors_of_the_host_are_refused_with_the_way_out(fake: FakeDriver) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(CudaError) as refused:
        device_array(torch.zeros(2, 3), fake)
    assert str(refused.value) == (
        "the array is in host memory\n"
        "  expected: memory of GPU 0\n"
        "  next step: Session.run(feeds) takes numpy arrays; or move it to the device first"
    )


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("code", 4, "bfloat16 of 32 bits and 1 lanes has no numpy dtype"),
        ("code", 12, "DLPack's type 12 of 32 bits"),
        ("lanes", 4, "4 lanes has no numpy dtype"),
        ("bits", 4, "of 4 bits"),
    ],
)
def test_types_that_numpy_lacks_are_refused_and_stay_their_owners(
    fake: FakeDriver, field: str, value: int, what: str
) -> None:
    class Odd(Foreign):
        def __dlpack__(self, *, stream: int | None = None) -> object:
            capsule = super().__dlpack__(stream=stream)
            setattr(tensor_of(capsule).dtype, field, value)
            return capsule

    with pytest.raises(CudaError, match=what) as refused:
        device_array(Odd(array(fake, stream=LEGACY)), fake)
    assert "a dtype that numpy has" in refused.value.fix


def test_strides_and_offset_of_a_capsule_are_read(fake: FakeDriver) -> None:
    class Strided(Foreign):
        strides = (ctypes.c_int64 * 2)(3, 1)

        def __dlpack__(self, *, stream: int | None = None) -> object:
            capsule = super().__dlpack__(stream=stream)
            tensor = tensor_of(capsule)
            tensor.strides, tensor.byte_offset = self.strides, 64
            return capsule

    strided = Strided(array(fake, stream=LEGACY))
    assert device_array(strided, fake).address == 4096 + 64
    strided.strides[0], strided.strides[1] = 1, 2
    with pytest.raises(CudaError) as refused:
        device_array(strided, fake)
    assert str(refused.value) == (
        "the array of shape (2, 3) has the strides (1, 2)\n"
        "  expected: C-contiguous: (3, 1)\n"
        "  likely cause: a transposed, permuted, sliced or channels_last array\n"
        "  next step: make it contiguous on the device: tensor.contiguous(), cupy.ascontiguousarray(array)"
    )


def test_a_producer_that_refuses_is_quoted(fake: FakeDriver) -> None:
    class Refusing(Foreign):
        def __dlpack__(self, *, stream: int | None = None) -> object:
            raise BufferError("requires grad")

    with pytest.raises(CudaError, match="a Refusing cannot be shared: requires grad") as refused:
        device_array(Refusing(array(fake)), fake)
    assert refused.value.fix.startswith("detach(), contiguous()")


def tensor_of(capsule: object) -> Any:
    address = dlpack._pointer(capsule, b"dltensor")
    return dlpack._ManagedTensor.from_address(address).tensor
