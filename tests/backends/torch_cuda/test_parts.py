"""A kernel that computes a step as two others: each part gets what was measured best for it alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from backends.torch_cuda import fake_kernels
from backends.torch_cuda.fake_kernels import FakeKernel, kernels_of
from fusing import graph, normal, run
from tiny_onnx import as_artifact
from vitesse.artifact import Store
from vitesse.backends.torch_cuda import tactics
from vitesse.backends.torch_cuda.ahead import compile_ahead
from vitesse.backends.torch_cuda.backend import TorchCudaBackend
from vitesse.backends.torch_cuda.binding import Binder
from vitesse.backends.torch_cuda.building import BuildOptions
from vitesse.backends.torch_cuda.candidates import PLAIN, Kernels, Tactic
from vitesse.backends.torch_cuda.checking import example_feeds
from vitesse.backends.torch_cuda.kernels import separate as module
from vitesse.backends.torch_cuda.kernels.separate_conv_chain import KERNEL
from vitesse.backends.torch_cuda.plan import Making, Plan
from vitesse.backends.torch_cuda.problem import Problem
from vitesse.backends.torch_cuda.rewrite import rewrite
from vitesse.backends.torch_cuda.specialise import specialise
from vitesse.backends.torch_cuda.tactics import TacticCache, choose
from vitesse.backends.torch_cuda.weights import Constants

CPU = torch.device("cpu")
SPEEDS = [{"delay_s": 2.0}, {"delay_s": 1.0}]
FAST = Tactic("fake.conv", SPEEDS[1]).document()
Here = Callable[..., Kernels]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fakes take the time that they should, and nothing else any: a loaded machine chooses no other."""
    slept = [0.0]

    def taken(call: Callable[[], object]) -> float:
        slept[0] = 0.0
        call()
        return slept[0] * 1e6

    def sleep(seconds: float) -> None:
        slept[0] += seconds

    monkeypatch.setattr(fake_kernels, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(tactics, "microseconds", lambda calls, *_: [taken(call) for call in calls])


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    """Make these fakes, and the kernel that is composed of them, the only kernels there are."""

    def only(*fakes: FakeKernel) -> Kernels:
        named = {fake.name: fake for fake in fakes}
        monkeypatch.setattr(module, "KERNELS", {name: name for name in named})
        monkeypatch.setattr(module, "kernels", lambda table: Kernels({name: named[name] for name in table}))
        return Kernels({**kernels_of(*fakes).found, KERNEL.name: KERNEL}, on_cpu=True)

    return only


def step(height: int = 5, *, shortcut: bool = False) -> Problem:
    random = torch.Generator().manual_seed(height)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random).half()

    def pixels(channels: int, size: int) -> torch.Tensor:
        return made(1, channels, size, 4).contiguous(memory_format=torch.channels_last)

    x, residual = pixels(8, height), None if shortcut else pixels(16, height)
    other = pixels(4, 2 * height) if shortcut else None
    tensors = (
        x,
        made(16, 12 if shortcut else 8, 1, 1),
        made(16),
        made(8, 16, 1, 1),
        made(8),
        residual,
        other,
    )
    constant = (False, True, True, True, True, False, False)
    keywords = {"strides": (2, 1), "activation": "relu", "next_activation": "relu"}
    return Problem.of("ConvChain", keywords, tensors, constant)


def alone(of: Problem) -> list[Problem]:
    """The steps that its parts are, as a graph would have them."""
    return list(KERNEL.parts(of.tensors, of.attributes))


