"""The norm inside the product that reads it, and both one after the other, against float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch engine needs torch")
pytest.importorskip("triton", reason="the kernels are in Triton")

from backends.torch_cuda.kernels import float64  # noqa: E402
from backends.torch_cuda.kernels.float64 import H100, facts, numbers  # noqa: E402
from linear_cases import ACTIVATIONS  # noqa: E402
from vitesse.backends.torch_cuda import steps  # noqa: E402
from vitesse.backends.torch_cuda.candidates import Tactic  # noqa: E402
from vitesse.backends.torch_cuda.kernels.linear_configs import GemmConfig  # noqa: E402
from vitesse.backends.torch_cuda.kernels.norm_linear import KERNEL  # noqa: E402
from vitesse.backends.torch_cuda.kernels.separate_norm_linear import KERNEL as SEPARATE  # noqa: E402

EPSILON = 1e-6
SMALL = GemmConfig(16, 32, 32, 4, 2, group=2)
POINTERS = replace(SMALL, operands="pointers")
# What FP16 operands cost: the gain is rounded into the weight, or the normalised rows are rounded.
TOLERANCE = 1e-3


def step(
    device: Any,
    shape: tuple[int, ...],
    n: int,
    *,
    mean: float = 0.0,
    residual: bool = False,
    shift: bool = True,
    bias: bool = True,
) -> tuple[Any, ...]:
    random = torch.Generator().manual_seed(sum(shape))
    k = shape[-1]

    def normal(*size: int) -> Any:
        return torch.randn(size, generator=random)

    made = (
        normal(*shape) * 2 + mean,
        normal(k) * 0.2 + 1,
        normal(k) if shift else None,
        normal(k, n) * k**-0.5,
        normal(n) if bias else None,
        normal(*shape[:-1], n) if residual else None,
    )
    return tuple(None if one is None else one.to(device, torch.float16) for one in made)


def right(tensors: tuple[Any, ...], activation: str = "", residual_first: int = 0) -> float64.Array:
    x, gain, shift, weight, bias, residual = (None if one is None else numbers(one) for one in tensors)
    assert x is not None and gain is not None and weight is not None
    rows = float64.norm(x, gain, 0.0 * gain if shift is None else shift, EPSILON)
    y = rows @ weight + (0.0 if bias is None else bias)
    act = lambda one: ACTIVATIONS[activation](torch.from_numpy(one)).numpy()  # noqa: E731
    if residual is not None and residual_first:
        return act(y + residual)
    return act(y) if residual is None else act(y) + residual


def computed(tensors: tuple[Any, ...], config: GemmConfig, **attributes: Any) -> Any:
    run = KERNEL.prepare(tensors, {"epsilon": EPSILON, **attributes}, Tactic(KERNEL.name, config.document()))
    return run(*tensors)[0]


@pytest.mark.parametrize("config", [SMALL, POINTERS], ids=["tma", "pointers"])
@pytest.mark.parametrize("shape, n", [((1, 8), 8), ((2, 3, 24), 40), ((37, 80), 48), ((33, 72), 100)])
def test_any_number_of_rows_columns_and_channels_is_right(
    device: Any, config: GemmConfig, shape: tuple[int, ...], n: int
) -> None:
    tensors = step(device, shape, n)
    made = computed(tensors, config)
    assert made.shape == (*shape[:-1], n) and made.dtype == torch.float16
    assert float64.error(made, right(tensors)) < TOLERANCE


@pytest.mark.parametrize("activation", ["", "gelu", "relu"])
@pytest.mark.parametrize("residual_first", [0, 1])
def test_the_epilogue_follows(device: Any, activation: str, residual_first: int) -> None:
    tensors = step(device, (2, 11, 64), 40, residual=True)
    made = computed(tensors, SMALL, activation=activation, residual_first=residual_first)
    assert float64.error(made, right(tensors, activation, residual_first)) < TOLERANCE


@pytest.mark.parametrize("left_out", ["shift", "bias"])
def test_shift_and_bias_may_be_absent(device: Any, left_out: str) -> None:
    tensors = step(device, (19, 64), 32, **{left_out: False})
    assert float64.error(computed(tensors, SMALL), right(tensors)) < TOLERANCE


def test_rows_far_from_zero_are_centred(device: Any) -> None:
    # Float16 itself rounds numbers around 40 to 1/32: what is compared are the rows as they came.
    tensors = step(device, (19, 96), 32, mean=40.0)
    assert float64.error(computed(tensors, SMALL), right(tensors)) < 2 * TOLERANCE


def test_a_row_of_equal_numbers_gives_the_shift_alone(device: Any) -> None:
    x, *others = step(device, (5, 64), 32)
    tensors = (torch.full_like(x, 3.0), *others)
    assert float64.error(computed(tensors, SMALL), right(tensors)) < 2 * TOLERANCE


def test_the_check_sees_rows_that_are_not_centred(device: Any) -> None:
    tensors = step(device, (19, 64), 32, mean=2.0)
    x = numbers(tensors[0])
    scaled = x / x.std(-1, keepdims=True) * numbers(tensors[1]) + numbers(tensors[2])
    assert float64.error(computed(tensors, SMALL), scaled @ numbers(tensors[3]) + numbers(tensors[4])) > 0.1


def test_only_programs_that_see_whole_rows_are_offered() -> None:
    x = torch.empty(1, 197, 768, dtype=torch.float16, device="meta")
    tensors = (x, x[0, 0], x[0, 0], x.new_empty(768, 2304), None, None)
    offered = [GemmConfig.of(one.config) for one in KERNEL.tactics(tensors, {}, H100)]
    assert offered and all(one.split_k == 1 and not one.persistent for one in offered)
    assert all(one.block_m * max(one.block_n, one.block_k) <= 128 * 64 for one in offered)


def test_separate_kernels_are_right_and_offered_in_turns(device: Any) -> None:
    tensors = step(device, (2, 9, 64), 48, residual=True)
    attributes = {"epsilon": EPSILON, "activation": "gelu"}
    assert SEPARATE.refuses(tensors, attributes, facts()) == ""
    offered = SEPARATE.tactics(tensors, attributes, facts())
    assert len({one.config["kernel"] for one in offered[:2]}) == 2
    for tactic in offered[:3]:
        (made,) = SEPARATE.prepare(tensors, attributes, tactic)(*tensors)
        assert float64.error(made, right(tensors, "gelu")) < 2 * TOLERANCE, tactic.text()


def test_what_neither_can_do_is_refused_with_the_reason() -> None:
    x = torch.empty(7, 64, device="meta")
    tensors = (x, x[0], None, x.new_empty(64, 32), None, None)
    assert "not torch.float32" in KERNEL.refuses(tensors, {}, H100)
    assert "capability" in SEPARATE.refuses(tensors, {}, replace(H100, capability=(7, 5)))


def test_the_plain_step_is_the_norm_and_then_the_layer(device: Any) -> None:
    tensors = step("cpu", (2, 9, 64), 48, residual=True)
    (made,) = steps.norm_linear(*tensors, epsilon=EPSILON, activation="gelu")
    assert float64.error(made, right(tensors, "gelu")) < TOLERANCE
