"""`triton.max_pool` gives the very numbers of PyTorch's pooling, border and NaN included."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch engine needs torch")
pytest.importorskip("triton", reason="the kernels are in Triton")

from backends.torch_cuda.kernels.conv_cases import between_nan, poisoned  # noqa: E402
from backends.torch_cuda.kernels.float64 import H100, facts  # noqa: E402
from vitesse.backends.torch_cuda.kernels.max_pool import KERNEL, Window  # noqa: E402

RESNET = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
WINDOWS: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "3 by 3, stride 2": (RESNET, (3, 2, 1)),
    "2 by 2": ({"kernel_shape": [2, 2], "strides": [2, 2]}, (2, 2, 0)),
    "dilated": ({"kernel_shape": [3, 3], "dilations": [2, 2], "pads": [1, 1, 1, 1]}, (3, 1, 1, 2)),
    "1 by 3": ({"kernel_shape": [1, 3], "pads": [0, 1, 0, 1]}, ((1, 3), 1, (0, 1))),
}


def outputs(x: Any, attributes: dict[str, Any], monkeypatch: Any) -> list[Any]:
    assert KERNEL.refuses((x,), attributes, facts()) == ""
    made = []
    for tactic in KERNEL.tactics((x,), attributes, facts()):
        with poisoned(monkeypatch):
            made += KERNEL.prepare((x,), attributes, tactic)(x)
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in made)
    return made


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("attributes", "arguments"), WINDOWS.values(), ids=WINDOWS)
def test_every_configuration_gives_pytorchs_numbers(
    attributes: dict[str, Any], arguments: tuple[Any, ...], dtype: Any, device: Any, monkeypatch: Any
) -> None:
    # Below zero, so that a border of zeros would win.
    values = torch.randn(2, 20, 9, 12, generator=torch.Generator().manual_seed(1)) - 5
    x = between_nan(values.to(dtype).to(device))
    expected = torch.nn.functional.max_pool2d(values.to(dtype).double(), *arguments)
    for made in outputs(x, attributes, monkeypatch):
        assert made.dtype == dtype
        assert torch.equal(made.double().cpu(), expected)


def test_nan_is_kept(device: Any, monkeypatch: Any) -> None:
    x = torch.zeros(1, 8, 7, 7, dtype=torch.float16, device=device)
    x[0, 3, 4, 4] = torch.nan
    for made in outputs(x, RESNET, monkeypatch):
        assert torch.equal(made.isnan(), torch.nn.functional.max_pool2d(x.float(), 3, 2, 1).isnan())


def test_a_window_that_is_shifted_is_noticed(device: Any, monkeypatch: Any) -> None:
    x = torch.randn(1, 8, 7, 7, device=device).half()
    shifted = Window((3, 3), (2, 2), (0, 1, 2, 1), (1, 1))
    monkeypatch.setattr(Window, "of", classmethod(lambda cls, attributes: shifted))
    expected = torch.nn.functional.max_pool2d(x.float(), 3, 2, 1)
    assert not any(torch.equal(made.float(), expected) for made in outputs(x, RESNET, monkeypatch))


@pytest.mark.parametrize(
    ("shape", "dtype", "attributes", "reason"),
    [
        ((1, 8, 7, 7), torch.int8, RESNET, "not torch.int8"),
        ((1, 8, 7), torch.float16, {"kernel_shape": [3]}, "two axes, not 1"),
        ((1, 8, 7, 7), torch.float16, RESNET | {"ceil_mode": 1}, "ceil_mode"),
        ((1, 8, 7, 7), torch.float16, RESNET | {"auto_pad": "SAME_UPPER"}, "auto_pad SAME_UPPER"),
        ((1, 8, 9, 9), torch.float16, {"kernel_shape": [9, 9]}, "a window of (9, 9)"),
        ((40, 256, 500, 500), torch.float16, RESNET, "elements in one tensor"),
    ],
)
def test_what_it_cannot_do_is_refused_with_the_reason(
    shape: tuple[int, ...], dtype: Any, attributes: dict[str, Any], reason: str
) -> None:
    assert reason in KERNEL.refuses((torch.empty(shape, dtype=dtype, device="meta"),), attributes, H100)