def test_each_part_gets_what_is_fastest_for_it_alone(here: Here) -> None:
    cache, given = TacticCache(), step(shortcut=True)
    conv, pair = FakeKernel("fake.conv", "Conv", configs=SPEEDS), FakeKernel("fake.pair", "ConvPair")
    choice, run = choose(given, here(conv, pair), CPU, cache)
    assert choice.tactic == Tactic(KERNEL.name, {"parts": [Tactic("fake.pair").document(), FAST]})
    assert choice.tactic.text() == "separate.conv_chain [fake.pair] [fake.conv delay_s=1.0]"
    assert list(cache.choices) == [*(part.signature for part in alone(given)), given.signature]
    for found, expected in zip(run(*given.tensors), given.plain(*given.tensors), strict=True):
        assert found is not None and expected is not None
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_an_equal_step_elsewhere_in_the_graph_is_measured_once(here: Here) -> None:
    cache, conv = TacticCache(), FakeKernel("fake.conv", "Conv", configs=SPEEDS)
    kernels = here(conv)
    first, second = alone(step())
    choose(second, kernels, CPU, cache)
    assert len(conv.prepared) == 2
    choose(step(), kernels, CPU, cache)
    # Both of the first part, the known one of the second, and both parts for what is composed of them.
    assert len(conv.prepared) == 2 + 2 + 1 + 2
    choose(first, kernels, CPU, cache)
    assert len(cache.choices) == 3


@pytest.mark.parametrize(("delay_s", "name"), [(1.5, "fused"), (2.5, "separate.conv_chain")])
def test_one_kernel_for_both_is_taken_where_it_is_faster(here: Here, delay_s: float, name: str) -> None:
    conv, fused = (
        FakeKernel("fake.conv", "Conv", configs=SPEEDS),
        FakeKernel("fused", "ConvChain", delay_s=delay_s),
    )
    choice, _ = choose(step(), here(conv, fused), CPU, TacticCache())
    assert (choice.tactic.kernel, choice.microseconds) == (name, min(delay_s, 2.0) * 1e6)
    assert {trial.tactic.kernel for trial in choice.trials} == {"fused", KERNEL.name}


