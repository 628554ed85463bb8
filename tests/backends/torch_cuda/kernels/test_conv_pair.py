"""Both kernels of the step `ConvPair` against float64: strides, borders, sizes that fit no tile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch engine needs torch")
pytest.importorskip("triton", reason="the kernels are in Triton")

from backends.torch_cuda.kernels.conv_cases import (  # noqa: E402
    NUMPY_ACTIVATIONS,
    TOLERANCES,
    Case,
    Shape,
    between_nan,
    convolved,
    poisoned,
)
from backends.torch_cuda.kernels.float64 import AMPERE, H100, TURING, error, facts, numbers  # noqa: E402
from vitesse.backends.torch_cuda import steps  # noqa: E402
from vitesse.backends.torch_cuda.comparing import disagreement  # noqa: E402
from vitesse.backends.torch_cuda.kernels import conv_pair as module  # noqa: E402
from vitesse.backends.torch_cuda.kernels import torch_conv_pair  # noqa: E402
from vitesse.backends.torch_cuda.kernels.conv_pair import KERNEL  # noqa: E402

# Images, channels, channels of the other, filters, height and width of the other, strides.
SIZES = {
    "as the first block has it": (2, 64, 64, 256, 7, 9, (1, 1)),
    "as later blocks have it": (1, 32, 64, 128, 12, 10, (2, 2)),
    "odd sizes, stride 2": (2, 32, 32, 40, 9, 11, (2, 2)),
    "stride across alone": (1, 32, 64, 24, 5, 7, (1, 2)),
    "channels that fill no block": (1, 40, 72, 16, 5, 4, (2, 1)),
    "one pixel": (3, 16, 32, 8, 1, 1, (1, 1)),
}


def case(name: str, device: Any, *, dtype: Any = torch.float16, biased: bool = True, **said: Any) -> Case:
    images, channels, others, filters, height, width, strides = SIZES[name]
    random = torch.Generator().manual_seed(3)
    size = (-(-height // strides[0]), -(-width // strides[1]))
    x = between_nan(torch.randn(images, channels, *size, generator=random).to(dtype).to(device))
    other = between_nan(torch.randn(images, others, height, width, generator=random).to(dtype).to(device))
    weight = torch.randn(filters, channels + others, 1, 1, generator=random) / (channels + others) ** 0.5
    weight = weight.to(dtype).to(device)
    bias = torch.randn(filters, generator=random).to(dtype).to(device) if biased else None
    attributes = {"strides": strides, "activation": "relu", "out_dtype": str(dtype)[6:], **said}
    point = {"kernel": (1, 1), "pads": (0, 0, 0, 0)}
    wide = convolved(
        numbers(x), numbers(weight[:, :channels]), Shape(images, channels, *size, filters, **point)
    )
    shortcut = Shape(images, others, height, width, filters, strides=strides, **point)
    wide = wide + convolved(numbers(other), numbers(weight[:, channels:]), shortcut)
    wide = wide if bias is None else wide + numbers(bias).reshape(1, -1, 1, 1)
    return Case((x, other, weight, bias), attributes, NUMPY_ACTIVATIONS[attributes["activation"]](wide))


def outputs(kernel: Any, given: Case, monkeypatch: Any) -> list[tuple[str, Any]]:
    """Return what every configuration computes into memory full of NaN."""
    assert kernel.refuses(given.tensors, given.attributes, facts()) == ""
    made = []
    for tactic in kernel.tactics(given.tensors, given.attributes, facts()):
        assert tactic.kernel == kernel.name
        run = kernel.prepare(given.tensors, given.attributes, tactic)
        with poisoned(monkeypatch):
            made.append((tactic.text(), *run(*given.tensors)))
    assert 0 < len(made) <= 12
    assert all(y.is_contiguous(memory_format=torch.channels_last) for _, y in made)
    return made


@pytest.mark.parametrize("kernel", [KERNEL, torch_conv_pair.KERNEL], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("name", SIZES)
def test_every_configuration_is_the_sum_of_both_in_float64(
    kernel: Any, name: str, device: Any, monkeypatch: Any
) -> None:
    given = case(name, device)
    for text, made in outputs(kernel, given, monkeypatch):
        assert made.dtype == torch.float16
        assert error(made, given.expected) < TOLERANCES[torch.float16], text
        assert disagreement((made,), steps.conv_pair(*given.tensors, **given.attributes)) == "", text


@pytest.mark.parametrize("activation", ["", "silu", "gelu"])
@pytest.mark.parametrize("biased", [False, True])
def test_bias_and_activation_follow_the_sum(
    activation: str, biased: bool, device: Any, monkeypatch: Any
) -> None:
    given = case("odd sizes, stride 2", device, activation=activation, biased=biased, out_dtype="float32")
    text, made = outputs(KERNEL, given, monkeypatch)[0]
    assert made.dtype == torch.float32
    assert error(made, given.expected) < 2e-5, text


def test_bfloat16_is_taken_too(device: Any, monkeypatch: Any) -> None:
    given = case("as later blocks have it", device, dtype=torch.bfloat16)
    for text, made in outputs(KERNEL, given, monkeypatch):
        assert error(made, given.expected) < TOLERANCES[torch.bfloat16], text


def test_an_output_in_e4m3_is_rounded_once(device: Any, monkeypatch: Any) -> None:
    given = case("as later blocks have it", device, out_scale=0.01)
    wanted = torch.from_numpy(given.expected / 0.01).clamp(-448, 448).float().to(torch.float8_e4m3fn)
    for text, made in outputs(KERNEL, given, monkeypatch):
        assert disagreement((made,), (wanted.to(device),)) == "", text


def test_the_plain_function_is_the_sum_of_both(device: Any) -> None:
    for name in SIZES:
        given = case(name, device)
        assert error(steps.conv_pair(*given.tensors, **given.attributes)[0], given.expected) < 1e-3


@pytest.mark.parametrize("broken", ["STRIDE_Y", "C", "blocks"])
def test_a_program_that_is_told_something_wrong_is_noticed(
    broken: str, device: Any, monkeypatch: Any
) -> None:
    given = case("channels that fill no block", device)
    right = module.pair

    class Wrong:
        def __getitem__(self, grid: Any) -> Any:
            def launch(*positional: Any, **named: Any) -> None:
                if broken == "blocks":
                    named["C_PADDED"], named["OTHER_PADDED"] = named["OTHER_PADDED"], named["C_PADDED"]
                else:
                    named[broken] -= 1
                right[grid](*positional, **named)

            return launch

    monkeypatch.setattr(module, "pair", Wrong())
    tactic = KERNEL.tactics(given.tensors, given.attributes, facts())[0]
    (made,) = KERNEL.prepare(given.tensors, given.attributes, tactic)(*given.tensors)
    assert not error(made, given.expected) < 0.05


def test_what_it_cannot_do_is_refused_with_the_reason(device: Any) -> None:
    x, other, weight, bias = case("one pixel", device).tensors
    given = {"strides": (1, 1)}
    assert "not torch.float32" in KERNEL.refuses((x.float(), other, weight, bias), given, H100)
    assert "8.0" in KERNEL.refuses((x, other, weight, bias), given, TURING)
    assert "8.9" in KERNEL.refuses((x, other, weight, bias), {**given, "out_scale": 0.1}, AMPERE)
    assert KERNEL.refuses((x, None, weight), given, H100) == "an input or the weight is absent"
    large = torch.empty(70, 256, 400, 667, dtype=torch.float16, device="meta")
    assert "elements in one tensor" in KERNEL.refuses((x, large, weight), given, H100)
    eight = weight.to(torch.float8_e4m3fn)
    assert (
        torch_conv_pair.KERNEL.refuses((x, other, eight), given, H100) == "PyTorch has no convolution of E4M3"
    )


def test_rows_beyond_the_last_pixel_read_nothing_outside(device: Any, monkeypatch: Any) -> None:
    given = case("odd sizes, stride 2", device)
    for text, made in outputs(KERNEL, given, monkeypatch):
        assert np.isfinite(numbers(made)).all(), text
