"""`torch.linear` against float64."""

from __future__ import annotations

import pytest
import torch

from linear_cases import E4M3, Case, case, error
from vitesse.backends.torch_cuda.candidates import DeviceFacts, Tactic
from vitesse.backends.torch_cuda.kernels.torch_linear import KERNEL

H100 = DeviceFacts((9, 0), 132, "NVIDIA H100")
# It rounds the product, and again after the activation and after the residual.
TWICE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3, E4M3: 4e-2}


def every(one: Case) -> list[tuple[Tactic, torch.Tensor]]:
    """The node computed by each tactic."""
    assert KERNEL.refuses(one.tensors, one.attributes, H100) == ""
    made = []
    for tactic in KERNEL.tactics(one.tensors, one.attributes, H100):
        (y,) = KERNEL.prepare(one.tensors, one.attributes, tactic)(*one.tensors)
        made.append((tactic, y))
    return made


@pytest.mark.parametrize("activation", ["", "relu", "gelu", "gelu_tanh", "silu", "sigmoid"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("out", [{}, {"out_dtype": "float32"}, {"out_scale": 0.02}])
def test_every_activation_is_right(activation, bias, out, device):
    one = case((5, 7, 40), 24, bias=bias, activation=activation, device=device, **out)
    for tactic, made in every(one):
        assert made.shape == (5, 7, 24)
        assert error(made, one.expected) < max(TWICE[made.dtype], 1e-3), tactic.text()


@pytest.mark.parametrize("rows", [(3, 11, 40), (11, 40), (40,)])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_a_residual_is_added_before_or_after_the_activation(rows, first, bias, device):
    one = case(
        (3, 11, 64), 40, residual=rows, residual_first=first, activation="relu", bias=bias, device=device
    )
    for tactic, made in every(one):
        assert error(made, one.expected) < TWICE[made.dtype], tactic.text()


def test_float32_and_bfloat16_are_right(device):
    for dtype in (torch.float32, torch.bfloat16):
        one = case(
            (9, 33), 17, dtype=dtype, activation="gelu", out_dtype=str(dtype).split(".")[1], device=device
        )
        for tactic, made in every(one):
            assert made.dtype == dtype
            assert error(made, one.expected) < TWICE[dtype], tactic.text()


@pytest.mark.parametrize("scale", [1, 48])
@pytest.mark.parametrize("residual", [None, (19, 48)])
@pytest.mark.parametrize("out", [{"out_dtype": "float16"}, {"out_dtype": "float32"}, {"out_scale": 0.02}])
def test_products_of_e4m3_are_scaled(scale, residual, out, device):
    one = case(
        (19, 96), 48, dtype=E4M3, scale=scale, residual=residual, activation="relu", device=device, **out
    )
    for tactic, made in every(one):
        assert error(made, one.expected) < max(TWICE[made.dtype], 2e-3), tactic.text()


def test_a_scale_of_16_bit_products_is_applied(device):
    one = case((19, 96), 48, scale=48, device=device)
    for tactic, made in every(one):
        assert error(made, one.expected) < TWICE[made.dtype], tactic.text()


def test_a_forgotten_bias_is_caught(device):
    one = case((19, 96), 48, device=device)
    (tactic, _), *_ = every(one)
    without = [*one.tensors[:3], None, None]
    (made,) = KERNEL.prepare(without, one.attributes, tactic)(*without)
    assert error(made, one.expected) > 0.1


def test_refusals_say_why():
    odd = case((4, 24), 16, dtype=E4M3)
    assert (
        KERNEL.refuses(odd.tensors, {}, H100) == "_scaled_mm takes K and N in multiples of 16, not 24 and 16"
    )
    old = DeviceFacts((8, 0), 108, "NVIDIA A100")
    assert KERNEL.refuses(odd.tensors, {}, old) == "E4M3 needs compute capability 8.9, this is (8, 0)"
    mixed = [torch.zeros(4, 8), torch.zeros(8, 8).half()]
    assert KERNEL.refuses(mixed, {}, H100) == "x is torch.float32, its weight torch.float16"
    assert KERNEL.refuses([torch.zeros(4, 8).int(), torch.zeros(8, 8).int()], {}, H100).startswith(
        "no matrix product"
    )
