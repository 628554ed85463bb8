"""Before anything is measured, the kernels of all steps are compiled, each once, many at a time."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from backends.torch_cuda.fake_kernels import FakeKernel, kernels_of
from backends.torch_cuda.graphs import TOKENS, WIDTH, block
from vitesse.backends.torch_cuda import ahead
from vitesse.backends.torch_cuda.ahead import compile_ahead
from vitesse.backends.torch_cuda.binding import Binder
from vitesse.backends.torch_cuda.candidates import Run, Tactic
from vitesse.backends.torch_cuda.checking import example_feeds
from vitesse.backends.torch_cuda.rewrite import rewrite
from vitesse.backends.torch_cuda.specialise import specialise
from vitesse.backends.torch_cuda.tactics import TacticCache
from vitesse.backends.torch_cuda.weights import Constants

CPU = torch.device("cpu")
FOUR = [{"block": size} for size in (16, 32, 64, 128)]
# Of the block, each of a size of its own.
PRODUCTS = 2


class Waiting(FakeKernel):
    """A kernel whose tactics are ready when those of all steps are being prepared."""

    together = threading.Barrier(PRODUCTS * len(FOUR), timeout=20)

    def prepare(self, *given: Any) -> Run:
        self.together.wait()
        return super().prepare(*given)


def fused_block() -> tuple[ir.Graph, Mapping[str, Tensor]]:
    static = specialise(block(np.float32), {"x": (2, TOKENS, WIDTH)})
    return rewrite(static)[0].graph, example_feeds(static, CPU)


def binder_of(*fakes: FakeKernel, cache: TacticCache | None = None, most: int = 32) -> Binder:
    return Binder(CPU, cache or TacticCache(), Constants(CPU), kernels_of(*fakes), True, 0.0, most)


def test_the_candidates_of_different_steps_are_prepared_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "COMPILING", PRODUCTS * len(FOUR))
    kernel = Waiting("triton.linear", configs=FOUR)
    compile_ahead(binder_of(kernel), *fused_block())
    assert len(kernel.prepared) == PRODUCTS * len(FOUR)


def test_what_compiles_is_prepared_ahead_and_libraries_are_not() -> None:
    own = FakeKernel("triton.linear", configs=FOUR)
    library = FakeKernel("cublaslt.linear", configs=FOUR)
    compile_ahead(binder_of(own, library, most=3), *fused_block())
    first = [Tactic(own.name, config).text() for config in FOUR[:3]]
    assert Counter(tactic.text() for tactic in own.prepared) == dict.fromkeys(first, PRODUCTS)
    assert library.prepared == []


def test_a_step_that_the_cache_knows_is_not_compiled_again() -> None:
    own = FakeKernel("triton.linear", configs=FOUR)
    binder, (graph, feeds) = binder_of(own), fused_block()
    list(binder.bound(graph, feeds))
    before = list(own.prepared)
    compile_ahead(binder, graph, feeds)
    assert own.prepared == before


def test_a_candidate_that_crashes_ahead_is_named_when_it_is_measured() -> None:
    crashing = FakeKernel("triton.linear", crash="no such instruction")
    binder, (graph, feeds) = binder_of(crashing), fused_block()
    compile_ahead(binder, graph, feeds)
    list(binder.bound(graph, feeds))
    trials = [trial for choice in binder.cache.choices.values() for trial in choice.trials]
    assert [trial.error for trial in trials] == PRODUCTS * ["RuntimeError: no such instruction"]


def test_where_memory_does_not_hold_plain_torch_the_build_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ahead, "offered", full)
    own = FakeKernel("triton.linear")
    compile_ahead(binder_of(own), *fused_block())
    assert own.prepared == []
