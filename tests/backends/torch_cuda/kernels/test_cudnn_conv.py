"""`cudnn.conv`: the graph it builds, and how it keeps and replays engines, on a stand-in; the real library on a GPU."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch engine needs torch")

from backends.torch_cuda.kernels import fake_cudnn  # noqa: E402
from backends.torch_cuda.kernels.conv_cases import E4M3, TOLERANCES, Case, Shape, case, poisoned  # noqa: E402
from backends.torch_cuda.kernels.float64 import AMPERE, H100, error, facts  # noqa: E402
from vitesse.backends.torch_cuda.candidates import Tactic  # noqa: E402
from vitesse.errors import BackendError  # noqa: E402

PLACE = "vitesse.backends.torch_cuda.kernels.cudnn_conv"
SHAPES = {
    "3 by 3": Shape(2, 16, 9, 11, 32),
    "stride 2": Shape(2, 16, 9, 12, 32, strides=(2, 2)),
    "dilated": Shape(1, 16, 11, 7, 16, pads=(2, 2, 2, 2), dilations=(2, 2)),
    "pads on one side": Shape(1, 16, 6, 8, 16, strides=(2, 2), pads=(0, 0, 1, 1)),
    "1 by 1": Shape(2, 16, 5, 6, 32, kernel=(1, 1), pads=(0, 0, 0, 0)),
}


@pytest.fixture
def module(monkeypatch: Any) -> Any:
    """The kernel's module on the stand-in, apart from the one that is imported elsewhere."""
    monkeypatch.setitem(sys.modules, "cudnn", fake_cudnn.module())
    found = importlib.util.find_spec(PLACE)
    assert found and found.loader
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    monkeypatch.setattr(made, "_handle", lambda: "handle")
    return made


@pytest.fixture
def cpu() -> Any:
    return torch.device("cpu")


def outputs(kernel: Any, given: Case, monkeypatch: Any) -> list[tuple[str, Any]]:
    assert kernel.refuses(given.tensors, given.attributes, facts()) == ""
    made = []
    for tactic in kernel.tactics(given.tensors, given.attributes, facts()):
        run = kernel.prepare(given.tensors, given.attributes, tactic)
        with poisoned(monkeypatch):
            made.append((tactic.text(), *run(*given.tensors)))
    assert made
    assert all(y.is_contiguous(memory_format=torch.channels_last) for _, y in made)
    return made


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "with a residual"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_graph_is_the_convolution_in_float64(
    shape: Shape, residual: bool, module: Any, cpu: Any, monkeypatch: Any
) -> None:
    given = case(shape, cpu, residual=residual, activation="relu")
    for text, made in outputs(module.KERNEL, given, monkeypatch):
        assert error(made, given.expected) < TOLERANCES[torch.float16], text


@pytest.mark.parametrize("activation", ["", "relu", "silu"])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("scaled", [0, 1, 16])
def test_scale_bias_activation_and_residual_come_in_the_order_of_the_step(
    activation: str, first: int, scaled: int, module: Any, cpu: Any, monkeypatch: Any
) -> None:
    said = {"activation": activation, "residual_first": first, "scaled": scaled}
    given = case(Shape(1, 16, 4, 5, 16), cpu, residual=True, **said)
    for _, made in outputs(module.KERNEL, given, monkeypatch):
        assert error(made, given.expected) < TOLERANCES[torch.float16]


def test_e4m3_goes_in_and_out(module: Any, cpu: Any, monkeypatch: Any) -> None:
    given = case(Shape(1, 16, 4, 5, 16), cpu, dtype=E4M3, scaled=16, activation="relu", out_scale=0.5)
    for _, made in outputs(module.KERNEL, given, monkeypatch):
        assert made.dtype == E4M3
        assert error(made.float() * 0.5, given.expected.clip(-224, 224)) < 0.04


def test_tactics_are_cudnns_engines_each_once_and_not_those_of_python(module: Any, cpu: Any) -> None:
    given = case(SHAPES["3 by 3"], cpu)
    found = module.KERNEL.tactics(given.tensors, given.attributes, H100)
    assert [tactic.config for tactic in found] == [
        {"engine": 3, "knobs": {"TILE_SIZE": 1}},
        {"engine": 7, "knobs": {"TILE_SIZE": 2, "STAGES": 4}},
    ]


