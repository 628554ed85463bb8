# mypy: allow-untyped-decorators
"""Every address of every own kernel held against its tensors, at sizes that fill no tile and in every tactic."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch engine needs torch")
triton = pytest.importorskip("triton", reason="the kernels are in Triton")

import triton.language as tl  # noqa: E402
from triton.runtime.errors import InterpreterError  # noqa: E402
from triton.tools.tensor_descriptor import TensorDescriptor  # noqa: E402

from backends.torch_cuda.kernels.address_cases import CASES, Step, zeros  # noqa: E402
from backends.torch_cuda.kernels.float64 import H100  # noqa: E402
from backends.torch_cuda.kernels.watching import Program, elements, watched  # noqa: E402
from vitesse.backends.torch_cuda.candidates import KERNELS, DeviceFacts, Tactic, kernels  # noqa: E402
from vitesse.backends.torch_cuda.kernels import (  # noqa: E402
    attention_kernel,
    conv,
    conv_pair,
    linear,
    max_pool,
    norm,
    patches,
    quantise,
    stem_image,
    stem_pool,
)
from vitesse.backends.torch_cuda.kernels.epilogue import INTERPRETED  # noqa: E402

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="addresses are seen by the interpreter")

# One with the TMA unit, where all is read by descriptors that can be, and one without: all by pointers.
L4 = DeviceFacts((8, 9), 58, "NVIDIA L4")
DEVICES = (H100, L4)
# What each kernel launches.
PROGRAMS: dict[str, tuple[Program, ...]] = {
    "triton.linear": ((linear, "gemm"), (linear, "persistent_gemm")),
    "triton.norm_linear": ((linear, "gemm"),),
    "triton.conv_1x1": ((linear, "gemm"), (linear, "persistent_gemm")),
    "triton.norm": ((norm, "normalise"),),
    "triton.attention": ((attention_kernel, "attend"), (attention_kernel, "combine")),
    "triton.conv": (
        *((conv, name) for name in ("taps", "boxes", "stem", "stem_rows")),
        (stem_image, "pack_pixels"),
    ),
    "triton.conv_pair": ((conv_pair, "pair"),),
    "triton.stem_pool": ((stem_image, "pack_pixels"), (stem_pool, "stem_pool")),
    "triton.max_pool": ((max_pool, "pool"),),
    "triton.quantise": ((quantise, "quantise"),),
    "triton.patches": ((patches, "embed"),),
}
# How a program is compiled; its addresses do not hang on it.
UNSEEN = ("num_warps", "num_stages", "fast_sum")
# Its own tests watch it.
ELSEWHERE = {"triton.conv_chain"}
# What is found when it begins a little later than it should: programs, their case and its device, and arguments.
CONVOLVED = "x weight scale bias residual out"
OFFENCES: tuple[tuple[str, str, DeviceFacts, str], ...] = (
    ("gemm", "product: shares of K", H100, "x weight scale bias residual out"),
    ("gemm", "product: shares of K", L4, "x weight scale bias residual out partial arrived"),
    ("gemm", "norm and product", H100, "column_sums"),
    ("persistent_gemm", "product: tiles to walk over", H100, "x weight bias residual out"),
    ("normalise", "norm: residual", L4, "x weight bias residual y total eight"),
    ("attend", "attention: whole blocks", H100, "q k_blocks v_blocks mask out partial partial_rows"),
    ("attend", "attention: whole blocks", L4, "k v"),
    ("combine", "attention: whole blocks", L4, "partial partial_rows out"),
    ("boxes", "conv: odd sizes", H100, CONVOLVED),
    ("taps", "conv: odd sizes", L4, CONVOLVED),
    ("stem", "stem: 7 by 7", L4, CONVOLVED),
    ("pack_pixels", "stem: 7 by 7", L4, "x image"),
    ("stem_rows", "stem: 7 by 7", L4, CONVOLVED.replace("x ", "image ")),
    ("stem_pool", "stem and pool: a strip and a half", L4, "image weight bias out"),
    ("pair", "pair: one pixel", L4, "x other weight bias out"),
    ("pool", "pool: dilated", L4, "x out"),
    ("quantise", "quantise: shared sum", L4, "x other out"),
    ("embed", "patches: 14, five tokens", L4, "image weight tokens positions out"),
)
LOADED = kernels({name: KERNELS[name] for name in PROGRAMS}).found


def offered(step: Step) -> list[Tactic]:
    """Return the tactics of both devices; of those that the interpreter cannot tell apart, one."""
    kernel, found = LOADED[step.kernel], []
    for device in DEVICES:
        assert kernel.refuses(step.tensors, step.attributes, device) == ""
        found += kernel.tactics(step.tensors, step.attributes, device)
    different = {
        tuple((name, value) for name, value in tactic.config.items() if name not in UNSEEN): tactic
        for tactic in found
    }
    return list(different.values())


def run(step: Step, tactic: Tactic) -> None:
    LOADED[step.kernel].prepare(step.tensors, step.attributes, tactic)(*step.tensors)


@pytest.mark.parametrize("name", CASES)
def test_no_tactic_touches_memory_beside_its_tensors(name: str, monkeypatch: Any) -> None:
    step = CASES[name]
    with watched(monkeypatch, *PROGRAMS[step.kernel]) as launched:
        for tactic in offered(step):
            before = len(launched)
            run(step, tactic)
            assert len(launched) > before, tactic.text()


@pytest.mark.parametrize("tma", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["attention: heads of 8", "attention: heads of 16"])
def test_the_addresses_of_attention_that_broke_on_a_gpu_are_right(
    name: str, dtype: Any, tma: int, monkeypatch: Any
) -> None:
    # Float32, and narrow heads by descriptors, are refused: what read beside there is not of the program's making.
    given = CASES[name]
    q, kv, _, mask = given.tensors
    wide = kv.to(dtype)
    step = replace(given, tensors=(q.to(dtype), wide, wide, mask))
    with watched(monkeypatch, (attention_kernel, "attend")) as launched:
        for block_m in (16, 64):
            config = {"block_m": block_m, "block_n": 64, "splits": 1, "tma": tma}
            run(step, Tactic(step.kernel, config | {"num_warps": 4, "num_stages": 2}))
    assert launched == ["attend"] * 2


@pytest.mark.parametrize(
    ("program", "name", "device_facts", "argument"),
    [(*place, argument) for *place, arguments in OFFENCES for argument in arguments.split()],
    ids=[
        f"{program}-{argument}-{device.name[-4:].strip()}"
        for program, _, device, arguments in OFFENCES
        for argument in arguments.split()
    ],
)
def test_a_tensor_that_begins_later_is_noticed(
    program: str, name: str, device_facts: DeviceFacts, argument: str, monkeypatch: Any
) -> None:
    step = CASES[name]
    (module,) = (module for module, name in PROGRAMS[step.kernel] if name == program)
    monkeypatch.setattr(module, program, Moved(getattr(module, program), argument))

    def noticed(tactic: Tactic) -> bool:
        try:
            run(step, tactic)
        except InterpreterError as error:
            assert f"{program} touches memory beside its tensors" in str(error)
            return True
        return False

    with watched(monkeypatch, *PROGRAMS[step.kernel]):
        assert any(map(noticed, LOADED[step.kernel].tactics(step.tensors, step.attributes, device_facts)))


class Moved:
    """A kernel that gets one of its tensors as if it began later: by an element, by 16 bytes for a descriptor."""

    def __init__(self, right: Any, argument: str) -> None:
        self._right, self._argument = right, argument

    def __getitem__(self, grid: Any) -> Any:
        def launch(*given: Any, **named: Any) -> None:
            said = dict(zip(self._right.arg_names, given, strict=False)) | named
            said[self._argument] = later(said[self._argument])
            self._right[grid](**said)

        return launch


def later(argument: Any) -> Any:
    if isinstance(argument, TensorDescriptor):
        return replace(argument, base=behind(argument.base, 16 // argument.base.element_size()))
    return None if argument is None else behind(argument, 1)


def behind(tensor: Any, skipped: int) -> Any:
    """Everything of a tensor but its first elements: a kernel reads no more of it than where it begins."""
    left = max(0, elements(tensor) - skipped)
    return tensor.as_strided((left,), (1,), tensor.storage_offset() + skipped)


def test_every_own_kernel_and_every_program_has_cases_and_offences() -> None:
    assert {*PROGRAMS} | ELSEWHERE == {name for name in KERNELS if name.startswith("triton.")}
    assert {step.kernel for step in CASES.values()} == {*PROGRAMS}
    assert {program for program, *_ in OFFENCES} == {
        name for programs in PROGRAMS.values() for _, name in programs
    }


def test_the_cases_reach_every_way_to_read_and_to_share_the_work() -> None:
    def said(kernel: str, name: str) -> set[Any]:
        steps = [step for step in CASES.values() if step.kernel == kernel]
        return {tactic.config[name] for step in steps for tactic in offered(step)}

    wanted: Mapping[str, Mapping[str, set[Any]]] = {
        "triton.linear": {
            "operands": {"descriptors", "pointers"},
            "persistent": {False, True},
            "split_k": {1, 2, 3},
        },
        "triton.attention": {"tma": {0, 1}, "splits": {1, 2, 4}},
        "triton.conv": {"program": {"taps", "boxes", "stem", "rows"}},
    }
    for kernel, ways in wanted.items():
        assert {name: said(kernel, name) for name in ways} == ways


@triton.jit
def copied(x: Any, out: Any, first: Any, COUNT: tl.constexpr) -> None:
    at = first + tl.arange(0, COUNT)
    tl.store(out + at, tl.load(x + at))


@pytest.mark.parametrize(
    ("first", "noticed"),
    [(-1, True), (0, False), (2, False), (3, True)],
    ids=["before", "in", "last", "behind"],
)
def test_a_view_reaches_from_its_first_element_to_its_last(
    first: int, noticed: bool, monkeypatch: Any
) -> None:
    # 34 elements from the first to the last, six rows of ten in memory.
    view, out = zeros(6, 10)[1:5, 2:6], zeros(64)
    assert touches_beside(view, out[8:], first, monkeypatch) == noticed


def test_what_runs_into_the_neighbour_is_beside_both(monkeypatch: Any) -> None:
    x, out = zeros(64).split(32)
    assert not touches_beside(x, out, 0, monkeypatch)
    assert touches_beside(x, out, 1, monkeypatch)


def touches_beside(x: Any, out: Any, first: int, monkeypatch: Any) -> bool:
    with watched(monkeypatch, (sys.modules[__name__], "copied")) as launched:
        try:
            copied[(1,)](x, out, first, COUNT=32)
        except InterpreterError as error:
            assert "copied touches memory beside its tensors" in str(error)
            return True
    assert launched == ["copied"]
    return False
