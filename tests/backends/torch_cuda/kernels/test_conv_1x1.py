"""`triton.conv_1x1` against float64, and what it leaves to others."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch engine needs torch")
pytest.importorskip("triton", reason="the kernels are in Triton")

from backends.torch_cuda.kernels.conv_cases import E4M3, TOLERANCES, Case, Shape, case, poisoned  # noqa: E402
from backends.torch_cuda.kernels.float64 import H100, TURING, error, facts  # noqa: E402
from vitesse.backends.torch_cuda.kernels import conv_1x1 as module  # noqa: E402
from vitesse.backends.torch_cuda.kernels.conv_1x1 import KERNEL  # noqa: E402

POINT = {"kernel": (1, 1), "pads": (0, 0, 0, 0)}
SHAPES = {
    "wider": Shape(2, 24, 5, 7, 40, **POINT),
    "narrower": Shape(1, 72, 6, 3, 16, **POINT),
    "one pixel": Shape(2, 16, 1, 1, 16, **POINT),
}


def outputs(given: Case, monkeypatch: Any) -> list[tuple[str, Any]]:
    """Return what every configuration computes into memory full of NaN."""
    assert KERNEL.refuses(given.tensors, given.attributes, facts()) == ""
    made = []
    for tactic in KERNEL.tactics(given.tensors, given.attributes, facts()):
        assert tactic.kernel == "triton.conv_1x1"
        run = KERNEL.prepare(given.tensors, given.attributes, tactic)
        with poisoned(monkeypatch):
            made.append((tactic.text(), *run(*given.tensors)))
    assert 0 < len(made) <= 12
    assert all(y.is_contiguous(memory_format=torch.channels_last) for _, y in made)
    return made


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "with a residual"])
def test_every_configuration_is_the_convolution_in_float64(
    shape: Shape, residual: bool, device: Any, monkeypatch: Any
) -> None:
    given = case(shape, device, residual=residual, activation="relu")
    for text, made in outputs(given, monkeypatch):
        assert error(made, given.expected) < TOLERANCES[torch.float16], text


@pytest.mark.parametrize("first", [0, 1])
def test_the_residual_is_added_where_the_step_says(first: int, device: Any, monkeypatch: Any) -> None:
    given = case(SHAPES["wider"], device, residual=True, activation="relu", residual_first=first)
    _, made = outputs(given, monkeypatch)[0]
    assert error(made, given.expected) < TOLERANCES[torch.float16]


def test_the_residual_comes_before_the_activation_unless_it_is_said(device: Any, monkeypatch: Any) -> None:
    given = case(SHAPES["wider"], device, residual=True, activation="relu")
    assert "residual_first" not in given.attributes
    _, made = outputs(given, monkeypatch)[0]
    assert error(made, given.expected) < TOLERANCES[torch.float16]


def test_e4m3_takes_one_scale_for_all_filters_or_one_for_each(device: Any, monkeypatch: Any) -> None:
    for scaled in (1, 32):
        given = case(Shape(1, 48, 4, 5, 32, **POINT), device, dtype=E4M3, scaled=scaled, activation="relu")
        for text, made in outputs(given, monkeypatch):
            assert error(made, given.expected) < TOLERANCES[torch.float16], text


def test_an_input_in_planes_is_converted(device: Any, monkeypatch: Any) -> None:
    given = case(SHAPES["wider"], device, residual=True)
    x, *constants, z = given.tensors
    planes = Case((x.contiguous(), *constants, z.contiguous()), given.attributes, given.expected)
    _, made = outputs(planes, monkeypatch)[0]
    assert error(made, given.expected) < TOLERANCES[torch.float16]


def test_pixels_in_another_order_are_noticed(device: Any, monkeypatch: Any) -> None:
    given = case(SHAPES["wider"], device)
    monkeypatch.setattr(module, "_pixels", lambda x: x.permute(0, 3, 2, 1).reshape(-1, x.shape[1]))
    tactic = KERNEL.tactics(given.tensors, given.attributes, facts())[0]
    (made,) = KERNEL.prepare(given.tensors, given.attributes, tactic)(*given.tensors)
    # What is written into a copy in another order never arrives, or arrives elsewhere.
    assert not error(made, given.expected) < 0.5


@pytest.mark.parametrize(
    ("shape", "device_facts", "reason"),
    [
        (Shape(1, 16, 5, 5, 16), H100, "(3, 3) taps"),
        (Shape(1, 16, 5, 5, 16, kernel=(1, 1), pads=(0, 0, 0, 0), strides=(2, 2)), H100, "strides (2, 2)"),
        (Shape(1, 16, 5, 5, 16, kernel=(1, 1)), H100, "pads (1, 1, 1, 1)"),
        (Shape(1, 16, 5, 5, 16, **POINT, group=2), H100, "2 groups"),
        (Shape(1, 16, 5, 5, 16, **POINT), TURING, "compute capability"),
    ],
)
def test_what_it_cannot_do_is_refused_with_the_reason(
    shape: Shape, device_facts: Any, reason: str, device: Any
) -> None:
    given = case(shape, device)
    assert reason in KERNEL.refuses(given.tensors, given.attributes, device_facts)


def test_shapes_alone_are_enough_to_ask() -> None:
    x = torch.empty(8, 256, 200, 334, dtype=torch.float16, device="meta")
    weight = torch.empty(64, 256, 1, 1, dtype=torch.float16)
    assert KERNEL.refuses((x, weight), {}, H100) == ""
    assert KERNEL.tactics((x, weight), {}, H100)
