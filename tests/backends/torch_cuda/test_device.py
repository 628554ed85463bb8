"""A thread has the context of its GPU before it makes driver calls; the CPU needs nothing."""

from __future__ import annotations

import threading
from contextlib import nullcontext

import pytest
import torch

from vitesse.backends.torch_cuda.device import bind, working_on
from vitesse.backends.torch_cuda.lanes import CpuLane, GpuLane

GPU = torch.device("cuda", 0)
on_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a CUDA build of torch"
)


class Stream:
    """Notes which thread asked it, in place of the runtime call that binds a context."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def query(self) -> bool:
        self.asked.append(threading.get_ident())
        return True


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    made = Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: made)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    return made


def in_threads(number: int, work: object) -> None:
    threads = [threading.Thread(target=work) for _ in range(number)]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
        thread.join()


def test_every_thread_binds_the_context_of_a_device_once(stream: Stream) -> None:
    def work() -> None:
        for device in (GPU, GPU, torch.device("cuda", 1)):
            bind(device)

    in_threads(3, work)
    assert len(stream.asked) == 6, "once a device and thread"
    assert threading.get_ident() not in stream.asked


def test_the_context_is_bound_inside_and_gradients_are_off(stream: Stream) -> None:
    seen: list[tuple[int, bool]] = []

    def work() -> None:
        with working_on(GPU):
            seen.append((len(stream.asked), torch.is_grad_enabled()))

    in_threads(1, work)
    assert seen == [(1, False)]


def test_a_lane_binds_the_context_of_the_thread_that_works_in_it(stream: Stream) -> None:
    lane = object.__new__(GpuLane)
    lane._device, lane.stream = GPU, stream  # type: ignore[assignment]

    def work() -> None:
        with lane.working():
            assert not torch.is_grad_enabled()

    in_threads(2, work)
    assert len(stream.asked) == 2


def test_the_cpu_needs_no_context(stream: Stream) -> None:
    with working_on(torch.device("cpu")), CpuLane().working():
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert stream.asked == []


@on_gpu
def test_a_new_thread_can_make_a_tma_descriptor_as_its_first_act() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings")
    torch.zeros(1, device=GPU)
    contexts: list[int] = []

    def work() -> None:
        with working_on(GPU):
            _, context = driver.cuCtxGetCurrent()
            contexts.append(int(context))

    in_threads(2, work)
    assert all(contexts)
