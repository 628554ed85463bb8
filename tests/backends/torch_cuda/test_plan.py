"""A plan computes what ONNX Runtime computes, says by what, and names the step that is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from backends.torch_cuda.fake_kernels import FakeKernel, kernels_of
from backends.torch_cuda.graphs import TOKENS, WIDTH, block
from vitesse.backends.torch_cuda import checking
from vitesse.backends.torch_cuda.candidates import Kernels, Tactic
from vitesse.backends.torch_cuda.comparing import relative_error
from vitesse.backends.torch_cuda.plan import Making, Plan
from vitesse.backends.torch_cuda.tactics import Choice, TacticCache
from vitesse.backends.torch_cuda.weights import Constants
from vitesse.errors import BackendError, DataError

FASHION = Path(__file__).parents[3] / "examples" / "fashion"
CPU = torch.device("cpu")


def plan_of(
    model: onnx.ModelProto, shape: tuple[int, ...], making: Making | None = None, **given: object
) -> Plan:
    name = model.graph.input[0].name
    return Plan(model, {name: shape}, CPU, given.get("cache") or TacticCache(), Constants(CPU), making)  # type: ignore[arg-type]


def in_onnxruntime(model: onnx.ModelProto, x: np.ndarray) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: x}), strict=True))


@pytest.mark.parametrize(("file", "size"), [("vit_fashion", 56), ("detr_fashion", 256)])
def test_the_plan_of_a_trained_network_gives_what_onnxruntime_gives(file: str, size: int) -> None:
    model = onnx.load(FASHION / f"{file}.onnx")
    x = np.random.default_rng(3).standard_normal((2, 3, size, size)).astype(np.float32)
    plan = plan_of(model, x.shape)
    found = plan.run({model.graph.input[0].name: torch.from_numpy(x)})
    for name, expected in in_onnxruntime(model, x).items():
        assert relative_error(found[name], torch.from_numpy(expected)) < 1e-5
    steps = {row.step for row in plan.describe()}
    assert {"Linear", "Norm", "Attention"} <= steps
    assert {row.tactic for row in plan.describe()} == {"plain"}


def test_a_float16_graph_comes_nearer_to_float32_than_its_own_rounding() -> None:
    x = np.random.default_rng(4).standard_normal((3, TOKENS, WIDTH)).astype(np.float16)
    found = plan_of(block(np.float16), x.shape, Making(check=True)).run({"x": torch.from_numpy(x)})["y"]
    assert found.dtype == torch.float16
    expected = in_onnxruntime(block(np.float32), x.astype(np.float32))["y"]
    assert relative_error(found, torch.from_numpy(expected)) < 2e-3


def test_a_plan_says_which_tactic_computes_which_module() -> None:
    cache = TacticCache()
    fakes = kernels_of(FakeKernel("fast.linear"), FakeKernel("fast.norm", step="Norm"))
    plan = plan_of(block(), (2, TOKENS, WIDTH), Making(measure=True, check=True, kernels=fakes), cache=cache)
    rows = plan.describe()
    assert [(row.step, row.tactic) for row in rows] == [
        ("Norm", "fast.norm"),
        ("Linear", "fast.linear"),
        ("Linear", "fast.linear"),
    ]
    assert rows[1].scope.startswith("block.mlp")
    assert all(row.microseconds and not row.guessed for row in rows)
    assert plan.guessed == ()
    assert len(cache.choices) == 3
    later = plan_of(block(), (5, TOKENS, WIDTH), Making(kernels=fakes), cache=cache)
    assert len(later.guessed) == 3
    assert len(cache.choices) == 3


def test_a_run_leaves_nothing_of_itself_and_inputs_untouched() -> None:
    plan = plan_of(block(), (2, TOKENS, WIDTH))
    x = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    before, first = x.clone(), plan.run({"x": x})["y"].clone()
    plan.run({"x": x * 7})
    torch.testing.assert_close(plan.run({"x": x})["y"], first, rtol=0, atol=0)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


def spoil(cache: TacticCache, step: str, kernel: str) -> None:
    """Have the cache name a tactic for a step, as if it had been measured and found right."""
    for signature, choice in cache.choices.items():
        if signature.startswith(step):
            cache.choices[signature] = Choice(Tactic(kernel), 1.0, family=choice.family, sizes=choice.sizes)


def test_a_tactic_that_became_wrong_is_found_and_named() -> None:
    cache = TacticCache()
    good = kernels_of(FakeKernel("good"))
    plan_of(block(), (2, TOKENS, WIDTH), Making(measure=True, kernels=good), cache=cache)
    spoil(cache, "Linear", "bad")
    bad = kernels_of(FakeKernel("bad", scale=1.1))
    with pytest.raises(BackendError) as caught:
        plan_of(block(), (2, TOKENS, WIDTH), Making(check=True, kernels=bad), cache=cache)
    assert "the plan's output 'y' is off by" in caught.value.what
    assert "(Linear, by bad): output 0 is off by 1.0e-01 of its norm" in caught.value.cause
    assert "fc1" in caught.value.cause, "the first of the two"


def test_a_wrong_rewrite_is_told_from_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        def __init__(self, *_: object) -> None: ...

        def run(self, feeds: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"y": feeds["x"] * 3}

    monkeypatch.setattr(checking, "Plain", Other)
    with pytest.raises(BackendError) as caught:
        plan_of(block(), (2, TOKENS, WIDTH), Making(check=True))
    assert caught.value.cause == "every step is right by itself: a rewrite of the graph is not"


def test_what_comes_behind_a_choice_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    real = checking.relative_error

    def counting(found: torch.Tensor, expected: torch.Tensor) -> float:
        compared.append(1)
        return real(found, expected)

    monkeypatch.setattr(checking, "relative_error", counting)
    plan = plan_of(block(jump=True), (1, TOKENS, WIDTH), Making(check=True))
    assert plan.run({"x": torch.zeros(1, TOKENS, WIDTH)}).keys() == {"y", "best", "where"}
    assert len(compared) == 1


def test_shapes_that_the_graph_does_not_take_are_refused() -> None:
    with pytest.raises(DataError):
        plan_of(block(), (2, TOKENS, WIDTH + 1))


def test_plans_of_one_engine_share_their_constants() -> None:
    constants = Constants(CPU)
    for batch in (1, 2):
        Plan(
            block(), {"x": (batch, TOKENS, WIDTH)}, CPU, TacticCache(), constants, Making(kernels=Kernels({}))
        )
        if batch == 1:
            size = constants.bytes
    assert constants.bytes == size > 0