def test_a_choice_that_was_kept_is_put_together_again_without_measuring(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, conv = TacticCache(), FakeKernel("fake.conv", "Conv", configs=SPEEDS)
    kernels = here(conv)
    choice, _ = choose(step(), kernels, CPU, cache)
    monkeypatch.setattr(tactics, "microseconds", lambda *_: pytest.fail("measured"))
    restored = TacticCache.from_json(cache.to_json())
    assert restored == cache
    conv.prepared.clear()
    again, run = choose(step(), kernels, CPU, restored)
    assert again == choice
    assert [tactic.document() for tactic in conv.prepared] == [FAST, FAST]
    assert len(run(*step().tensors)) == 2


def test_without_measuring_the_first_right_guess_of_each_part_is_taken(here: Here) -> None:
    wrong, right = (
        FakeKernel("wrong.conv", "Conv", scale=2.0),
        FakeKernel("fake.conv", "Conv", configs=SPEEDS),
    )
    cache = TacticCache()
    choice, _ = choose(step(), here(wrong, right), CPU, cache, measure=False)
    assert choice.guessed
    guess = Tactic("fake.conv", SPEEDS[0]).document()
    assert choice.tactic == Tactic(KERNEL.name, {"parts": [guess, guess]})
    assert cache.choices == {}


def test_another_size_takes_the_parts_of_the_nearest_one(here: Here) -> None:
    cache, conv = TacticCache(), FakeKernel("fake.conv", "Conv", configs=SPEEDS)
    kernels = here(conv)
    choose(step(5), kernels, CPU, cache)
    choice, _ = choose(step(6), kernels, CPU, cache, measure=False)
    assert choice.tactic == Tactic(KERNEL.name, {"parts": [FAST, FAST]})


def test_a_part_that_no_kernel_computes_right_is_computed_in_plain_torch(here: Here) -> None:
    pair = FakeKernel("fake.pair", "ConvPair")
    choice, run = choose(step(shortcut=True), here(pair), CPU, TacticCache())
    assert choice.tactic.config["parts"] == [Tactic("fake.pair").document(), PLAIN.document()]
    assert len(run(*step(shortcut=True).tensors)) == 2


def test_a_kernel_of_a_part_that_is_gone_makes_way_for_another(here: Here) -> None:
    cache = TacticCache()
    choose(step(), here(FakeKernel("gone.conv", "Conv")), CPU, cache)
    choice, _ = choose(step(), here(FakeKernel("fake.conv", "Conv")), CPU, cache)
    assert [part["kernel"] for part in choice.tactic.config["parts"]] == ["fake.conv", "fake.conv"]


BODY = """
    h = Conv(x, w) r = Relu(h) c = Conv(r, v, b) a = Add(c, x) f = Relu(a)
    i = Conv(f, n, e) j = Relu(i) k = Conv(j, v) l = Add(k, f) y = Relu(l)
"""


def network() -> onnx.ModelProto:
    """Two residual blocks of 1x1 convolutions."""
    constants = {
        "w": normal(4, 8, 1, 1, seed=1) / 3,
        "v": normal(8, 4, 1, 1, seed=2) / 2,
        "n": normal(4, 8, 1, 1, seed=3) / 3,
        "b": normal(8, seed=4),
        "e": normal(4, seed=5),
    }
    halves = {name: array.astype(np.float16) for name, array in constants.items()}
    return graph(BODY, "float16[N,8,6,5] x", "float16[N,8,6,5] y", 18, **halves)


def test_a_plan_says_what_its_parts_are_and_computes_what_onnxruntime_does(here: Here) -> None:
    feeds = {"x": normal(2, 8, 6, 5, seed=7).astype(np.float16)}
    kernels = here(FakeKernel("fake.conv", "Conv"))
    making = Making(measure=True, check=True, kernels=kernels)
    plan = Plan(network(), {"x": (2, 8, 6, 5)}, CPU, TacticCache(), Constants(CPU), making)
    rows = {row.step: row for row in plan.describe()}
    assert rows["ConvChain"].tactic == "separate.conv_chain [fake.conv] [fake.conv]"
    assert (rows["ConvChain"].dtype, rows["ConvChain"].guessed) == ("float16", False)
    assert plan.changes["conv_chains"] == 1
    found = plan.run({"x": torch.from_numpy(feeds["x"])})["y"].numpy()
    np.testing.assert_allclose(found, run(network(), feeds)[0], rtol=0, atol=1e-2)


def test_an_engine_that_was_kept_and_loaded_has_the_same_parts(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "network.onnx"
    path.write_bytes(network().SerializeToString())
    backend = TorchCudaBackend("cpu", here(FakeKernel("fake.conv", "Conv", configs=SPEEDS)))
    built = backend.build_for(as_artifact(path), Store(tmp_path / "engines"), BuildOptions(batch=(1, 2, 2)))
    assert built.changes["by separate.conv_chain"] == 1
    monkeypatch.setattr(tactics, "microseconds", lambda *_: pytest.fail("measured"))
    with backend.load(built.artifact) as engine:
        rows = engine.plan({"x": (2, 8, 6, 5)}).describe()
    fast = "[fake.conv delay_s=1.0]"
    assert [row.tactic for row in rows if row.step == "ConvChain"] == [f"{KERNEL.name} {fast} {fast}"]
    assert not any(row.guessed for row in rows)


def test_what_compiles_of_the_parts_is_prepared_ahead(here: Here) -> None:
    own, library = FakeKernel("triton.conv_1x1", "Conv", configs=SPEEDS), FakeKernel("torch.conv", "Conv")
    static = specialise(network(), {"x": (2, 8, 6, 5)})
    binder = Binder(CPU, TacticCache(), Constants(CPU), here(own, library), True, 0.0)
    compile_ahead(binder, rewrite(static)[0].graph, example_feeds(static, CPU))
    # Of the first convolution, both parts of the chain, and the last one.
    assert Counter(tactic.text() for tactic in own.prepared) == dict.fromkeys(
        [Tactic(own.name, config).text() for config in SPEEDS], 4
    )
    assert library.prepared == []
