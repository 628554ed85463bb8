"""`torch.conv`: what PyTorch computes is the step, by its fused calls on a GPU and apart on any device."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch engine needs torch")

from backends.torch_cuda.kernels.conv_cases import E4M3, Case, Shape, case  # noqa: E402
from backends.torch_cuda.kernels.float64 import H100, error, facts  # noqa: E402
from vitesse.backends.torch_cuda.kernels import torch_conv as module  # noqa: E402
from vitesse.backends.torch_cuda.kernels.torch_conv import KERNEL  # noqa: E402

SHAPES = {
    "3 by 3": Shape(2, 16, 9, 11, 24),
    "stride 2": Shape(2, 16, 9, 12, 24, strides=(2, 2)),
    "dilated": Shape(1, 16, 11, 7, 16, pads=(2, 2, 2, 2), dilations=(2, 2)),
    "groups": Shape(1, 16, 6, 7, 24, group=4),
    "pads on one side": Shape(1, 16, 6, 8, 16, strides=(2, 2), pads=(0, 0, 1, 1)),
    "stem": Shape(1, 3, 13, 19, 16, kernel=(7, 7), strides=(2, 2), pads=(3, 3, 3, 3)),
}
# The sum is rounded before the residual is added.
TOLERANCE = 1.5e-3
ON_GPU = torch.cuda.is_available()


def outputs(given: Case) -> list[Any]:
    assert KERNEL.refuses(given.tensors, given.attributes, facts()) == ""
    found = KERNEL.tactics(given.tensors, given.attributes, facts())
    made = [KERNEL.prepare(given.tensors, given.attributes, tactic)(*given.tensors)[0] for tactic in found]
    assert len(made) == 2
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in made)
    return made


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "with a residual"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_is_the_convolution_in_float64(shape: Shape, residual: bool, device: Any) -> None:
    given = case(shape, device, residual=residual, activation="relu")
    for made in outputs(given):
        assert error(made, given.expected) < TOLERANCE


@pytest.mark.parametrize("activation", ["", "relu", "silu"])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("scaled", [0, 16])
def test_what_pytorch_has_not_fused_follows_apart(
    activation: str, first: int, scaled: int, device: Any
) -> None:
    said = {"activation": activation, "residual_first": first, "scaled": scaled}
    given = case(Shape(1, 16, 5, 6, 16), device, residual=True, **said)
    for made in outputs(given):
        assert error(made, given.expected) < TOLERANCE


def test_float32_stays_float32(device: Any) -> None:
    given = case(Shape(1, 16, 5, 6, 16), device, dtype=torch.float32, activation="relu")
    for made in outputs(given):
        assert made.dtype == torch.float32
        assert error(made, given.expected) < (1e-6 if not ON_GPU else 1e-3)  # a GPU may use TF32


def test_an_output_in_e4m3_is_quantised_as_onnx_does(device: Any) -> None:
    given = case(Shape(1, 16, 5, 6, 16), device, activation="relu", out_scale=0.004)
    for made in outputs(given):
        assert made.dtype == E4M3
        assert (made.float().cpu().numpy() == 448).any()
        assert error(made.float() * 0.004, given.expected.clip(0, 448 * 0.004)) < 0.04


def test_pytorchs_setting_is_left_as_it_was(device: Any) -> None:
    before = torch.backends.cudnn.benchmark
    outputs(case(SHAPES["3 by 3"], device))
    assert torch.backends.cudnn.benchmark == before


@pytest.mark.skipif(not ON_GPU, reason="cuDNN needs a GPU")
def test_relu_and_residual_are_one_call_of_cudnn(device: Any) -> None:
    for residual in (False, True):
        given = case(SHAPES["3 by 3"], device, residual=residual, activation="relu")
        _, weight, scale, bias, z = given.tensors
        shift = None if bias is None else bias.half()
        assert module._fused(weight, shift, scale, z, given.tensors, given.attributes) is not None


def test_a_residual_that_is_left_out_is_noticed(device: Any) -> None:
    given = case(SHAPES["3 by 3"], device, residual=True, activation="relu")
    tactic = KERNEL.tactics(given.tensors, given.attributes, facts())[0]
    run = KERNEL.prepare((*given.tensors[:4], None), given.attributes, tactic)
    (made,) = run(*given.tensors[:4], None)
    assert error(made, given.expected) > 0.1


def test_e4m3_is_refused(device: Any) -> None:
    given = case(SHAPES["3 by 3"], device, dtype=E4M3)
    assert "no convolution of E4M3" in KERNEL.refuses(given.tensors, given.attributes, H100)