def test_shapes_alone_are_enough_to_ask(module: Any) -> None:
    x = torch.empty(8, 64, 200, 334, dtype=torch.float16, device="meta")
    weight = torch.empty(64, 64, 3, 3, dtype=torch.float16)
    assert len(module.KERNEL.tactics((x, weight), {"pads": (1, 1, 1, 1)}, H100)) == 2


def test_a_graph_that_cudnn_does_not_support_has_no_tactics(module: Any, cpu: Any, monkeypatch: Any) -> None:
    def refuse(self: Any, modes: Any) -> None:
        raise fake_cudnn.NotSupportedError("no engine")

    monkeypatch.setattr(fake_cudnn.Graph, "create_execution_plans", refuse)
    given = case(SHAPES["3 by 3"], cpu)
    assert module.KERNEL.tactics(given.tensors, given.attributes, H100) == []


@pytest.mark.parametrize("knobs", [{"TILE_SIZE": 9}, {"A KNOB OF TOMORROW": 1}])
def test_an_engine_that_this_cudnn_does_not_build_is_an_error_that_says_so(
    knobs: dict[str, int], module: Any, cpu: Any
) -> None:
    given = case(SHAPES["3 by 3"], cpu)
    tactic = Tactic("cudnn.conv", {"engine": 3, "knobs": knobs})
    with pytest.raises(BackendError, match="cuDNN 91300 does not build engine 3"):
        module.KERNEL.prepare(given.tensors, given.attributes, tactic)


def test_a_plan_with_a_huge_workspace_is_left_out(module: Any, cpu: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(fake_cudnn.Graph, "WORKSPACE", module.MOST_WORKSPACE_BYTES + 1)
    given = case(SHAPES["3 by 3"], cpu)
    (tactic, *_) = module.KERNEL.tactics(given.tensors, given.attributes, H100)
    with pytest.raises(BackendError, match="bytes of workspace"):
        module.KERNEL.prepare(given.tensors, given.attributes, tactic)


def test_a_residual_that_is_added_after_the_activation_instead_is_noticed(
    module: Any, cpu: Any, monkeypatch: Any
) -> None:
    given = case(SHAPES["3 by 3"], cpu, residual=True, activation="relu")
    wrong = Case(given.tensors, given.attributes | {"residual_first": 0}, given.expected)
    for _, made in outputs(module.KERNEL, wrong, monkeypatch):
        assert error(made, given.expected) > 0.1


@pytest.mark.parametrize(
    ("shape", "keywords", "device_facts", "reason"),
    [
        (SHAPES["3 by 3"], {"dtype": torch.float32}, H100, "not torch.float32"),
        (SHAPES["3 by 3"], {"dtype": E4M3}, AMPERE, "from compute capability 9.0"),
        (SHAPES["3 by 3"], {"out_scale": 0.1}, AMPERE, "from compute capability 9.0"),
        (Shape(1, 24, 5, 5, 16), {"dtype": E4M3}, H100, "by 16 channels"),
    ],
)
def test_what_it_cannot_do_is_refused_with_the_reason(
    shape: Shape, keywords: Any, device_facts: Any, reason: str, module: Any, cpu: Any
) -> None:
    given = case(shape, cpu, **keywords)
    assert reason in module.KERNEL.refuses(given.tensors, given.attributes, device_facts)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="cuDNN needs a GPU")
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "with a residual"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_plan_of_the_real_library_is_the_convolution_in_float64(
    shape: Shape, residual: bool, device: Any, monkeypatch: Any
) -> None:
    pytest.importorskip("cudnn", reason="cudnn.conv needs nvidia-cudnn-frontend")
    kernel = importlib.import_module(PLACE).KERNEL
    given = case(shape, device, residual=residual, activation="relu")
    for text, made in outputs(kernel, given, monkeypatch):
        assert error(made, given.expected) < TOLERANCES[torch.float16], text
