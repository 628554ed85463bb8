"""`cublaslt.linear`: what it refuses (no GPU needed), and on a GPU every algorithm against float64."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("nvmath.bindings", reason="cuBLASLt is reached through nvmath-python")

from linear_cases import ACTIVATIONS, E4M3, TOLERANCE, case, error
from vitesse.backends.torch_cuda.candidates import DeviceFacts, Tactic
from vitesse.backends.torch_cuda.kernels import cublaslt
from vitesse.backends.torch_cuda.kernels.cublaslt import KERNEL, Problem
from vitesse.backends.torch_cuda.kernels.linear_operands import Epilogue, Operands
from vitesse.errors import BackendError

H100 = DeviceFacts((9, 0), 132, "NVIDIA H100")
ON_GPU = torch.cuda.is_available()
gpu = pytest.mark.skipif(not ON_GPU, reason="needs a GPU")


def reason(monkeypatch, found=(("00" * 64, 0),), facts=H100, **options):
    """What KERNEL.refuses says where the heuristic finds these algorithms."""
    monkeypatch.setattr(cublaslt, "algorithms", lambda *_, **__: list(found))
    monkeypatch.setattr(cublaslt, "version", lambda: 130200)
    one = case(options.pop("shape", (4, 32)), options.pop("n", 32), **options)
    return KERNEL.refuses(one.tensors, one.attributes, facts)


def test_what_the_epilogue_has_is_not_refused(monkeypatch):
    for activation in ("", "relu", "gelu_tanh"):
        assert reason(monkeypatch, activation=activation) == ""
        assert reason(monkeypatch, activation=activation, residual=(4, 32), residual_first=1) == ""
    assert reason(monkeypatch, dtype=E4M3, scale=1, activation="gelu", out_scale=0.1) == ""
    assert reason(monkeypatch, dtype=E4M3, scale=32) == ""


@pytest.mark.parametrize(
    "options, said",
    [
        ({"activation": "silu"}, "no silu in the epilogue"),
        ({"activation": "gelu"}, "its GELU is the tanh form, and exact GELU was asked for"),
        (
            {"activation": "relu", "residual": (4, 32)},
            "the residual comes after the activation, and C before it",
        ),
        ({"shape": (2, 4, 32), "residual": (4, 32)}, "the batch shares the residual, and C has all rows"),
        (
            {"residual": (4, 32), "out_dtype": "float32"},
            "the residual is torch.float16, and C is torch.float32",
        ),
        ({"shape": (4, 36)}, "takes K and N in multiples of 8, not 36 and 32"),
        ({"dtype": E4M3, "n": 24}, "takes K and N in multiples of 16, not 32 and 24"),
        (
            {"dtype": torch.float32},
            "takes two of float16, bfloat16 or float8_e4m3fn, not torch.float32 and torch.float32",
        ),
        ({"scale": 1}, "a scale goes with E4M3 operands only"),
        ({"out_scale": 0.1}, "no torch.float8_e4m3fn output of torch.float16 operands"),
    ],
)
def test_what_the_epilogue_lacks_is_refused_with_the_reason(options, said, monkeypatch):
    assert reason(monkeypatch, **options) == said


def test_a_problem_without_an_algorithm_is_refused(monkeypatch):
    said = reason(monkeypatch, found=(), dtype=E4M3, scale=32)
    assert said.startswith("cuBLASLt 130200 has no algorithm for Problem(m=4, n=32, k=32")


def test_a_library_that_does_not_load_is_a_reason(monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("libcublasLt.so is not found")

    one = case((4, 32), 32)
    monkeypatch.setattr(cublaslt, "algorithms", missing)
    assert KERNEL.refuses(one.tensors, {}, H100) == "cuBLASLt does not load: libcublasLt.so is not found"


def test_an_old_gpu_is_refused_for_e4m3(monkeypatch):
    old = DeviceFacts((8, 0), 108, "NVIDIA A100")
    assert reason(monkeypatch, facts=old, dtype=E4M3) == "E4M3 needs compute capability 8.9, this is (8, 0)"


def test_an_algorithm_of_another_version_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr(cublaslt, "version", lambda: 130200)
    config = {"algorithm": "00" * 64, "workspace_bytes": 0, "version": 120900, "fast_sum": True}
    one = case((4, 32), 32)
    with pytest.raises(BackendError) as raised:
        KERNEL.prepare(one.tensors, one.attributes, Tactic(KERNEL.name, config))
    assert str(raised.value).splitlines() == [
        "a cuBLASLt algorithm of version 120900, this is 130200",
        "  expected: the version that chose it: its 64 bytes mean nothing to another",
        "  next step: build the engine again on this machine: vitesse build",
    ]


def test_types_of_c_and_bias_follow_the_output():
    def problem(**options):
        one = case((4, 32), 32, dtype=E4M3, scale=1, **options)
        return Problem.of(Operands.of(one.tensors), Epilogue.of(one.attributes))

    half, single, eighth = problem(), problem(out_dtype="float32"), problem(out_scale=0.1)
    assert (half.out, half.added, half.bias_type) == (torch.float16,) * 3
    assert (single.out, single.added, single.bias_type) == (torch.float32, torch.float32, torch.bfloat16)
    assert (eighth.out, eighth.added, eighth.bias_type) == (E4M3, torch.float16, torch.float16)
    assert eighth.pointers == ["BIAS_POINTER", "A_SCALE_POINTER", "D_SCALE_POINTER"]


def test_the_tanh_form_of_gelu_costs_float16_its_rounding_and_e4m3_a_hundredth():
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).double()
    exact = ACTIVATIONS["gelu"](x)
    form = error(ACTIVATIONS["gelu_tanh"](x), exact)
    assert 0.5 < form / error(exact.half(), exact) < 2
    assert form < error((exact * 64).to(E4M3).double() / 64, exact) / 100


@gpu
@pytest.mark.parametrize("m, n, k", [(197, 768, 768), (6304, 3072, 768), (100, 256, 2048)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"activation": "relu"},
        {"activation": "gelu_tanh"},
        {"residual": "full"},
        {"dtype": E4M3, "scale": 1},
        {"dtype": E4M3, "scale": 1, "residual": "full"},
        {"dtype": E4M3, "scale": 1, "activation": "gelu", "out_scale": 0.02},
        {"dtype": E4M3, "scale": 1, "out_dtype": "float32"},
        {"dtype": E4M3, "scale": "columns"},
        {"dtype": torch.bfloat16, "out_dtype": "bfloat16"},
    ],
    ids=str,
)
def test_every_algorithm_is_right(m, n, k, options, device):
    options = dict(options)
    if options.get("residual"):
        options["residual"] = (m, n)
    if options.get("scale") == "columns":
        options["scale"] = n
    one = case((m, k), n, device=device, **options)
    why = KERNEL.refuses(one.tensors, one.attributes, H100)
    if why.startswith("cuBLASLt"):
        pytest.skip(why)
    assert why == ""
    tactics = KERNEL.tactics(one.tensors, one.attributes, H100)
    assert tactics
    for tactic in tactics:
        (made,) = KERNEL.prepare(one.tensors, one.attributes, tactic)(*one.tensors)
        found = error(made, one.expected)
        assert not math.isinf(found) and found < TOLERANCE[made.dtype] + 2e-3, tactic.text()


@gpu
def test_it_runs_in_a_cuda_graph(device):
    one = case((197, 768), 768, residual=(197, 768), device=device)
    tactic = KERNEL.tactics(one.tensors, one.attributes, H100)[0]
    run = KERNEL.prepare(one.tensors, one.attributes, tactic)
    run(*one.tensors)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (made,) = run(*one.tensors)
    made.fill_(torch.nan)
    graph.replay()
    assert error(made, one.expected) < TOLERANCE[torch.float16]
