"""Jobs go to other processes, each step once; what is known already, and what is not compiled, stays."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from vitesse.backends.torch_cuda import compiling
from vitesse.backends.torch_cuda.candidates import DeviceFacts, Kernels, kernels
from vitesse.backends.torch_cuda.compiling import Compilers, Like
from vitesse.backends.torch_cuda.steps import norm
from vitesse.backends.torch_cuda.tactics import PLAIN, Choice, Problem, TacticCache

H100 = DeviceFacts((9, 0), 132, "NVIDIA H100")

pytest.importorskip("triton", reason="the kernels are written in Triton")


@pytest.fixture(scope="module")
def found() -> Kernels:
    table = {"triton.norm": "vitesse.backends.torch_cuda.kernels.norm:KERNEL"}
    return kernels(table | {"torch.norm": "vitesse.backends.torch_cuda.kernels.torch_norm:KERNEL"})


def layer_norm(rows: int, device: torch.device) -> Problem:
    x = torch.randn(rows, 64, device=device)
    weight = torch.randn(64, device=device)
    attributes = {"epsilon": 1e-5, "out_scale": 0.0}
    return Problem(
        "Norm",
        {**attributes, "wanted": "100"},
        (x, weight, None, None),
        (False, True, False, False),
        partial(norm, **attributes),
    )


def test_a_likeness_has_the_shape_the_strides_and_the_dtype_of_its_tensor() -> None:
    x = torch.randn(2, 8, 3, 4).to(memory_format=torch.channels_last).half()
    made = Like.of(x).zeros(torch.device("cpu"))  # type: ignore[union-attr]
    assert (made.shape, made.stride(), made.dtype) == (x.shape, x.stride(), torch.float16)
    assert not made.any()
    assert Like.of(None) is None


def test_every_configuration_of_every_new_step_is_compiled_once_and_libraries_are_not(
    found: Kernels, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "facts_of", lambda _: H100)
    steps = [layer_norm(rows, device) for rows in (3, 3, 40)]
    known = TacticCache(choices={layer_norm(40, device).signature: Choice(PLAIN)})
    triton = found.found["triton.norm"]
    tactics = triton.tactics(steps[0].tensors, steps[0].attributes, H100)
    jobs = Compilers(device, 2)._jobs(steps, found, known, most=100)
    assert [job.tactic for job in jobs] == tactics
    assert {job.kernel for job in jobs} == {"triton.norm"}
    assert len(Compilers(device, 2)._jobs(steps, found, known, most=1)) == 1


def test_jobs_run_in_processes_of_their_own_and_a_failing_one_ends_nothing(
    found: Kernels, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "facts_of", lambda _: H100)
    monkeypatch.setattr(compiling, "FEWEST_JOBS", 1)
    with Compilers(device, 2) as compilers:
        assert compilers.compile([layer_norm(3, device)], found, TacticCache(), most=2) > 0
        broken = compiling.Job("triton.norm", PLAIN, {}, (None,))
        pool = compilers._started()
        assert pool.submit(compiling._compiled, broken).result()
        good = compilers._jobs([layer_norm(5, device)], found, TacticCache(), most=1)
        assert [pool.submit(compiling._compiled, job).result() for job in good] == [""]


def test_few_jobs_start_no_processes(
    found: Kernels, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "facts_of", lambda _: H100)
    compilers = Compilers(device, 4)
    assert compilers.compile([layer_norm(3, device)], found, TacticCache(), most=1) == 0
    assert compilers._pool is None
